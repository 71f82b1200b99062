"""Which submodules of any network hold its feature maps, seen in one pass over the probe images."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from uhkd.features.introspection import first_tensor
from uhkd.features.selection import choose, evenly
from uhkd.features.tensor_layout import Layout, infer, is_ambiguous


@dataclass(frozen=True)
class LayerOutput:
    """One submodule's output at the probe."""

    name: str
    kind: type[nn.Module]
    leaf: bool
    shape: tuple[int, ...]
    layout: Layout | None = None

    @property
    def parent(self) -> str:
        """Name of the module that holds this one."""
        return self.name.rpartition(".")[0]


def trace(module: nn.Module, image: Tensor) -> tuple[list[LayerOutput], Tensor | None, str | None]:
    """Every submodule's output shape in order of completion, the output, and the linear layer that made it."""
    seen: dict[str, LayerOutput] = {}
    vectors: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(part: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                return
            seen.pop(name, None)  # called again: its place in the order is that of the last call
            leaf = next(part.children(), None) is None
            seen[name] = LayerOutput(name, type(part), leaf, tuple(tensor.shape))
            source = first_tensor(inputs)
            if isinstance(part, nn.Linear) and tensor.ndim == 2 and source is not None and source.ndim == 2:
                vectors[name] = tensor

        return note

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                stack.callback(part.register_forward_hook(watch(name)).remove)
        output = first_tensor(module(image))
    classifier = None
    if output is not None:
        made = [name for name, tensor in vectors.items() if tensor.data_ptr() == output.data_ptr()]
        classifier = made[-1] if made and vectors[made[-1]].shape == output.shape else None
    return list(seen.values()), output, classifier


def with_layouts(seen: list[LayerOutput], image: Tensor, prefix_tokens: int | None) -> list[LayerOutput]:
    """The same outputs with their layouts; ambiguous ones follow the unambiguous ones of the same network."""
    batch, size = image.shape[0], (int(image.shape[2]), int(image.shape[3]))
    clear = [item for item in seen if len(item.shape) == 4 and not is_ambiguous(item.shape, size)]
    first = [layout for item in clear if (layout := infer(item.shape, batch, size)) is not None]
    known = {layout.grid: 0 for layout in first if layout.grid != (1, 1)}
    channels_last = sum(layout.kind == "nhwc" for layout in first) * 2 > len(first)
    return [
        LayerOutput(
            item.name,
            item.kind,
            item.leaf,
            item.shape,
            infer(item.shape, batch, size, prefix_tokens=prefix_tokens, known=known, channels_last=channels_last),
        )
        for item in seen
    ]


def pick(usable: list[LayerOutput], wanted: int) -> list[LayerOutput]:
    """Default levels: the last map of each grid of a pyramid, evenly spaced blocks of an isotropic network."""
    plain = (nn.Dropout, nn.Dropout2d, nn.Softmax, nn.Identity)
    items = [item for item in usable if not issubclass(item.kind, plain) and _grid(item) != (1, 1)] or usable
    groups: dict[tuple[Any, ...], list[LayerOutput]] = {}
    for item in items:
        if not item.leaf:
            groups.setdefault((item.parent, item.kind, item.shape), []).append(item)
    repeated = [group for group in groups.values() if len(group) > 1]
    blocks = max(repeated, key=len, default=[])
    # Repeated blocks on one grid only are an isotropic network; a pyramid repeats blocks on several.
    if blocks and len({_grid(group[0]) for group in repeated}) == 1 and (len(blocks) > 2 or len(_grids(items)) == 1):
        return [blocks[i] for i in evenly(len(blocks), wanted)]
    if len(_grids(items)) == 1:
        top = min(item.name.count(".") for item in items)
        items = [item for item in items if item.name.count(".") == top]
    else:
        items = _outside_downsampling(items)
        # What closes a stage is a block; a norm or permutation after it holds the same numbers, less well named.
        grids = {_grid(item) for item in items if not item.leaf}
        items = [item for item in items if not item.leaf or _grid(item) not in grids]
    return [items[i] for i in choose([_grid(item) for item in items], wanted)]


def _outside_downsampling(items: list[LayerOutput]) -> list[LayerOutput]:
    """The items without the inner layers of a stage that leads to the next smaller grid: they open it."""
    grid_of = {item.name: _grid(item) for item in items}
    order = sorted(set(grid_of.values()), key=lambda grid: -grid[0] * grid[1])
    smaller = dict(pairwise(order))
    largest: dict[str, int] = {}  # cells of the largest map inside a module
    for item in items:
        for name in _above(item.name):
            largest[name] = max(largest.get(name, 0), _grid(item)[0] * _grid(item)[1])

    def opens(item: LayerOutput) -> bool:
        grid = _grid(item)
        # A module with larger maps inside holds several stages: its output says nothing about this one.
        holders = [name for name in _above(item.name) if largest[name] == grid[0] * grid[1]]
        return any(grid_of.get(name) == smaller.get(grid, ()) for name in holders)

    closed = {_grid(item) for item in items if not opens(item)}
    return [item for item in items if not opens(item) or _grid(item) not in closed]


def _above(name: str) -> list[str]:
    """Names of the modules around one, outermost first, the network itself left out."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _grid(item: LayerOutput) -> tuple[int, int]:
    assert item.layout is not None
    return item.layout.grid


def _grids(items: list[LayerOutput]) -> set[tuple[int, int]]:
    return {_grid(item) for item in items}
