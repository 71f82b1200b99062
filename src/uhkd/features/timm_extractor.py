"""Outputs of timm models through their `forward_intermediates` and `forward_head`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from uhkd.features.introspection import first_tensor, outputs_match
from uhkd.features.outputs import NetworkOutput
from uhkd.features.selection import LayerSelection, choose, find_layers


@dataclass(frozen=True)
class TimmExtractor:
    """Reads maps at `indices` of `forward_intermediates`.

    linear_head: whether logits = classifier(embedding). tokens: whether the network computes on tokens or channels-last maps.
    grids: (H,W) of each map, for families that can return tokens ("NLC"): timm's conversion of those to maps would copy them to
    another memory order, forward and backward. Empty: timm returns maps.
    """

    levels: tuple[str, ...]
    indices: tuple[int, ...]
    has_logits: bool
    has_embedding: bool
    linear_head: bool
    tokens: bool
    grids: tuple[tuple[int, int], ...] = ()

    def read(self, module: nn.Module, image: Tensor, fields: frozenset[str]) -> NetworkOutput:
        """Return the requested outputs of a prepared image, from one forward pass of the module."""
        if fields == {"logits"}:
            return NetworkOutput(logits=first_tensor(module(image)))
        timm: Any = module
        form = {"output_fmt": "NLC"} if self.grids else {}
        feature, maps = timm.forward_intermediates(image, indices=list(self.indices) or [0], **form)
        maps = [x.mT.unflatten(2, grid) for x, grid in zip(maps, self.grids, strict=True)] if self.grids else maps
        logits = embedding = None
        if "embedding" in fields:
            embedding = _pooled(timm, feature)
        if "logits" in fields:
            reuse = self.linear_head and embedding is not None
            logits = timm.get_classifier()(embedding) if reuse else first_tensor(timm.forward_head(feature))
        return NetworkOutput(logits=logits, maps=tuple(maps) if "maps" in fields else None, embedding=embedding)


def build_timm_extractor(
    module: nn.Module, image: Tensor, plain: Tensor | None, levels: LayerSelection, *, head: bool = True
) -> TimmExtractor | None:
    """Return an extractor for a module with timm's interface, if its logits equal those of its forward pass; else None.

    Args:
        plain: output of the module's forward pass for the image.

    Raises:
        UhkdError: for a requested layer that is not one of timm's.
    """
    timm: Any = module
    if not all(hasattr(module, name) for name in ("forward_intermediates", "forward_head", "get_classifier")):
        return None
    try:
        feature, maps = timm.forward_intermediates(image)
        output = first_tensor(timm.forward_head(feature))
    except Exception:  # any failure of another library's code; hooks are used instead
        return None
    if plain is None or output is None or not outputs_match(output, plain) or not maps:
        return None
    if not all(isinstance(item, Tensor) and item.ndim == 4 for item in maps):
        return None
    names = _names(timm, len(maps))
    grids = [(int(item.shape[2]), int(item.shape[3])) for item in maps]
    if isinstance(levels, int):
        indices = choose(grids, levels) if levels else ()
    else:
        indices = find_layers(levels, [(name, str(i)) for i, name in enumerate(names)], type(module).__name__)
    isotropic = len(set(grids)) == 1
    has_logits = head and getattr(timm, "num_classes", None) != 0 and plain.ndim == 2
    pooled = _pooled(timm, feature)
    classifier = timm.get_classifier()
    linear = False
    if has_logits and pooled is not None and isinstance(classifier, nn.Linear):
        linear = classifier.in_features == pooled.shape[1] and outputs_match(classifier(pooled), plain)
    return TimmExtractor(
        levels=tuple(str(i) if isotropic else names[i] for i in indices),
        indices=indices,
        has_logits=has_logits,
        has_embedding=pooled is not None,
        linear_head=linear,
        # timm's attribute if there is one; networks with a single grid all compute on tokens
        tokens=isotropic or str(getattr(timm, "output_fmt", "NCHW")).rpartition(".")[2] != "NCHW",
        grids=tuple(grids[i] for i in indices) if _returns_tokens(timm, image, maps) else (),
    )


def _returns_tokens(timm: Any, image: Tensor, maps: Sequence[Tensor]) -> bool:
    """Return whether the family can return the maps as tokens (B,N,C) in row-major order."""
    try:
        tokens = timm.forward_intermediates(image, output_fmt="NLC")[1]
    except Exception:  # most families fail, with different exceptions
        return False
    return len(tokens) == len(maps) and all(
        isinstance(x, Tensor) and x.ndim == 3 and x.shape[1] == m[0, 0].numel() and outputs_match(x.mT, m.flatten(2))
        for x, m in zip(tokens, maps, strict=True)
    )


def _names(timm: Any, count: int) -> Sequence[str]:
    """Return the module names of the intermediates if timm has a distinct name for each, else their indices."""
    info = getattr(timm, "feature_info", None) or []
    names = [str(item["module"]) for item in getattr(info, "info", info)]
    return names if len(names) == len(set(names)) == count else [str(i) for i in range(count)]


def _pooled(timm: Any, feature: Any) -> Tensor | None:
    """Return the vector (B,D) before the classifier, or None if the family has none."""
    try:
        pooled = timm.forward_head(feature, pre_logits=True)
    except (TypeError, AttributeError, NotImplementedError):  # a family without the flag, or with another kind of head
        return None
    if isinstance(pooled, Tensor) and pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        pooled = pooled.flatten(1)
    return pooled if isinstance(pooled, Tensor) and pooled.ndim == 2 else None
