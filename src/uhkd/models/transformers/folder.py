"""A folder of save_pretrained, or a hub model in the local cache: its configuration, processor and weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.models.families import PREFIX, families
from uhkd.models.pretrained import hub_within_reach
from uhkd.models.transformers.configuration import architecture_fields, config_fields, make_config, network_class
from uhkd.models.transformers.processor import PROCESSOR, preprocessing_of_processor
from uhkd.models.types import Preprocessing, construct
from uhkd.runs import read_mapping

_CONFIG = "config.json"
_PICKLED = ("pytorch_model*.bin", "flax_model*", "tf_model*")


@dataclass(frozen=True)
class HFModel:
    """The content of a model folder: family, options of its configuration, input, class names, and weights if requested."""

    family: str
    options: dict[str, Any]
    num_classes: int
    input: Preprocessing
    classes: tuple[str, ...]
    state: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def has_safetensors(name: str) -> bool:
    """Return whether a folder contains safetensors weights."""
    folder = Path(name).expanduser()
    return any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json"))


def find(name: str, *, pretrained: bool) -> HFModel:
    """Read a folder of save_pretrained, or a hub model; the weights of a folder are always loaded if it has some.

    Raises:
        UhkdError: not available, no image classifier, or weights that are missing, damaged, quantised or not safetensors.
    """
    local = (Path(name).expanduser() / _CONFIG).is_file()
    folder = Path(name).expanduser() if local else _snapshot(name, pretrained)
    config, classes = _read_config(folder, name)
    processor = read_mapping(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else None
    preprocessing = preprocessing_of_processor(config, processor)
    model = HFModel(config.model_type, config_fields(config), config.num_labels, preprocessing, classes)
    if local and not has_safetensors(name):
        if pickled := [file for pattern in _PICKLED for file in sorted(folder.glob(pattern))]:
            raise UhkdError(
                f"'{folder / pickled[0].name}' was not opened: reading weights of this kind can run code; save them again with "
                "save_pretrained, as model.safetensors"
            )
        if pretrained:
            raise UhkdError(f"'{name}' has no weights: expected model.safetensors, as save_pretrained writes it")
        return model
    if not (pretrained or local):
        return model
    notes = [] if processor is not None else [f"'{name}' has no {PROCESSOR}: images are normalised as ImageNet's"]
    state = _weights(folder, name, config)
    if processor is not None and processor.get("do_flip_channel_order"):
        _convert_to_rgb(state, config)
        notes.append("its first layer was converted from blue-green-red images to red-green-blue ones")
    return replace(model, state=state, notes=tuple(notes))


def _read_config(folder: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return the configuration object and the class names (empty: the default LABEL_0, LABEL_1, ...)."""
    try:
        raw = read_mapping(folder / _CONFIG)
    except (OSError, ValueError) as error:
        raise UhkdError(f"'{folder / _CONFIG}' cannot be read: {error}") from error
    family = str(raw.get("model_type"))
    if family not in families():
        hint = f"write timm/{name}" if "architecture" in raw else f"supported: {', '.join(families()[:4])} and others"
        raise UhkdError(f"'{name}' has the model type {family!r}, which is no image classifier; {hint}")
    if raw.get("quantization_config"):
        raise UhkdError(f"'{name}' has quantised weights, which cannot be trained; use the weights in full precision")
    fields = architecture_fields(family, raw) | {"id2label": raw.get("id2label")}
    config: Any = construct(PREFIX + name, (224, 224), lambda: make_config(family, fields))
    default = [f"LABEL_{i}" for i in range(config.num_labels)]
    labels = [str(config.id2label.get(i, label)) for i, label in enumerate(default)]
    return config, () if labels == default else tuple(labels)


def _snapshot(name: str, pretrained: bool) -> Path:
    """Return the folder of a hub model in the local cache, after a download if it is needed and possible."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unavailable(reason: str) -> UhkdError:
        return UhkdError(
            f"transformers/{name} is not available from the hub ({reason.rstrip('.')}); without an internet connection, give a "
            "folder that save_pretrained wrote (transformers/PATH), or a family with random weights (transformers/vit)"
        )

    patterns = [_CONFIG, PROCESSOR]
    if pretrained:
        patterns += ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    with hub_within_reach():
        try:
            path = snapshot_download(name, allow_patterns=patterns, local_files_only=constants.HF_HUB_OFFLINE)
        except LocalEntryNotFoundError as error:
            raise unavailable("it cannot be reached, and the local cache does not contain this model") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise unavailable(first_line(error)) from error
    if not Path(path, _CONFIG).is_file():
        raise unavailable(f"it has no {_CONFIG} there")
    if pretrained and not has_safetensors(path):
        raise unavailable("it has no model.safetensors there")
    return Path(path)


def _weights(folder: Path, name: str, config: Any) -> dict[str, Tensor]:
    """Return the tensors that the files contain, under the names of the installed library version."""
    try:
        with _quiet():
            module, report = network_class(config).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # a damaged file can raise any exception
        reason = first_line(error).rstrip(".")
        raise UhkdError(f"the weights in '{name}' cannot be read ({reason}); write or copy them again") from error
    absent = {str(key) for key in report["missing_keys"]} | {str(item[0]) for item in report["mismatched_keys"]}
    return {key: tensor for key, tensor in module.state_dict().items() if key not in absent}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of transformers: missing weights are reported by our notes."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _convert_to_rgb(state: dict[str, Tensor], config: Any) -> None:
    """Reverse the input channels of the first convolution of 3 channels."""
    with torch.device("meta"):
        module = network_class(config)(config)
    first = next(f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    state[first] = state[first].flip(1)
