"""Reading of YAML and JSON files within limits of size and time; nothing in a file is executed."""

from pathlib import Path
from typing import Any

import yaml

from uhkd.errors import UhkdError

LARGEST = 2**18  # characters of YAML: a hundred times a long recipe; PyYAML takes seconds
LARGEST_FILE = 2**24  # bytes of JSON: ten times a card.json with a hundred thousand class names
_NODES = 20_000  # values after expanding aliases: nine lines can represent a billion


def read_text(path: Path, largest: int = LARGEST_FILE) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UhkdError: if it has more than `largest` bytes.
        UnicodeDecodeError: if it is not UTF-8.
        OSError: if it cannot be read.
    """
    # read one byte too many instead of the file's size, which a device or a pipe does not report
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UhkdError(f"it has more than {largest:,} bytes, too many for a file of this kind")
    return content.decode("utf-8")


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the plain data of a YAML text.

    Raises:
        yaml.YAMLError: if it is not valid YAML, or contains more than plain data.
        UhkdError: if it is too long, nested too deeply, or has too many values after expanding its aliases.
        ValueError: for an impossible number or date.
    """
    if len(text) > LARGEST:
        raise UhkdError(f"it has more than {LARGEST:,} characters, too many for a file of this kind")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _NODES:
            raise UhkdError(f"it has more than {_NODES:,} values after expanding its aliases (*name)")
        return reader.construct_document(node)
    except RecursionError:
        raise UhkdError("it is nested too deeply") from None
    finally:
        reader.dispose()


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values in a node after expanding aliases; more than `_NODES` if it contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = _NODES + 1  # a node met again before it is counted contains itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(node)]
