"""YAML of plain data, within bounds: no file can fill memory or time by what it says, and nothing in it is executed."""

from pathlib import Path
from typing import Any

import yaml

from uhkd.errors import UhkdError

LARGEST = 2**18  # characters of YAML: a hundred times a long recipe, and seconds of PyYAML's time
LARGEST_FILE = 2**24  # bytes of JSON: a card with the names of a hundred thousand classes has a tenth of that
_NODES = 20_000  # values with every alias written out: nine lines can stand for a billion


def read_text(path: Path, largest: int = LARGEST_FILE) -> str:
    """The UTF-8 text of a file.

    Raises:
        UhkdError: when it has more than `largest` bytes, or other bytes than UTF-8.
        OSError: when it cannot be read.
    """
    # one byte more is asked for, not the file's size: a device or a pipe tells none
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UhkdError(f"it has more than {largest:,} bytes, which no file of this kind needs")
    return content.decode("utf-8")


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What a YAML text says, as plain data.

    Raises:
        yaml.YAMLError: when it is none, or wants more than plain data.
        UhkdError: when it is too long, nested too deeply, stands for too many values by its aliases, or has a number or
            date that cannot be.
    """
    if len(text) > LARGEST:
        raise UhkdError(f"it has more than {LARGEST:,} characters, which no file of this kind needs")
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _NODES:
            raise UhkdError(f"it stands for more than {_NODES:,} values, its aliases (*name) written out")
        return reader.construct_document(node)
    except RecursionError:
        raise UhkdError("it is nested too deeply") from None
    finally:
        reader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, each alias counted as what it names; one that holds itself has no end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _NODES + 1  # what is found here again, before it is counted, lies in itself
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
