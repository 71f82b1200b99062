"""Weights files: read without executing code, and loaded into a module whose head may differ."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from uhkd.console import listed
from uhkd.errors import UhkdError

_CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "net", "student")
_PREFIXES = ("module.", "_orig_mod.")
_REPLACE_FILE = "write, copy or download it again"


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors, of any shape, of a safetensors or torch file onto the CPU, without executing code in it.

    A torch file may contain them directly or under a key such as "state_dict" or "model". The prefix "module." is removed where
    all names have it.

    Raises:
        UhkdError: no such file, no named tensors, a damaged file, or objects other than tensors and plain data.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UhkdError(f"there is no weights file '{file}'")
    content = read_safetensors(file) if file.suffix == ".safetensors" else _load_torch(file)
    return _strip_prefixes(_unwrap(content, file))


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors, of any shape, of a safetensors file onto the CPU, under their names in the file.

    Raises:
        UhkdError: the file is damaged or cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UhkdError(f"'{file}' is no complete safetensors file ({error}); {_REPLACE_FILE}") from error


def _load_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # any pickle protocol: the file is either read or rejected
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UhkdError(
            f"'{file}' was refused: it contains more than tensors and plain data, and reading it could run code; "
            "save model.state_dict() with safetensors"
        ) from error
    except Exception as error:  # a damaged file can raise any exception
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UhkdError(f"'{file}' is no complete torch weights file ({reason}); {_REPLACE_FILE}") from error


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    for _ in range(3):  # a state dict may be nested, such as under "model", then "state_dict"
        inner = content if isinstance(content, Mapping) else {}
        content = next((inner[key] for key in _CONTAINERS if isinstance(inner.get(key), Mapping)), content)
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
            return tensors
        found = f"a mapping of {', '.join(map(str, content))}"
    raise UhkdError(f"'{file}' contains no named tensors: expected model.state_dict(), found {found[:200]}")


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


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


def apply_state(module: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, source: str) -> list[str]:
    """Copy weights into a module; a head in `state` that does not fit, or is missing, leaves the module's head as initialised.

    Returns:
        Notes for the user. `source` names the weights in notes and errors.

    Raises:
        UhkdError: names or shapes of the body differ; the message lists the first few.
    """
    target = module.state_dict()
    heads = head_names(module, num_classes)
    in_head = {name for name in target.keys() | state.keys() if any(name.startswith(f"{head}.") for head in heads)}
    reshaped = {name for name in target.keys() & state.keys() if state[name].shape != target[name].shape}
    missing = target.keys() - state.keys()
    differing = {
        "missing": sorted(missing - in_head),
        "unexpected": sorted(state.keys() - target.keys() - in_head),
        "of another shape": [f"{n} {_shape(state[n])} for {_shape(target[n])}" for n in sorted(reshaped - in_head)],
    }
    problems = [f"{len(names)} {problem} ({listed(names)})" for problem, names in differing.items() if names]
    if problems:
        raise UhkdError(f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(problems)}")
    # take weight and bias of the head from the same source: both from the file, or both as initialised
    fresh = in_head if in_head & (reshaped | missing) else set()
    module.load_state_dict({name: target[name] if name in fresh else state[name] for name in target})
    if not fresh:
        return []
    classes = head_classes(state, heads)
    head = "no head" if classes is None else f"a head for {classes} classes"
    return [f"{source} has {head}: the body was loaded, the head for {num_classes} classes starts at random"]


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
