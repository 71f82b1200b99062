"""A folder of save_pretrained, or a model of the hub in the local cache: configuration, processor, weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.models.factories import Preprocessing, construct
from uhkd.models.families import PREFIX, families
from uhkd.models.pretrained import hub_within_reach
from uhkd.models.transformers.configuration import config_fields, make_config, network_class, plain_fields
from uhkd.models.transformers.processor import described_by
from uhkd.runs import read_mapping

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_PICKLED = ("pytorch_model*.bin", "flax_model*", "tf_model*")


@dataclass(frozen=True)
class HFModel:
    """A model folder: its family and the words of its configuration, its input, names of classes, and weights if asked for."""

    family: str
    options: dict[str, Any]
    num_classes: int
    input: Preprocessing
    classes: tuple[str, ...]
    state: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def has_weights(name: str) -> bool:
    """Whether a folder holds weights that can be read."""
    folder = Path(name).expanduser()
    return any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json"))


def find(name: str, *, pretrained: bool) -> HFModel:
    """What a folder of save_pretrained, or a model of the hub, holds. A folder always brings its weights, where it has some.

    Raises:
        UhkdError: when it cannot be had, holds no classifier of images, or weights that are not whole safetensors.
    """
    local = (Path(name).expanduser() / CONFIG).is_file()
    folder = Path(name).expanduser() if local else _snapshot(name, pretrained)
    try:
        raw = read_mapping(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise UhkdError(f"'{folder / CONFIG}' cannot be read: {error}") from error
    family = str(raw.get("model_type"))
    if family not in families():
        hint = f"write timm/{name}" if "architecture" in raw else f"there are {', '.join(families()[:4])} and others"
        raise UhkdError(f"'{name}' holds {family!r}, which is no family that classifies images; {hint}")
    if raw.get("quantization_config"):
        raise UhkdError(f"'{name}' holds quantised weights, which cannot be trained or tapped; take the plain ones")
    fields = plain_fields(family, raw) | {"id2label": raw.get("id2label")}
    config: Any = construct(PREFIX + name, (224, 224), lambda: make_config(family, fields))
    labels = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]
    named = labels and not all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    processor = folder / PROCESSOR
    described = described_by(config, read_mapping(processor) if processor.is_file() else None)
    found = HFModel(family, config_fields(config), config.num_labels, described, tuple(labels) if named else ())
    if local and not has_weights(name):
        other = next((file.name for pattern in _PICKLED for file in sorted(folder.glob(pattern))), None)
        if other is not None:
            raise UhkdError(
                f"'{folder / other}' was not opened: weights of this kind can run code; save them again with save_pretrained, as "
                "model.safetensors"
            )
        if pretrained:
            raise UhkdError(f"'{name}' has no weights: expected model.safetensors, as save_pretrained writes it")
    if not (pretrained or (local and has_weights(name))):
        return found
    notes = [] if processor.is_file() else [f"'{name}' has no {PROCESSOR}: images are normalised as ImageNet's"]
    state = _weights(folder, name, config)
    if processor.is_file() and read_mapping(processor).get("do_flip_channel_order"):
        _turn_to_rgb(state, config)
        notes.append("its first layer was turned from blue-green-red images to red-green-blue ones")
    return replace(found, state=state, notes=tuple(notes))


def _snapshot(name: str, pretrained: bool) -> Path:
    """The folder of a hub model in the local cache, fetched if it can be."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = [CONFIG, PROCESSOR]
    if pretrained:
        wanted += ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    with hub_within_reach():
        try:
            found = snapshot_download(name, allow_patterns=wanted, local_files_only=constants.HF_HUB_OFFLINE)
        except LocalEntryNotFoundError as error:
            raise UhkdError(
                _elsewhere(name, "it cannot be reached, and the local cache does not hold this model")
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UhkdError(_elsewhere(name, reason)) from error
    folder = Path(found)
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    missing += ["model.safetensors"] if pretrained and not has_weights(found) else []
    if missing:
        raise UhkdError(_elsewhere(name, f"it has no {missing[0]} there"))
    return folder


def _elsewhere(name: str, reason: str) -> str:
    return (
        f"transformers/{name} cannot be had from the hub ({reason.rstrip('.')}); without a network give a folder that "
        "save_pretrained wrote (transformers/PATH), or a family with random weights (transformers/vit)"
    )


def _weights(folder: Path, name: str, config: Any) -> dict[str, Tensor]:
    """Tensors by the names of this version of the library, without those that the file lacks."""
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
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UhkdError(
            f"the weights in '{name}' cannot be read ({reason.rstrip('.')}); write or copy them again"
        ) from error
    absent = {str(key) for key in report["missing_keys"]} | {str(item[0]) for item in report["mismatched_keys"]}
    return {key: tensor for key, tensor in module.state_dict().items() if key not in absent}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the library draws no bars and keeps its advice to itself: what is missing is told by us."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _turn_to_rgb(state: dict[str, Tensor], config: Any) -> None:
    with torch.device("meta"):
        module = network_class(config)(config)
    first = next(f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    state[first] = state[first].flip(1)
