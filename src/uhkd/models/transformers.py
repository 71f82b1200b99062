"""Image classifiers of transformers: a family by its configuration, a folder of save_pretrained, a hub model, or an object."""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uhkd.models.families import PREFIX, families, is_hub_name
from uhkd.models.libraries import Built, Input, Size, construct
from uhkd.models.pretrained import hub_within_reach
from uhkd.runs import read_mapping

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# no architecture: what a configuration from elsewhere must not choose, or what we choose
_FOREIGN = {"attn_implementation", "auto_map", "backbone", "backbone_config", "quantization_config"}
_FOREIGN |= {"trust_remote_code", "use_pretrained_backbone", "use_timm_backbone", "experts_implementation"}
_OURS = {"dtype", "torch_dtype", "id2label", "label2id", "num_labels", "output_attentions", "output_hidden_states"}
_OURS |= {"return_dict", "transformers_version", "model_type", "problem_type"}
_PIXELS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of its filters


@dataclass(frozen=True)
class Found:
    """A model folder: its family and the words of its configuration, its input, names of classes, and weights if asked for."""

    family: str
    options: dict[str, Any]
    num_classes: int
    input: Input
    classes: tuple[str, ...]
    state: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()


def has_weights(name: str) -> bool:
    """Whether a folder holds weights that can be read."""
    folder = Path(name).expanduser()
    return any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json"))


def build_family(name: str, size: Size | None, num_classes: int | None, options: Mapping[str, Any]) -> Built:
    """A network of a family with random weights; `options` are words of its configuration.

    Raises:
        ValueError: an option that the family does not know, or a network that cannot be.
    """
    full = PREFIX + name
    known = _known(name)
    if foreign := sorted(key for key in options if key in _FOREIGN or key.startswith("_")):
        raise ValueError(f"{full}: the option {foreign[0]} would fetch or run other things than an architecture")
    if unknown := sorted(options.keys() - known):
        raise ValueError(_unknown_option(full, unknown[0], known))
    words = dict(options)
    if size is not None:
        side = size[0] if size[0] == size[1] else list(size)
        if "image_size" in known:
            words["image_size"] = side
        elif "vision_config" in known:
            words["vision_config"] = {**words.get("vision_config", {}), "image_size": side}
    config: Any = construct(full, size or (224, 224), lambda: _config(name, words, num_classes))
    own = _size_of_config(config) or (224, 224)
    module = construct(full, size or own, lambda: _network_class(config)(config))
    return Built(module, Input(size or own), made_for=own)


def find(name: str, *, pretrained: bool) -> Found:
    """What a folder of save_pretrained, or a model of the hub, holds. A folder always brings its weights, where it has some.

    Raises:
        ValueError: when it cannot be had, holds no classifier of images, or weights that are not whole safetensors.
    """
    local = (Path(name).expanduser() / CONFIG).is_file()
    folder = Path(name).expanduser() if local else _snapshot(name, pretrained)
    try:
        raw = read_mapping(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder / CONFIG}' cannot be read: {error}") from error
    family = str(raw.get("model_type"))
    if family not in families():
        hint = f"write timm/{name}" if "architecture" in raw else f"there are {', '.join(families()[:4])} and others"
        raise ValueError(f"'{name}' holds {family!r}, which is no family that classifies images; {hint}")
    if raw.get("quantization_config"):
        raise ValueError(f"'{name}' holds quantised weights, which cannot be trained or tapped; take the plain ones")
    config: Any = construct(PREFIX + name, (224, 224), lambda: _config_class(family).from_dict(dict(raw)))
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    named = labels and not all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    processor = folder / PROCESSOR
    described = _described(config, read_mapping(processor) if processor.is_file() else None)
    found = Found(family, words_of(config), config.num_labels, described, tuple(labels) if named else ())
    if pretrained and local and not has_weights(name):
        raise ValueError(
            f"'{name}' has no weights: expected model.safetensors, as save_pretrained writes it (other kinds are not opened)"
        )
    if not (pretrained or (local and has_weights(name))):
        return found
    notes = [] if processor.is_file() else [f"'{name}' has no {PROCESSOR}: images are normalised as ImageNet's"]
    state = _weights(folder, name, config)
    if processor.is_file() and read_mapping(processor).get("do_flip_channel_order"):
        _turn_to_rgb(state, config)
        notes.append("its first layer was turned from blue-green-red images to red-green-blue ones")
    return replace(found, state=state, notes=tuple(notes))


