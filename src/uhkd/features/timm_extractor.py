"""Signals of timm models through their own `forward_intermediates` and `forward_head`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from uhkd.features.introspection import first_tensor, outputs_match
from uhkd.features.outputs import NetworkOutput
from uhkd.features.selection import Levels, choose, find


@dataclass(frozen=True)
class TimmExtractor:
    """Reads maps at `indices` of `forward_intermediates`; `linear_head`: logits = classifier(embedding).

    tokens: the network holds its maps as tokens or channels last. grids: what to lay tokens out on, for families that give
    them as they are ("NLC"): their own maps are copies in another memory order, forward and backward. Empty: timm turns them.
    """

    levels: tuple[str, ...]
    indices: tuple[int, ...]
    has_logits: bool
    has_embedding: bool
    linear_head: bool
    tokens: bool
    grids: tuple[tuple[int, int], ...] = ()

    def read(self, module: nn.Module, image: Tensor, want: frozenset[str]) -> NetworkOutput:
        """Signals of a prepared image in one pass of the module."""
        if want == {"logits"}:
            return NetworkOutput(logits=first_tensor(module(image)))
        timm: Any = module
        form = {"output_fmt": "NLC"} if self.grids else {}
        feature, maps = timm.forward_intermediates(image, indices=list(self.indices) or [0], **form)
        maps = [x.mT.unflatten(2, grid) for x, grid in zip(maps, self.grids, strict=True)] if self.grids else maps
        logits = embedding = None
        if "embedding" in want:
            embedding = _pooled(timm, feature)
        if "logits" in want:
            reuse = self.linear_head and embedding is not None
            logits = timm.get_classifier()(embedding) if reuse else first_tensor(timm.forward_head(feature))
        return NetworkOutput(logits=logits, maps=tuple(maps) if "maps" in want else None, embedding=embedding)


def timm_reader(
    module: nn.Module, image: Tensor, plain: Tensor | None, levels: Levels, *, head: bool = True
) -> TimmExtractor | None:
    """A reader for a module that speaks timm's interface and agrees with its plain forward; None if it does not.

    Raises:
        UhkdError: a level asked for by name or number is not one of timm's own taps.
    """
    timm: Any = module
    if not all(hasattr(module, name) for name in ("forward_intermediates", "forward_head", "get_classifier")):
        return None
    try:
        feature, maps = timm.forward_intermediates(image)
        again = first_tensor(timm.forward_head(feature))
    except Exception:  # a foreign forward may fail in any way; the hooks are the answer to all of them
        return None
    if plain is None or again is None or not outputs_match(again, plain) or not maps:
        return None
    if not all(isinstance(item, Tensor) and item.ndim == 4 for item in maps):
        return None
    names = _names(timm, len(maps))
    grids = [(int(item.shape[2]), int(item.shape[3])) for item in maps]
    if isinstance(levels, int):
        indices = choose(grids, levels) if levels else ()
    else:
        indices = find(levels, [(name, str(i)) for i, name in enumerate(names)], type(module).__name__)
    picked = tuple(grids[i] for i in indices)
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
        # timm's own word where there is one; networks of one grid all hold tokens
        tokens=isotropic or str(getattr(timm, "output_fmt", "NCHW")).rpartition(".")[2] != "NCHW",
        grids=picked if _gives_tokens(timm, image, maps) else (),
    )


def _gives_tokens(timm: Any, image: Tensor, maps: Sequence[Tensor]) -> bool:
    """Whether the family gives the same numbers as tokens (B,N,C) in the order of the grid's rows."""
    try:
        found = timm.forward_intermediates(image, output_fmt="NLC")[1]
    except Exception:  # most families refuse, each in its way
        return False
    return len(found) == len(maps) and all(
        isinstance(x, Tensor) and x.ndim == 3 and x.shape[1] == m[0, 0].numel() and outputs_match(x.mT, m.flatten(2))
        for x, m in zip(found, maps, strict=True)
    )


def _names(timm: Any, count: int) -> Sequence[str]:
    """Module names of the intermediates where timm tells them apart, else their numbers."""
    info = getattr(timm, "feature_info", None) or []
    names = [str(item["module"]) for item in getattr(info, "info", info)]
    return names if len(names) == len(set(names)) == count else [str(i) for i in range(count)]


def _pooled(timm: Any, feature: Any) -> Tensor | None:
    """The vector (B,D) before the classifier, or None where the family has no such thing."""
    try:
        pooled = timm.forward_head(feature, pre_logits=True)
    except (
        TypeError,
        AttributeError,
        NotImplementedError,
    ):  # families without the flag, or with a head of another kind
        return None
    if isinstance(pooled, Tensor) and pooled.ndim == 4 and pooled.shape[2:] == (1, 1):
        pooled = pooled.flatten(1)
    return pooled if isinstance(pooled, Tensor) and pooled.ndim == 2 else None
