"""Deciding from shapes alone how a tensor holds a feature map, and turning it into (B,C,H,W)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["nchw", "nhwc", "tokens", "tokens_first", "channels_tokens"]
Grid = tuple[int, int]

# More than class + distillation + eight registers has not been seen; a wider range only adds false grids.
MAX_PREFIX = 16


@dataclass(frozen=True)
class Layout:
    """How to read a tensor as (B,C,H,W): axis order, grid (H,W) and the number of leading tokens to drop."""

    kind: Kind
    grid: Grid
    prefix: int = 0

    def channels(self, shape: Sequence[int]) -> int:
        """Number of channels of a tensor of this layout."""
        return int(shape[1] if self.kind in ("nchw", "channels_tokens") else shape[-1])

    def to_map(self, tensor: Tensor) -> Tensor:
        """The same numbers as a (B,C,H,W) map, prefix tokens removed."""
        if self.kind == "nchw":
            return tensor
        if self.kind == "nhwc":
            return tensor.permute(0, 3, 1, 2)
        if self.kind == "tokens_first":
            tensor = tensor.permute(1, 2, 0)
        elif self.kind == "tokens":
            tensor = tensor.transpose(1, 2)
        return tensor[:, :, self.prefix :].unflatten(2, self.grid)


def stride_grids(input_size: Grid) -> dict[Grid, int]:
    """Grids that one stride on both axes can make of an input, with 0 for exact division and 1 for rounded."""
    height, width = input_size
    grids: dict[Grid, int] = {}
    for stride in range(1, max(height, width) + 1):
        low = (height // stride, width // stride)
        high = (-(-height // stride), -(-width // stride))
        for grid in (low, high):
            if min(grid) >= 1:
                grids[grid] = min(grids.get(grid, 1), 0 if low == high else 1)
    return grids


def infer(
    shape: Sequence[int],
    batch: int,
    input_size: Grid,
    *,
    prefix_tokens: int | None = None,
    known: Mapping[Grid, int] | None = None,
    channels_last: bool = False,
) -> Layout | None:
    """The most plausible layout of a tensor, or None if it holds no feature map.

    `known` are grids already seen as plain 4-d maps of the same network, `channels_last` breaks ties between NCHW and
    NHWC, `prefix_tokens` fixes the number of leading tokens (None: the most plausible one is found).
    """
    if len(shape) == 4 and shape[0] == batch:
        return _infer_image(shape, input_size, known or {}, channels_last)
    if len(shape) == 3:
        return _infer_tokens(shape, batch, input_size, prefix_tokens, known or {})
    return None


def _infer_image(shape: Sequence[int], input_size: Grid, known: Mapping[Grid, int], last: bool) -> Layout | None:
    first_cost = _grid_cost((shape[2], shape[3]), input_size, known)
    last_cost = _grid_cost((shape[1], shape[2]), input_size, known)
    if first_cost is None and last_cost is None:
        return None
    if last_cost is None or (
        first_cost is not None and (first_cost < last_cost or (first_cost == last_cost and not last))
    ):
        return Layout("nchw", (shape[2], shape[3]))
    return Layout("nhwc", (shape[1], shape[2]))


def is_ambiguous(shape: Sequence[int], input_size: Grid) -> bool:
    """Whether a 4-d shape reads equally well as NCHW and as NHWC."""
    first, last = (_grid_cost((shape[i], shape[i + 1]), input_size, {}) for i in (2, 1))
    return first == last


def _grid_cost(grid: Grid, input_size: Grid, known: Mapping[Grid, int]) -> float | None:
    """How far a grid is from what a network makes of the input; None: not a grid of it."""
    if min(grid) < 1 or grid[0] > input_size[0] or grid[1] > input_size[1]:
        return None
    if grid in known:
        return -1.0
    rank = stride_grids(input_size).get(grid)
    if rank is not None:
        return float(rank)
    # Unpadded convolutions cut borders, so grids need not follow a stride; their shape still resembles the input's.
    stretch = grid[0] * input_size[1] / (grid[1] * input_size[0])
    mismatch = max(stretch, 1 / stretch) - 1
    return 2.0 + mismatch if mismatch < 0.25 and min(grid) >= 2 else None


def _infer_tokens(
    shape: Sequence[int], batch: int, input_size: Grid, prefix: int | None, known: Mapping[Grid, int]
) -> Layout | None:
    candidates: list[tuple[float, Kind, int]] = []
    if shape[0] == batch:
        candidates = [(0.0, "tokens", shape[1]), (0.5, "channels_tokens", shape[2])]
    elif shape[1] == batch:
        candidates = [(0.0, "tokens_first", shape[0])]
    grids = stride_grids(input_size) | dict.fromkeys(known, -8)
    best: tuple[float, Layout] | None = None
    for extra, kind, count in candidates:
        for grid, rank in grids.items():
            left = count - grid[0] * grid[1]
            if grid == (1, 1) or not 0 <= left <= MAX_PREFIX or (prefix is not None and left != prefix):
                continue
            # A rounded grid is as unlikely as four extra tokens: the one weight needed to rank the readings.
            cost = extra + left + 4.0 * rank
            if best is None or cost < best[0]:
                best = (cost, Layout(kind, grid, left))
    return best[1] if best else None
