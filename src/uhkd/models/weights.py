"""Weights in a module: the names of its head, states under other names or of other sizes, and fingerprints."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uhkd.console import listed, pluralize
from uhkd.errors import UhkdError
from uhkd.models.weights_file import CHOOSE_COPY, is_bookkeeping


def num_outputs(module: nn.Module) -> int | None:
    """Return the number of classes of a new module: an attribute in timm and transformers, else that of its last layer."""
    classes = getattr(module, "num_classes", getattr(module, "num_labels", None))
    if isinstance(classes, int):
        return classes
    outputs = [getattr(part, "out_features", getattr(part, "out_channels", None)) for part in module.modules()]
    return next((item for item in reversed(outputs) if isinstance(item, int)), None)


def head_names(module: nn.Module, num_classes: int) -> tuple[str, ...]:
    """Return the names of the classifier layers: timm's classifier, else the last layer with `num_classes` outputs."""
    names = {id(part): name for name, part in module.named_modules() if name}
    classifier = getattr(module, "get_classifier", lambda: None)()
    parts = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
    if heads := tuple(names[id(part)] for part in parts if id(part) in names):
        return heads
    sized = [
        name
        for name, part in module.named_modules()
        if num_classes in (getattr(part, "out_features", None), getattr(part, "out_channels", None))
    ]
    return tuple(sized[-1:])


def head_classes(state: Mapping[str, Tensor], heads: tuple[str, ...]) -> int | None:
    """Return the number of classes of the head in a state dict; None if it contains none of `heads`."""
    for head in heads:
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in state and state[name].ndim:
                return int(state[name].shape[0])
    return None


def fit_state(
    module: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights under the names of a module, position embeddings resampled to its image size, and notes on the changes.

    timm's conversion of original weights is used for its networks. What does not fit is left for `apply_state` to report.
    """
    target = module.state_dict()
    given, notes = _without_prefix(state, target, source)
    heads = tuple(f"{head}." for head in head_names(module, num_classes))

    for head in heads:  # nn.Sequential(nn.Dropout(), nn.Linear(...)) in place of the head
        inside = [name for name in given if name.startswith(head) and name not in target]
        names = {head + name.rpartition(".")[2]: name for name in inside}
        if names and len(names) == len(inside) and names.keys() <= target.keys() - given.keys():
            given |= {name: given.pop(old) for name, old in names.items()}
            notes.append(f"{source}: read {listed(inside)} as {listed([*names])}")

    def problems(candidate: Mapping[str, Tensor]) -> set[str]:
        names = (name for name in target if not (is_bookkeeping(name) or name.startswith(heads)))
        return {name for name in names if name not in candidate or candidate[name].shape != target[name].shape}

    fitted = given
    if problems(given):
        candidates = [_with_resampled_positions(c, target) for c in (_converted_by_timm(module, given), given)]
        fitted = min(candidates, key=lambda candidate: len(problems(candidate)))
    shapes = {name: (_shape(given[name]), _shape(fitted[name])) for name in fitted if name in given}
    if resized := [f"{name} {before} to {after}" for name, (before, after) in shapes.items() if before != after]:
        notes.append(f"{source}: resampled to this size: {listed(resized)}")
    if renamed := fitted.keys() - given.keys():
        notes.append(f"{source}: timm converted the names of {len(renamed)} tensors")
    return fitted, notes


def _without_prefix(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state without the prefix that most of the target's names have in it, such as "model." or "backbone."."""
    counts = Counter[str]()
    for name in state:
        parts = name.split(".")
        counts.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in target)
    most = max(counts.values(), default=0)
    if counts[""] == most or most < len(target) / 2:  # none, or weights of another network
        return dict(state), []
    prefix, *others = (f"{name}." for name, count in counts.items() if count == most)
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    left = [name for name in state if not name.startswith((prefix, *others))]
    for name in left[:]:
        own = name if name in target else name.removeprefix("head.")  # mmpretrain: backbone.layer1..., head.fc
        if own in target and own not in inside:
            inside[own] = state[name]
            left.remove(name)
    note = f"{source}: removed the prefix '{prefix}'"
    note += f"; left out {pluralize(len(left), 'other tensor')} ({listed(left, 3)})" if left else ""
    if others:
        note += f"; the same names are also under {listed([name[:-1] for name in others])} ({CHOOSE_COPY})"
    return inside, [note]


