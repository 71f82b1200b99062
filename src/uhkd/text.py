"""Words from elsewhere (names of files, folders and classes), fit to be shown on a terminal and in tables."""

import unicodedata

# parts of words in Persian and of emoji: a terminal obeys neither
_JOINERS = frozenset("\u200c\u200d")


def shown(words: str) -> str:
    """The words on one line, with all that a terminal would obey or hide written out (`\\x1b`, `\\n`, `\\u202e`).

    Control characters, line ends, marks that change the direction of writing, invisible ones, and the surrogates that stand
    for bytes of a file name that are no UTF-8.
    """
    if words.isprintable():
        return words
    return "".join(letter if _plain(letter) else letter.encode("unicode_escape").decode() for letter in words)


def shown_lines(words: str) -> str:
    """As `shown`, with line ends and tabs left as they are: for messages of ours that have more than one line."""
    return "\n".join("\t".join(map(shown, line.split("\t"))) for line in words.split("\n"))


def count(number: int, one: str, many: str | None = None) -> str:
    """'1 shard', '2 shards', '1,797 images'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def file_size(amount: float) -> str:
    """Bytes in words: '512 bytes', '3.2 MB'."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _plain(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"