def described(module: nn.Module) -> Input | None:
    """The input of an object of transformers, by the folder or cached hub model it came from; None: another's object."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    origin = str(getattr(module, "name_or_path", "") or "")
    file: Any = Path(origin) / PROCESSOR
    if origin and not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(origin, PROCESSOR) if is_hub_name(origin) else None
    there = isinstance(file, str | Path) and Path(file).is_file() and bool(origin)
    return _described(module.config, read_mapping(Path(file)) if there else None)


def card_words(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Name and options from which an object of transformers is built again; None: it is another's, or a class of its own."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    config: Any = module.config
    if config.model_type not in families() or type(module) is not _network_class(config):
        return None
    return PREFIX + config.model_type, words_of(config)


def words_of(config: Any) -> dict[str, Any]:
    """A configuration as plain words: all that its family knows, ours and others' left out."""
    known = _known(config.model_type)
    return {key: value for key, value in config.to_dict().items() if key in known and value is not None}


def stage_ends(module: nn.Module, wanted: int) -> list[str] | None:
    """The last block of each stage, where stages end by making their map smaller (Swin, FocalNet); None: elsewhere."""
    ends: list[str] = []
    if not described(module):
        return None
    for name, part in module.named_modules():
        blocks = getattr(part, "blocks", None) or getattr(part, "layers", None)
        if hasattr(part, "downsample") and isinstance(blocks, nn.ModuleList) and len(blocks):
            ends.append(f"{name}.{'blocks' if hasattr(part, 'blocks') else 'layers'}.{len(blocks) - 1}")
    return ends[-wanted:] if len(ends) > 1 and wanted else None


def _config_class(family: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


def _config(family: str, words: Mapping[str, Any], num_classes: int | None) -> Any:
    own = dict(words)
    if num_classes is not None:
        own |= {"id2label": {i: f"LABEL_{i}" for i in range(num_classes)}}
        own |= {"label2id": {f"LABEL_{i}": i for i in range(num_classes)}}
    return _config_class(family).from_dict(own)


def _network_class(config: Any) -> Any:
    """The class for a configuration: that which it names itself, if it is one of the family's classifiers, else the first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    choices = found if isinstance(found, tuple | list) else (found,)
    asked = config.architectures or ()
    return next((choice for choice in choices if choice.__name__ in asked), choices[0])


@cache
def _known(family: str) -> frozenset[str]:
    """Words of a family's configuration."""
    kind = _config_class(family)
    words = set(kind().to_dict()) | set(inspect.signature(kind).parameters)
    return frozenset(word for word in words - _FOREIGN - _OURS - {"kwargs"} if not word.startswith("_"))


def _unknown_option(full: str, option: str, known: frozenset[str]) -> str:
    import difflib

    near = difflib.get_close_matches(option, sorted(known), n=3, cutoff=0.6)
    return f"{full} takes no option '{option}'" + (f"; did you mean {', '.join(near)}?" if near else "")


def _size_of_config(config: Any) -> Size | None:
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    return None if side is None else _pair(side)


def _pair(side: Any) -> Size:
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _described(config: Any, processor: Mapping[str, Any] | None) -> Input:
    """Size, mean, std and filter; a processor's arithmetic on bytes is said in terms of images in [0,1]."""
    own = _size_of_config(config)
    if processor is None:
        return Input(own or (224, 224))
    scale = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", mean is not None) or mean is None or std is None:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    given = processor.get("crop_size") if processor.get("do_center_crop") else None
    given = given or processor.get("size") or own or (224, 224)
    if isinstance(given, Mapping):
        side = given.get("shortest_edge")
        given = (given["height"], given["width"]) if side is None else side
    return Input(
        _pair(given),
        tuple((float(m) + offset) / scale for m in mean),
        tuple(float(s) / scale for s in std),
        _PIXELS.get(processor.get("resample", 2), "bicubic"),
    )


def _snapshot(name: str, pretrained: bool) -> Path:
    """The folder of a hub model in the local cache, fetched if it can be."""
    from huggingface_hub import constants, snapshot_download

    wanted = [CONFIG, PROCESSOR]
    if pretrained:
        wanted += ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    with hub_within_reach():
        try:
            found = snapshot_download(name, allow_patterns=wanted, local_files_only=constants.HF_HUB_OFFLINE)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(_elsewhere(name, reason)) from error
    folder = Path(found)
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    missing += ["model.safetensors"] if pretrained and not has_weights(found) else []
    if missing:
        raise ValueError(_elsewhere(name, f"it has no {missing[0]} there"))
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
            module, said = _network_class(config).from_pretrained(
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
        raise ValueError(
            f"the weights in '{name}' cannot be read ({reason.rstrip('.')}); write or copy them again"
        ) from error
    absent = {str(key) for key in said["missing_keys"]} | {str(item[0]) for item in said["mismatched_keys"]}
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
        module = _network_class(config)(config)
    first = next(f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    state[first] = state[first].flip(1)