def _converted_by_timm(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in the form of a network of timm, as far as timm can convert them."""
    owner = type(module).__module__
    convert = getattr(sys.modules[owner], "checkpoint_filter_fn", None) if owner.startswith("timm.") else None
    if convert is None:
        return dict(state)
    try:
        return dict(convert(dict(state), module))
    except Exception:  # these conversions assume weights of their own network and can raise anything for others
        return dict(state)


def _with_resampled_positions(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with position embeddings (1, tokens, channels) of square grids resampled as timm does."""
    resampled = dict(state)
    for name in (name for name in state.keys() & target.keys() if "pos" in name and state[name].ndim == 3):
        old, new = state[name], target[name]
        for prefix in range(3) if old.shape[1] != new.shape[1] and old.shape[::2] == new.shape[::2] else ():
            sides = [math.isqrt(max(x.shape[1] - prefix, 0)) for x in (old, new)]
            if min(sides) and [side**2 + prefix for side in sides] == [old.shape[1], new.shape[1]]:
                from timm.layers import resample_abs_pos_embed

                resampled[name] = resample_abs_pos_embed(old, [sides[1]] * 2, num_prefix_tokens=prefix)
                break
    return resampled


def apply_state(module: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, source: str) -> list[str]:
    """Copy weights into a module; a head in `state` that does not fit, or is missing, leaves the module's head as initialised.

    Counters and indices that are missing or beside the weights do not matter.

    Returns:
        Notes for the user. `source` names the weights in notes and errors.

    Raises:
        UhkdError: names or shapes of the body differ (the message lists the first few), or weights are NaN or infinite.
    """
    target = module.state_dict()
    heads = head_names(module, num_classes)
    in_head = {name for name in target.keys() | state.keys() if any(name.startswith(f"{head}.") for head in heads)}
    both = target.keys() & state.keys()
    reshaped = {name for name in both if state[name].shape != target[name].shape}
    missing, unexpected = target.keys() - state.keys(), state.keys() - target.keys()
    counters = {name for name in missing | unexpected | reshaped if is_bookkeeping(name)}
    wrong = sorted(reshaped - in_head - counters)
    differing = {
        "missing": sorted(missing - in_head - counters),
        "unexpected": sorted(unexpected - in_head - counters),
        "of another shape": [f"{n} {_shape(state[n])} for {_shape(target[n])}" for n in wrong],
    }
    problems = [f"{len(names)} {problem} ({listed(names)})" for problem, names in differing.items() if names]
    if problems:
        raise UhkdError(f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(problems)}")
    quantised = {name for name in both if target[name].is_floating_point() and not state[name].is_floating_point()}
    quantised |= {name for name in unexpected if name.endswith("zero_point")}
    if quantised:
        raise UhkdError(
            f"the weights in {source} are quantised ({pluralize(len(quantised), 'tensor')}, first: {min(quantised)}); give those "
            "in full precision"
        )
    # take weight and bias of the head from the same source: both from the file, or both as initialised
    fresh = in_head if in_head & (reshaped | missing) else set()
    module.load_state_dict({name: target[name] if name in fresh | counters else state[name] for name in target})
    check_finite(module, f"in {source}")
    notes = []
    if counters:
        kinds = sorted({name.rpartition(".")[2] for name in counters})
        notes = [f"{source}: ignored {pluralize(len(counters), 'tensor')} without weights ({listed(kinds)})"]
    if fresh:
        classes = head_classes(state, heads)
        head = "no head" if classes is None else f"a head for {classes} classes"
        notes.append(f"{source} has {head}: the body was loaded, the head for {num_classes} classes starts at random")
    return notes


def check_finite(module: nn.Module, source: str) -> None:
    """Check that the weights of a module are finite; `source` says where they are from, such as "in FILE".

    Raises:
        UhkdError: for NaN or infinite parameters, or NaN in buffers (masks have infinite values).
    """
    checks = {
        "NaN": (torch.isnan, module.state_dict()),
        "infinite values": (torch.isinf, dict(module.named_parameters())),
    }
    for kind, (check, tensors) in checks.items():
        if names := [name for name, tensor in tensors.items() if bool(check(tensor).any())]:
            count = pluralize(len(names), "tensor")
            raise UhkdError(
                f"the weights {source} hold {kind} ({count}, first: {names[0]}); use those of an earlier checkpoint"
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any name, shape, dtype or value of the module's state."""
    return fingerprint_of(module.state_dict())


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of a state dict (tensors of any shape, in any order): equal to that of its module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
