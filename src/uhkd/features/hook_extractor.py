"""Outputs of any module through forward hooks on its named submodules."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from uhkd.console import listed
from uhkd.errors import UhkdError
from uhkd.features.discovery import LayerOutput, default_layers, trace, with_layouts
from uhkd.features.introspection import first_tensor, output_hooks
from uhkd.features.outputs import NetworkOutput
from uhkd.features.selection import LayerSelection, find_layers
from uhkd.features.tensor_layout import TensorLayout


@dataclass(frozen=True)
class HookExtractor:
    """Reads the outputs of the layers `levels`, and the input of the last linear layer, `classifier`, as embedding.

    Without `classifier`, the embedding is the output of the network (`output_is_embedding`: a network without head) or does
    not exist. copied: layers with outputs that the network later overwrites in place.
    """

    levels: tuple[str, ...]
    layouts: tuple[TensorLayout, ...]
    classifier: str | None
    has_logits: bool
    output_is_embedding: bool
    copied: frozenset[str] = frozenset()

    @property
    def has_embedding(self) -> bool:
        """Return whether there is one vector per image before the classifier."""
        return self.classifier is not None or self.output_is_embedding

    @property
    def tokens(self) -> bool:
        """Return whether the network computes on tokens or channels-last maps."""
        return any(layout.kind != "nchw" for layout in self.layouts)

    def read(self, module: nn.Module, image: Tensor, fields: frozenset[str]) -> NetworkOutput:
        """Return the requested outputs of a prepared image, from one forward pass of the module."""
        outputs: dict[str, Tensor] = {}
        vectors: list[Tensor] = []

        def record(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[name] = output.clone() if name in self.copied else output

        def record_input(_module: nn.Module, inputs: Any) -> None:
            vector = first_tensor(inputs)
            if vector is not None:
                vectors.append(vector)

        parts = dict(module.named_modules())
        with ExitStack() as stack:
            if "maps" in fields:
                stack.enter_context(output_hooks({name: parts[name] for name in self.levels}, record))
            if "embedding" in fields and self.classifier is not None:
                stack.callback(parts[self.classifier].register_forward_pre_hook(record_input).remove)
            output = first_tensor(module(image))
        maps = embedding = None
        if "maps" in fields:
            if skipped := [name for name in self.levels if name not in outputs]:
                raise UhkdError(
                    f"layer {listed(skipped)} of {type(module).__name__} did not run in this forward pass, so that it has no "
                    "feature map: name other layers (levels)"
                )
            maps = tuple(layout.to_map(outputs[name]) for name, layout in zip(self.levels, self.layouts, strict=True))
        if "embedding" in fields:
            embedding = vectors[-1] if vectors else output
        return NetworkOutput(logits=output if "logits" in fields else None, maps=maps, embedding=embedding)


def build_hook_extractor(
    module: nn.Module, image: Tensor, levels: LayerSelection, *, head: bool = True
) -> HookExtractor:
    """Return an extractor for any module, with layouts from the shapes of one forward pass of the probe image.

    Raises:
        UhkdError: for named layers, if none gives a map on a grid or has this name; the message lists candidates.
    """
    traced, output, classifier = trace(module, image)
    traced = with_layouts(traced, image)
    usable = [item for item in traced if item.layout is not None]
    if levels == 0 or (not usable and isinstance(levels, int)):
        chosen: list[LayerOutput] = []
    elif not usable:
        listing = ", ".join(f"{item.name} {item.shape[1:]}" for item in traced[-6:]) or "none"
        raise UhkdError(
            f"{type(module).__name__} has no usable layer: no layer gives a (B,C,H,W) map or tokens on a grid; "
            f"its last layers give {listing}. Leave out the names of layers, and choose a method that reads logits"
        )
    elif isinstance(levels, int):
        chosen = default_layers(usable, levels)
    else:
        named = [item.name for item in default_layers(usable, len(usable))]
        requested = [named[i] if isinstance(i, int) and -len(named) <= i < len(named) else i for i in levels]
        names = [(item.name,) for item in usable]
        chosen = [usable[i] for i in find_layers(requested, names, type(module).__name__)]
    vector = output is not None and output.ndim == 2
    extractor = HookExtractor(
        levels=tuple(item.name for item in chosen),
        layouts=tuple(item.layout for item in chosen if item.layout is not None),
        classifier=classifier if head else None,
        has_logits=vector and head,
        output_is_embedding=vector and not head,
    )
    return _copy_overwritten(extractor, module, image)


def _copy_overwritten(extractor: HookExtractor, module: nn.Module, image: Tensor) -> HookExtractor:
    """Return the same extractor, but copying outputs that the rest of the network overwrites in place."""
    outputs: dict[str, tuple[Tensor, int]] = {}

    def record(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = (output, output._version)

    parts = dict(module.named_modules())
    with output_hooks({name: parts[name] for name in extractor.levels}, record):
        module(image)
    copied = frozenset(name for name, (output, version) in outputs.items() if output._version != version)
    return replace(extractor, copied=copied)
