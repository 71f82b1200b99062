"""Signals of any module through forward hooks on its named submodules."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features.discovery import LayerOutput, pick, trace, with_layouts
from uhkd.features.introspection import first_tensor
from uhkd.features.outputs import NetworkOutput
from uhkd.features.selection import Levels, find
from uhkd.features.tensor_layout import Layout


@dataclass(frozen=True)
class HookExtractor:
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

    @property
    def tokens(self) -> bool:
        """Whether the network holds its maps as tokens or channels last."""
        return any(layout.kind != "nchw" for layout in self.layouts)

    def read(self, module: nn.Module, image: Tensor, want: frozenset[str]) -> NetworkOutput:
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
        return NetworkOutput(logits=output if "logits" in want else None, maps=maps, embedding=embedding)

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


def hook_reader(
    module: nn.Module, image: Tensor, levels: Levels, *, prefix_tokens: int | None, head: bool = True
) -> HookExtractor:
    """A reader for any module, its layouts decided from the shapes seen in one pass over the probe image.

    Raises:
        UhkdError: no layer gives a map on a grid, or an unknown tap; the message lists the candidates.
    """
    seen, output, classifier = trace(module, image)
    seen = with_layouts(seen, image, prefix_tokens)
    usable = [item for item in seen if item.layout is not None]
    if levels == 0:
        picked: list[LayerOutput] = []
    elif not usable:
        listing = ", ".join(f"{item.name} {item.shape[1:]}" for item in seen[-6:]) or "none"
        raise UhkdError(
            f"{type(module).__name__} has no usable tap: no layer gives a (B,C,H,W) map or tokens on a grid; "
            f"its last layers give {listing}. Name layers that do, or ask for levels=0 to use logits alone"
        )
    elif isinstance(levels, int):
        picked = pick(usable, levels)
    else:
        defaults = pick(usable, len(usable))
        requested = [
            defaults[i].name if isinstance(i, int) and -len(defaults) <= i < len(defaults) else i for i in levels
        ]
        picked = [usable[i] for i in find(requested, [(item.name,) for item in usable], type(module).__name__)]
    vector = output is not None and output.ndim == 2
    reader = HookExtractor(
        levels=tuple(item.name for item in picked),
        layouts=tuple(item.layout for item in picked if item.layout is not None),
        classifier=classifier if head else None,
        has_logits=vector and head,
        output_is_embedding=vector and not head,
    )
    return _protect(reader, module, image)


def _protect(reader: HookExtractor, module: nn.Module, image: Tensor) -> HookExtractor:
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
    return HookExtractor(
        reader.levels, reader.layouts, reader.classifier, reader.has_logits, reader.output_is_embedding, copied
    )
