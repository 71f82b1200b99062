"""Weights files: read without executing code, and the copies of the weights that a file holds."""

import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from uhkd.console import listed, log_info
from uhkd.errors import UhkdError
from uhkd.recipe import path_hint
from uhkd.runs.checksums import SUMS, differs

# where training tools store the weights themselves; an average or a second network is loaded on request only
_COPIES = ("state_dict", "model_state_dict", "model", "net", "network", "student")
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BOOKKEEPING = {"total_ops", "total_params", "num_batches_tracked", "n_averaged", "position_ids"}
_BOOKKEEPING |= {"relative_position_index", "relative_coords_table", "attn_mask"}  # computed from the image size
CHOOSE_COPY = "--weights-key, in distill --student-weights-key or --teacher-weights-key"
_REPLACE_FILE = "write, copy or download it again"
_PAGE = "is a web page (HTML): the download got a page instead of the file; download it again"
_PACKED = "is a compressed archive; unpack it and give the weights file in it"
_OTHER_KINDS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run git lfs pull, or download the file",
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"{": "is JSON text, such as a configuration or the index of weights in parts; give a file that holds the weights",
    b"\x89hdf": "is an HDF5 file, as Keras writes it; convert it to a PyTorch state dict first",
    b"\x1f\x8b": _PACKED,
}
_ONNX = "is an ONNX file, a graph for inference; give the .pth or .safetensors file from which it was exported"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin
_LOAD = "t.load(sys.argv[1], map_location='cpu', weights_only=False)"
_LOAD_PICKLE = "__import__('pickle').load(open(sys.argv[1], 'rb'), encoding='latin1')"
_KEEP_TENSORS = (
    "f = lambda x: f(x.state_dict()) if isinstance(x, t.nn.Module) else {str(k): y for k, v in x.items() if (y := f(v)) is "
    "not None} if isinstance(x, dict) else x if isinstance(x, t.Tensor) else t.tensor(x) if type(x).__name__ == 'ndarray' "
    "and x.dtype.kind in 'fiu' else None; t.save(f({load}), sys.argv[2])"
)


def load_state(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the named tensors, of any shape, of a safetensors or torch file onto the CPU, without executing code in it.

    A torch file may contain them directly or under a key such as "state_dict" or "model"; it is logged which of several copies
    was read. The prefix "module." is removed where all names have it.

    Args:
        path: of the file.
        key: of the copy to read, such as "model_ema"; with dots for nested ones ("callbacks.EMA.weights") or for names with a
            common prefix ("state_dict.model").

    Raises:
        UhkdError: no such file or key, no named tensors, a damaged file, or objects other than tensors and plain data.
    """
    state, notes = read_copy(path, key)
    for note in notes:
        log_info(note)
    return state


def read_copy(path: str | Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors as `load_state` does, and notes about other copies in the file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UhkdError(f"there is no weights file '{file}'{path_hint(path, Path.exists)}")
    content = _read(file)
    copies = _copies(content)
    place, state = _default_copy(content, copies)
    if key is not None:
        inner = _descend(content, key) or _descend(state, key) or _descend(_strip_wrappers(state), key)
        state = _default_copy(inner, _copies(inner))[1]
        if not state:
            found = listed([name for name in copies if name]) or "one copy, without a key"
            raise UhkdError(f"'{file}' has no weights under '{key}': found {found} ({CHOOSE_COPY})")
    elif not state:
        raise UhkdError(f"'{file}' {_why_nothing(content, copies)}")
    others = [name for name in copies if name not in ("", place)]
    notes = []
    if key is None and place and (others or place.rpartition(".")[2] not in _COPIES):
        found = f"others there: {listed(others)} ({CHOOSE_COPY})" if others else "there are no others"
        notes = [f"'{file}': loaded the weights under '{place}'; {found}"]
    return _strip_wrappers(state), notes


def _default_copy(content: Any, copies: Mapping[str, dict[str, Tensor]]) -> tuple[str, dict[str, Tensor]]:
    """Return place and tensors of the weights themselves, or of the only copy; no tensors if it is not clear which."""
    place, inner = "", content
    for _ in range(3):  # a state dict may be nested, such as under "model", then "state_dict"
        inside = inner if isinstance(inner, Mapping) else {}
        name = next((name for name in _COPIES if isinstance(inside.get(name), Mapping)), None)
        place, inner = (place, inner) if name is None else (f"{place}.{name}".lstrip("."), inside[name])
    nested = {name: copy for name, copy in copies.items() if name}
    state = _tensors(inner)
    if len(nested) == 1 and not any(tensor.ndim for tensor in state.values()):
        return next(iter(nested.items()))
    return place, state


def is_bookkeeping(name: str) -> bool:
    """Return whether a tensor of this name is no weight: a counter, or an index that is computed from the sizes."""
    return name.rpartition(".")[2] in _BOOKKEEPING


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors, of any shape, of a safetensors file onto the CPU, under their names in the file.

    Raises:
        UhkdError: the file is damaged, cannot be read, or differs from its checksum in a SHA256SUMS file beside it.
    """
    try:
        if differs(file):
            raise UhkdError(
                f"'{file}' differs from its checksum in {SUMS}, so it is damaged or was changed; {_REPLACE_FILE}, or delete its "
                "line there if the change was meant"
            )
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UhkdError(f"'{file}' is no complete safetensors file ({error}); {_REPLACE_FILE}") from error


def _read(file: Path) -> Any:
    """Return the content of a weights file, whatever its ending.

    Raises:
        UhkdError: it is a file of another kind, damaged, or would run code.
    """
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise UhkdError(f"'{file}' is empty; {_REPLACE_FILE}")
    if head[8:9] == b"{":  # after the length of the header
        return read_safetensors(file)
    kind = next((text for start, text in _OTHER_KINDS.items() if head.lstrip().lower().startswith(start)), None)
    if file.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):  # ir_version, then producer_name
        kind = _ONNX
    elif zipfile.is_zipfile(file):
        kind = _kind_of_archive(file)
    if kind:
        raise UhkdError(f"'{file}' {kind}")
    if file.suffix == ".safetensors" and head[:1] not in (b"P", b"\x80"):
        return read_safetensors(file)
    pickled = head[:1] == b"\x80" and not head.startswith(_LEGACY_TORCH)
    try:
        with warnings.catch_warnings():
            # any pickle protocol: the file is either read or rejected
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception
        names = re.findall(r"GLOBAL (\S+)", str(error))  # a class or function that is no plain data
        if not names and not pickled:
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise UhkdError(f"'{file}' is no complete torch weights file ({reason}); {_REPLACE_FILE}") from error
        code = _KEEP_TENSORS.replace("{load}", _LOAD_PICKLE if pickled else _LOAD)
        raise UhkdError(
            f"'{file}' was refused: it contains more than tensors and plain data ({listed(names) or 'a pickle'}), and reading "
            f"it could run code; if you trust the file, save its tensors alone: {_command(file, code)}"
        ) from error


