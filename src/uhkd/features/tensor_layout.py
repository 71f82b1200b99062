"""Memory layouts of feature maps, inferred from shapes, and their conversion to (B,C,H,W)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["nchw", "nhwc", "tokens", "tokens_first", "channels_tokens"]
Grid = tuple[int, int]

# Known networks have at most a class, a distillation and eight register tokens; a wider range only adds false grids.
MAX_PREFIX = 16


@dataclass(frozen=True)
class TensorLayout:
    """Axis order of a tensor, its grid (H,W) and the number of leading tokens that are no cells."""

    kind: Kind
    grid: Grid
    prefix: int = 0

    def to_map(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a map (B,C,H,W), without prefix tokens."""
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
    """Return the grids that equal strides on both axes give for an input: 0 for an exact division, 1 for a rounded one."""
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
    known: Mapping[Grid, int] | None = None,
    channels_last: bool = False,
) -> TensorLayout | None:
    """Return the most plausible layout of a tensor, or None for a tensor that is no feature map.

    Args:
        shape: of the tensor.
        batch: number of images.
        input_size: (H,W) of the images.
        known: grids of unambiguous 4-d maps of the same network.
        channels_last: whether a shape that fits NCHW and NHWC equally well is NHWC.
    """
    if len(shape) == 4 and shape[0] == batch:
        return _infer_image(shape, input_size, known or {}, channels_last)
    if len(shape) == 3:
        return _infer_tokens(shape, batch, input_size, known or {})
    return None


def _infer_image(shape: Sequence[int], input_size: Grid, known: Mapping[Grid, int], last: bool) -> TensorLayout | None:
    layouts = [TensorLayout("nchw", (shape[2], shape[3])), TensorLayout("nhwc", (shape[1], shape[2]))]
    costs = [(_grid_cost(layout.grid, input_size, known), layout) for layout in (layouts[::-1] if last else layouts)]
    possible = [(cost, layout) for cost, layout in costs if cost is not None]
    return min(possible, key=lambda pair: pair[0])[1] if possible else None  # of equal costs, min takes the first


def is_ambiguous(shape: Sequence[int], input_size: Grid) -> bool:
    """Return whether a 4-d shape fits NCHW and NHWC equally well."""
    first, last = (_grid_cost((shape[i], shape[i + 1]), input_size, {}) for i in (2, 1))
    return first == last


def _grid_cost(grid: Grid, input_size: Grid, known: Mapping[Grid, int]) -> float | None:
    """Return how unlikely a grid is for this input size; None: impossible."""
    if min(grid) < 1 or grid[0] > input_size[0] or grid[1] > input_size[1]:
        return None
    if grid in known:
        return -1.0
    rank = stride_grids(input_size).get(grid)
    if rank is not None:
        return float(rank)
    # Unpadded convolutions cut borders, so grids need not follow a stride, but their shape is similar to the input's.
    stretch = grid[0] * input_size[1] / (grid[1] * input_size[0])
    mismatch = max(stretch, 1 / stretch) - 1
    return 2.0 + mismatch if mismatch < 0.25 and min(grid) >= 2 else None


def _infer_tokens(shape: Sequence[int], batch: int, input_size: Grid, known: Mapping[Grid, int]) -> TensorLayout | None:
    candidates: list[tuple[float, Kind, int]] = []
    if shape[0] == batch:
        candidates = [(0.0, "tokens", shape[1]), (0.5, "channels_tokens", shape[2])]
    elif shape[1] == batch:
        candidates = [(0.0, "tokens_first", shape[0])]
    grids = stride_grids(input_size) | dict.fromkeys(known, -8)
    best: tuple[float, TensorLayout] | None = None
    for extra, kind, count in candidates:
        for grid, rank in grids.items():
            left = count - grid[0] * grid[1]
            if grid == (1, 1) or not 0 <= left <= MAX_PREFIX:
                continue
            # A rounded grid is as unlikely as four extra tokens; no other weight is needed to rank the layouts.
            cost = extra + left + 4.0 * rank
            if best is None or cost < best[0]:
                best = (cost, TensorLayout(kind, grid, left))
    return best[1] if best else None
