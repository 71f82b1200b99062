"""Weights files: read without ever executing what is in them, and fitted to a module and its head."""

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

from uhkd.errors import UhkdError

_CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "net", "student")
_REPLACE_IT = "write, copy or download it again"
_PREFIXES = ("module.", "_orig_mod.")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of any shape in a safetensors or torch file, on the CPU; code in the file is refused, never executed.

    A torch file may hold them directly or under "state_dict" or "model"; "module." in front of every name is dropped.

    Raises:
        UhkdError: no such file, no named tensors in it, damaged, or holding more than tensors and plain data.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UhkdError(f"there is no weights file '{file}'")
    if file.suffix == ".safetensors":
        content: Any = read_safetensors(file)
    else:
        content = _load_torch(file)
    return _strip(_unwrap(content, file))


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors, of any shape, of a safetensors file by the names that they have there, on the CPU.

    Raises:
        UhkdError: when it is damaged, or cannot be read.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UhkdError(f"'{file}' is no whole safetensors file ({error}); {_REPLACE_IT}") from error


def _load_torch(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # whatever protocol, it is read or refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UhkdError(
            f"'{file}' was refused: it holds more than tensors and plain data, and reading it could run code; "
            "save model.state_dict() with safetensors"
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UhkdError(f"'{file}' is no whole torch weights file ({reason}); {_REPLACE_IT}") from error


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    for _ in range(3):  # a state dict may lie in a wrapper within a wrapper
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    found = (
        f"a mapping of {', '.join(map(str, content))}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise UhkdError(f"'{file}' holds no named tensors: expected model.state_dict(), found {found[:200]}")


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(2):
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def head_names(module: nn.Module, num_classes: int) -> tuple[str, ...]:
    """Names of the layers giving the class scores: timm's classifier, else the last layer of `num_classes` outputs."""
    names = {id(part): name for name, part in module.named_modules() if name}
    classifier = getattr(module, "get_classifier", lambda: None)()
    parts = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else [classifier]
    found = tuple(names[id(part)] for part in parts if id(part) in names)
    if found:
        return found
    sized = [
        name
        for name, part in module.named_modules()
        if num_classes in (getattr(part, "out_features", None), getattr(part, "out_channels", None))
    ]
    return tuple(sized[-1:])


def head_classes(state: Mapping[str, Tensor], heads: tuple[str, ...]) -> int | None:
    """Number of classes that the head in a file has, None if the file has no head of these names."""
    for head in heads:
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in state and state[name].ndim:
                return int(state[name].shape[0])
    return None


def apply_state(module: nn.Module, state: Mapping[str, Tensor], *, num_classes: int, source: str) -> list[str]:
    """Copy weights into a module; a head for another number of classes, or none, leaves the fresh head in place.

    Returns what has to be announced.

    Raises:
        UhkdError: names or shapes of the body differ; the first few are listed.
    """
    own = module.state_dict()
    heads = head_names(module, num_classes)

    def in_head(name: str) -> bool:
        return any(name.startswith(f"{head}.") for head in heads)

    other = {name for name in own if name in state and state[name].shape != own[name].shape}
    missing = own.keys() - state.keys()
    unexpected = {name for name in state.keys() - own.keys() if not in_head(name)}
    fresh = {name for name in other | missing if in_head(name)}
    problems = [
        *_list("missing", sorted(missing - fresh)),
        *_list("unexpected", sorted(unexpected)),
        *_list("of another shape", [f"{n} {_shape(state[n])} for {_shape(own[n])}" for n in sorted(other - fresh)]),
    ]
    if problems:
        raise UhkdError(f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(problems)}")
    if fresh:
        # Half a head would be worse than none: weight and bias come from the same place.
        fresh |= {name for name in own if in_head(name)}
    module.load_state_dict({name: own[name] if name in fresh else state[name] for name in own})
    if not fresh:
        return []
    found = head_classes(state, heads)
    was = "no head" if found is None else f"a head for {found} classes"
    return [f"{source} has {was}: the body was loaded, the head for {num_classes} classes starts at random"]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _list(what: str, names: list[str], shown: int = 3) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{len(names)} {what} ({', '.join(names[:shown])}{more})"]


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits that change with any name, shape, type or number of a module's state."""
    return fingerprint_of(module.state_dict())


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """As `fingerprint`, of tensors of any shape by name in any order: a file of weights has that of its module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