def _kind_of_archive(file: Path) -> str | None:
    """Return what a zip archive is and what to do, if torch.save did not write it."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        code = "t.save(t.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])"
        return f"is a TorchScript file; if you trust it, save its weights alone: {_command(file, code)}"
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if any(name.endswith("archive_format") for name in names):
        return "is a program of torch.export; give the .pth or .safetensors file from which it was exported"
    return f"is a zip archive of {listed(names, 3)}; unpack it and give the weights file in it"


def _command(file: Path, code: str) -> str:
    """Return a command line that writes the tensors of a file into one beside it."""
    output = str(file.with_name(f"{file.stem}-tensors.pth"))
    return f'python -c "import sys, torch as t; {code}" {shlex.quote(str(file))} {shlex.quote(output)}'


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def _copies(content: Any, key: str = "", depth: int = 3) -> dict[str, dict[str, Tensor]]:
    """Return all mappings of names to weights, by dotted key; the states of optimizers are left out."""
    if not isinstance(content, Mapping) or "param_groups" in content:
        return {}
    tensors = _tensors(content)
    copies = {key: tensors} if any(tensor.ndim for tensor in tensors.values()) else {}
    for name, inner in content.items() if depth else ():
        if not str(name).startswith("optim"):
            copies |= _copies(inner, f"{key}.{name}".lstrip("."), depth - 1)
    return copies


def _descend(content: Any, key: str) -> Any:
    """Return the mapping at a dotted key, or the tensors whose names begin with it; None if there are none."""
    if not key or not isinstance(content, Mapping):
        return None if key else content
    parts = key.split(".")
    for count in range(len(parts), 0, -1):  # names may contain dots
        if isinstance(inner := content.get(".".join(parts[:count])), Mapping):
            return _descend(inner, ".".join(parts[count:]))
    start = f"{key}."
    return {n.removeprefix(start): tensor for n, tensor in _tensors(content).items() if n.startswith(start)} or None


def _why_nothing(content: Any, copies: Mapping[str, Any]) -> str:
    """Return why no weights of a file can be loaded."""
    if copies:
        return f"holds several sets of weights ({listed([*copies])}); choose one with {CHOOSE_COPY}"
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found = f"a mapping of {', '.join(map(str, content)) or 'nothing'}"[:200]
        if "param_groups" in content or any(str(name).startswith("optim") for name in content):
            found += ", the state of an optimizer"
    return f"contains no named tensors: expected model.state_dict(), found {found}"


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefixes of DDP, AveragedModel, torch.compile and FSDP."""
    state = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    for _ in range(2):
        if all(name.startswith("module.") or is_bookkeeping(name) for name in state):
            state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
