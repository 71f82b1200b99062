"""Which of a network's maps are its levels: pure choices from names and grids."""

import difflib
from collections.abc import Sequence

from uhkd.errors import UhkdError

Levels = int | Sequence[int | str]


def evenly(count: int, wanted: int) -> tuple[int, ...]:
    """Positions of `wanted` evenly spaced items out of `count`, the last one included: (2,5,8,11) of 12."""
    wanted = min(count, wanted)
    return tuple(-(-(i + 1) * count // wanted) - 1 for i in range(wanted))


def last_of_each_grid(grids: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Positions of the deepest map of each distinct grid, shallow to deep."""
    return tuple(sorted({grid: i for i, grid in enumerate(grids)}.values()))


def choose(grids: Sequence[tuple[int, int]], wanted: int) -> tuple[int, ...]:
    """Default levels: of a pyramid the last `wanted` stages, of an isotropic network evenly spaced blocks."""
    stages: list[int] = []
    for i in last_of_each_grid(grids):
        # A larger grid after a smaller one is an enlarged copy (a pooling to a fixed size), not a stage.
        if not stages or grids[i][0] * grids[i][1] < grids[stages[-1]][0] * grids[stages[-1]][1]:
            stages.append(i)
    return tuple(stages[-wanted:]) if len(set(grids)) > 1 else evenly(len(grids), wanted)


def find(requested: Sequence[int | str], names: Sequence[Sequence[str]], owner: str) -> tuple[int, ...]:
    """Positions of the asked taps, shallow to deep.

    `names` holds for each tap all names it answers to; an integer counts taps, from the end if negative.

    Raises:
        UhkdError: an unknown tap; the message names the nearest ones.
    """
    lookup = {name: i for i, aliases in enumerate(names) for name in aliases}
    found: set[int] = set()
    for item in requested:
        if isinstance(item, int) and -len(names) <= item < len(names):
            found.add(item % len(names))
        elif isinstance(item, str) and item in lookup:
            found.add(lookup[item])
        else:
            near = difflib.get_close_matches(str(item), list(lookup), n=4, cutoff=0.4)
            near = near or [aliases[0] for aliases in names][-6:]
            raise UhkdError(f"{owner} has no tap {item!r}; nearest taps: {', '.join(near)} ({len(names)} in all)")
    return tuple(sorted(found))
