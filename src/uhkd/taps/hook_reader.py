"""Signals of any module through forward hooks on its named submodules."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from uhkd.taps.layout import Layout, infer, is_ambiguous
from uhkd.taps.levels import Levels, choose, evenly, find
from uhkd.taps.quiet import first_tensor
from uhkd.taps.signals import Signals


@dataclass(frozen=True)
class HookReader:
    """Reads the output of the named `levels` and the input of the last linear layer, `classifier`.

    `copied` are levels whose output the network overwrites in place later on; without `classifier` the embedding is
    `output` itself (a network without a head) or does not exist.
    """

    levels: tuple[str, ...]
    layouts: tuple[Layout, ...]
    classifier: str | None
    has_logits: bool
    output_is_embedding: bool
    copied: frozenset[str] = frozenset()

    @property
    def has_embedding(self) -> bool:
        """Whether there is one vector per image before the classifier."""
        return self.classifier is not None or self.output_is_embedding

    def read(self, module: nn.Module, image: Tensor, want: frozenset[str]) -> Signals:
        """Signals of a prepared image in one pass of the module."""
        caught: dict[str, Tensor] = {}
        parts = dict(module.named_modules())
        with ExitStack() as stack:
            for name in self.levels if "maps" in want else ():
                stack.callback(parts[name].register_forward_hook(self._keep_output(caught, name)).remove)
            if "embedding" in want and self.classifier is not None:
                stack.callback(parts[self.classifier].register_forward_pre_hook(_keep_input(caught)).remove)
            output = first_tensor(module(image))
        maps = None
        if "maps" in want:
            maps = tuple(layout.to_map(caught[name]) for name, layout in zip(self.levels, self.layouts, strict=True))
        embedding = caught.get("", output) if "embedding" in want else None
        return Signals(logits=output if "logits" in want else None, maps=maps, embedding=embedding)

    def _keep_output(self, caught: dict[str, Tensor], name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                caught[name] = tensor.clone() if name in self.copied else tensor

        return keep


def _keep_input(caught: dict[str, Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensor = first_tensor(inputs)
        if tensor is not None:
            caught[""] = tensor

    return keep


@dataclass(frozen=True)
class Seen:
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


def hook_reader(
    module: nn.Module, image: Tensor, levels: Levels, *, prefix_tokens: int | None, head: bool = True
) -> HookReader:
    """A reader for any module, its layouts decided from the shapes seen in one pass over the probe image.

    Raises:
        ValueError: no layer gives a map on a grid, or an unknown tap; the message lists the candidates.
    """
    seen, output, classifier = _trace(module, image)
    seen = _with_layouts(seen, image, prefix_tokens)
    usable = [item for item in seen if item.layout is not None]
    if levels == 0:
        picked: list[Seen] = []
    elif not usable:
        listing = ", ".join(f"{item.name} {item.shape[1:]}" for item in seen[-6:]) or "none"
        raise ValueError(
            f"{type(module).__name__} has no usable tap: no layer gives a (B,C,H,W) map or tokens on a grid; "
            f"its last layers give {listing}. Name layers that do, or ask for levels=0 to use logits alone"
        )
    elif isinstance(levels, int):
        picked = _pick(usable, levels)
    else:
        defaults = _pick(usable, len(usable))
        asked = [defaults[i].name if isinstance(i, int) and -len(defaults) <= i < len(defaults) else i for i in levels]
        picked = [usable[i] for i in find(asked, [(item.name,) for item in usable], type(module).__name__)]
    vector = output is not None and output.ndim == 2
    reader = HookReader(
        levels=tuple(item.name for item in picked),
        layouts=tuple(item.layout for item in picked if item.layout is not None),
        classifier=classifier if head else None,
        has_logits=vector and head,
        output_is_embedding=vector and not head,
    )
    return _protect(reader, module, image)


def _trace(module: nn.Module, image: Tensor) -> tuple[list[Seen], Tensor | None, str | None]:
    """Every submodule's output shape in order of completion, the output, and the linear layer that made it."""
    seen: dict[str, Seen] = {}
    vectors: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(part: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None:
                return
            seen.pop(name, None)  # called again: its place in the order is that of the last call
            leaf = next(part.children(), None) is None
            seen[name] = Seen(name, type(part), leaf, tuple(tensor.shape))
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


def _with_layouts(seen: list[Seen], image: Tensor, prefix_tokens: int | None) -> list[Seen]:
    """The same outputs with their layouts; ambiguous ones follow the unambiguous ones of the same network."""
    batch, size = image.shape[0], (int(image.shape[2]), int(image.shape[3]))
    clear = [item for item in seen if len(item.shape) == 4 and not is_ambiguous(item.shape, size)]
    first = [layout for item in clear if (layout := infer(item.shape, batch, size)) is not None]
    known = {layout.grid: 0 for layout in first if layout.grid != (1, 1)}
    channels_last = sum(layout.kind == "nhwc" for layout in first) * 2 > len(first)
    return [
        Seen(
            item.name,
            item.kind,
            item.leaf,
            item.shape,
            infer(item.shape, batch, size, prefix_tokens=prefix_tokens, known=known, channels_last=channels_last),
        )
        for item in seen
    ]


def _pick(usable: list[Seen], wanted: int) -> list[Seen]:
    """Default levels: the last map of each grid of a pyramid, evenly spaced blocks of an isotropic network."""
    plain = (nn.Dropout, nn.Dropout2d, nn.Softmax, nn.Identity)
    items = [item for item in usable if not issubclass(item.kind, plain) and _grid(item) != (1, 1)] or usable
    groups: dict[tuple[Any, ...], list[Seen]] = {}
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
        whole = {_grid(item) for item in items if not item.leaf}
        items = [item for item in items if not item.leaf or _grid(item) not in whole]
    return [items[i] for i in choose([_grid(item) for item in items], wanted)]


def _outside_downsampling(items: list[Seen]) -> list[Seen]:
    """The items without the inner layers of a stage that leads to the next smaller grid: they open it, not close one."""
    grid_of = {item.name: _grid(item) for item in items}
    order = sorted(set(grid_of.values()), key=lambda grid: -grid[0] * grid[1])
    smaller = dict(zip(order, order[1:], strict=False))
    largest: dict[str, int] = {}  # cells of the largest map inside a module
    for item in items:
        for name in _above(item.name):
            largest[name] = max(largest.get(name, 0), _grid(item)[0] * _grid(item)[1])

    def opens(item: Seen) -> bool:
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


def _grid(item: Seen) -> tuple[int, int]:
    assert item.layout is not None
    return item.layout.grid


def _grids(items: list[Seen]) -> set[tuple[int, int]]:
    return {_grid(item) for item in items}


def _protect(reader: HookReader, module: nn.Module, image: Tensor) -> HookReader:
    """The same reader, copying the levels that the rest of the network overwrites in place."""
    caught: dict[str, tuple[Tensor, int]] = {}
    parts = dict(module.named_modules())

    def watch(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                caught[name] = (tensor, tensor._version)

        return note

    with ExitStack() as stack:
        for name in reader.levels:
            stack.callback(parts[name].register_forward_hook(watch(name)).remove)
        module(image)
    copied = frozenset(name for name, (tensor, version) in caught.items() if tensor._version != version)
    return HookReader(
        reader.levels, reader.layouts, reader.classifier, reader.has_logits, reader.output_is_embedding, copied
    )
