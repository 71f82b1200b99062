"""Selection of the layers to match, from names and grids alone."""

from collections.abc import Sequence

from uhkd.errors import UhkdError
from uhkd.recipe.errors import did_you_mean

LayerSelection = int | Sequence[int | str]
"""A number of layers to choose, or the layers: names, or indices (negative: from the end)."""


def evenly(count: int, wanted: int) -> tuple[int, ...]:
    """Return the indices of `wanted` evenly spaced items out of `count`, including the last: (2,5,8,11) of 12."""
    wanted = min(count, wanted)
    return tuple(-(-(i + 1) * count // wanted) - 1 for i in range(wanted))


def choose(grids: Sequence[tuple[int, int]], wanted: int) -> tuple[int, ...]:
    """Return the default levels: the last `wanted` stages of a pyramid, or evenly spaced blocks of an isotropic network.

    A stage is the deepest map of a grid. A larger grid after a smaller one is an enlarged copy (a pooling to a fixed size),
    not a stage.
    """
    stages: list[int] = []
    for i in sorted({grid: i for i, grid in enumerate(grids)}.values()):
        if not stages or grids[i][0] * grids[i][1] < grids[stages[-1]][0] * grids[stages[-1]][1]:
            stages.append(i)
    return tuple(stages[-wanted:]) if len(set(grids)) > 1 else evenly(len(grids), wanted)


def find_layers(requested: Sequence[int | str], names: Sequence[Sequence[str]], owner: str) -> tuple[int, ...]:
    """Return the indices of the requested layers, shallow to deep.

    Args:
        requested: names, or indices (negative: from the end).
        names: for each layer, all its names.
        owner: class name of the network, for the message.

    Raises:
        UhkdError: for an unknown layer; the message lists the nearest names.
    """
    lookup = {name: i for i, aliases in enumerate(names) for name in aliases}
    indices: set[int] = set()
    for item in requested:
        if isinstance(item, int) and -len(names) <= item < len(names):
            indices.add(item % len(names))
        elif isinstance(item, str) and item in lookup:
            indices.add(lookup[item])
        else:
            last = ", ".join(aliases[0] for aliases in names[-6:])
            hint = did_you_mean(str(item), lookup, 4) or f"; its last layers: {last}"
            raise UhkdError(f"{owner} has no layer {item!r}{hint} ({len(names)} in all)")
    return tuple(sorted(indices))
