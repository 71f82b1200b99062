"""Discovery of the layers of any network that give feature maps, from one forward pass of the probe images."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from uhkd.features.introspection import first_tensor, output_hooks
from uhkd.features.selection import choose, evenly
from uhkd.features.tensor_layout import TensorLayout, infer, is_ambiguous


@dataclass(frozen=True)
class LayerOutput:
    """Output of one submodule for the probe images.

    leaf: whether it has no submodules. weighted: whether it has parameters of its own, beside those of submodules.
    """

    name: str
    kind: type[nn.Module]
    leaf: bool
    weighted: bool
    shape: tuple[int, ...]
    layout: TensorLayout | None = None


def trace(module: nn.Module, image: Tensor) -> tuple[list[LayerOutput], Tensor | None, str | None]:
    """Return every submodule's output shape in order of completion, the output, and the name of the linear layer behind it."""
    traced: dict[str, LayerOutput] = {}
    vectors: dict[str, Tensor] = {}

    def record(name: str, part: nn.Module, inputs: Any, output: Tensor) -> None:
        traced.pop(name, None)  # of a module that is called more than once, the last call determines the order
        leaf, weighted = next(part.children(), None) is None, next(part.parameters(recurse=False), None) is not None
        traced[name] = LayerOutput(name, type(part), leaf, weighted, tuple(output.shape))
        source = first_tensor(inputs)
        if isinstance(part, nn.Linear) and output.ndim == 2 and source is not None and source.ndim == 2:
            vectors[name] = output

    with output_hooks({name: part for name, part in module.named_modules() if name}, record):
        output = first_tensor(module(image))
    classifier = None
    if output is not None:
        classifier = next((n for n, x in reversed(vectors.items()) if x.data_ptr() == output.data_ptr()), None)
        if classifier is not None and vectors[classifier].shape != output.shape:
            classifier = None
    return list(traced.values()), output, classifier


def with_layouts(traced: list[LayerOutput], image: Tensor) -> list[LayerOutput]:
    """Return the outputs with their layouts; an ambiguous output gets the axis order of most unambiguous ones."""
    batch, size = image.shape[0], (int(image.shape[2]), int(image.shape[3]))
    clear = [item for item in traced if len(item.shape) == 4 and not is_ambiguous(item.shape, size)]
    layouts = [layout for item in clear if (layout := infer(item.shape, batch, size)) is not None]
    known = {layout.grid: 0 for layout in layouts if layout.grid != (1, 1)}
    channels_last = sum(layout.kind == "nhwc" for layout in layouts) * 2 > len(layouts)
    return [replace(x, layout=infer(x.shape, batch, size, known=known, channels_last=channels_last)) for x in traced]


def default_layers(usable: list[LayerOutput], wanted: int) -> list[LayerOutput]:
    """Return the last layer of each grid of a pyramid, or evenly spaced blocks of an isotropic network."""
    skipped = (nn.Dropout, nn.Dropout2d, nn.Softmax, nn.Identity)
    items = [item for item in usable if not issubclass(item.kind, skipped) and _grid(item) != (1, 1)] or usable
    groups: dict[tuple[Any, ...], list[LayerOutput]] = {}
    for item in items:
        if not item.leaf:
            groups.setdefault((item.name.rpartition(".")[0], item.kind, item.shape), []).append(item)
    repeated = [group for group in groups.values() if len(group) > 1]
    blocks = max(repeated, key=len, default=[])
    # An isotropic network repeats blocks on one grid only; a pyramid repeats blocks on several grids.
    if blocks and len({_grid(group[0]) for group in repeated}) == 1 and (len(blocks) > 2 or len(_grids(items)) == 1):
        return [blocks[i] for i in evenly(len(blocks), wanted)]
    if len(_grids(items)) == 1:
        top = min(item.name.count(".") for item in items)
        items = [item for item in items if item.name.count(".") == top]
    else:
        pooled = _pooled(usable)
        items = [item for item in items if item.name not in pooled]
        weighted = {_grid(item) for item in items if item.weighted}
        items = [item for item in items if _grid(item) in weighted] or items
        items = _without_downsampling(items, [item for item in usable if item.name not in pooled])
        # A stage ends with a block; a norm or permutation after it is the same map under a less clear name.
        grids = {_grid(item) for item in items if not item.leaf}
        items = [item for item in items if not item.leaf or _grid(item) not in grids]
    chosen = [items[i] for i in choose([_grid(item) for item in items], wanted)]
    blocks = _blocks(items)
    if len(chosen) == 2 < wanted <= len(blocks):
        ends = {(_grid(block), block.shape) for block in blocks}
        if all((_grid(item), item.shape) in ends for item in chosen):  # else the chain is a branch of a stage
            return [blocks[i] for i in evenly(len(blocks), wanted)]
    return chosen


def _blocks(items: list[LayerOutput]) -> list[LayerOutput]:
    """Return the blocks of the most frequent class if they are a chain on two grids: numbered modules of one parent a grid."""
    kinds: dict[tuple[type[nn.Module], int], list[LayerOutput]] = {}
    for item in items:
        if not item.leaf and item.name.rpartition(".")[2].isdecimal():
            kinds.setdefault((item.kind, item.name.count(".")), []).append(item)
    blocks = max(kinds.values(), key=len, default=[])
    parents = {(_grid(item), item.name.rpartition(".")[0]) for item in blocks}
    return blocks if len(parents) == len(_grids(blocks)) == 2 else []


def _pooled(traced: list[LayerOutput]) -> set[str]:
    """Return the names of modules that end with a pooling: no layer with weights inside them has their grid.

    Their output and the map before it count as one level, the map before it.
    """
    grid_of = {item.name: _grid(item) for item in traced}
    found = {item.name for item in traced if not item.leaf and not item.weighted}
    for item in traced:
        if item.weighted:
            found -= {name for name in _ancestors(item.name) if name in found and grid_of[name] == _grid(item)}
    return found


def _without_downsampling(items: list[LayerOutput], traced: list[LayerOutput]) -> list[LayerOutput]:
    """Leave out inner layers of modules that reduce the grid: they are at the start of a stage, not at its end.

    traced: all layers with a layout, from which the grids of such modules are taken.
    """
    grid_of = {item.name: _grid(item) for item in traced}
    order = sorted({_grid(item) for item in traced}, key=lambda grid: -grid[0] * grid[1])
    smaller = dict(pairwise(order))
    largest: dict[str, int] = {}  # cells of the largest map inside a module
    for item in items:
        for name in _ancestors(item.name):
            largest[name] = max(largest.get(name, 0), _grid(item)[0] * _grid(item)[1])

    def in_downsampling(item: LayerOutput) -> bool:
        grid = _grid(item)
        # A module with larger maps inside contains several stages, so its output grid is no evidence.
        stages = [name for name in _ancestors(item.name) if largest[name] == grid[0] * grid[1]]
        return any(grid_of.get(name) == smaller.get(grid, ()) for name in stages)

    stage_grids = {_grid(item) for item in items if not in_downsampling(item)}
    return [item for item in items if not in_downsampling(item) or _grid(item) not in stage_grids]


def _ancestors(name: str) -> list[str]:
    """Return the names of the modules that contain a module, outermost first, without the network itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _grid(item: LayerOutput) -> tuple[int, int]:
    assert item.layout is not None
    return item.layout.grid


def _grids(items: list[LayerOutput]) -> set[tuple[int, int]]:
    return {_grid(item) for item in items}
