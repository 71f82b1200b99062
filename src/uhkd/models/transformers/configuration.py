"""Families of transformers by the words of their configuration: words <-> configuration -> network."""

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from uhkd.errors import UhkdError
from uhkd.models.factories import BuiltModel, Preprocessing, Size, construct
from uhkd.models.families import PREFIX, quiet_torchao

# no architecture: what a configuration from elsewhere must not choose, or what we choose
_FOREIGN = {"attn_implementation", "auto_map", "backbone", "backbone_config", "quantization_config"}
_FOREIGN |= {"trust_remote_code", "use_pretrained_backbone", "use_timm_backbone", "experts_implementation"}
_OURS = {"dtype", "torch_dtype", "id2label", "label2id", "num_labels", "output_attentions", "output_hidden_states"}
_OURS |= {"return_dict", "transformers_version", "model_type", "problem_type"}


def build_family(name: str, size: Size | None, num_classes: int | None, options: Mapping[str, Any]) -> BuiltModel:
    """A network of a family with random weights; `options` are words of its configuration.

    Raises:
        UhkdError: an option that the family does not know, or a network that cannot be.
    """
    full = PREFIX + name
    known = _known(name)
    if foreign := _foreign(options):
        raise UhkdError(f"{full}: the option {foreign[0]} would fetch or run other things than an architecture")
    if unknown := sorted(options.keys() - known):
        raise UhkdError(_unknown_option(full, unknown[0], known))
    fields = dict(options)
    if size is not None:
        side = size[0] if size[0] == size[1] else list(size)
        if "image_size" in known:
            fields["image_size"] = side
        elif "vision_config" in known:
            fields["vision_config"] = {**fields.get("vision_config", {}), "image_size": side}
    config: Any = construct(full, size or (224, 224), lambda: make_config(name, fields, num_classes))
    own = size_of_config(config) or (224, 224)
    module = construct(full, size or own, lambda: network_class(config)(config))
    return BuiltModel(module, Preprocessing(size or own), made_for=own)


def config_fields(config: Any) -> dict[str, Any]:
    """A configuration as plain words: all that its family knows, ours and others' left out."""
    return plain_fields(config.model_type, config.to_dict())


def plain_fields(family: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration from anywhere, the words that describe an architecture of the family."""
    known = _known(family)
    return {key: _without_foreign(value) for key, value in found.items() if key in known and value is not None}


def stage_ends(module: nn.Module, wanted: int) -> list[str] | None:
    """The last block of each stage, where stages end by making their map smaller (Swin, FocalNet); None: elsewhere."""
    ends: list[str] = []
    if not hasattr(module, "config"):  # torchvision's and timm's stages begin by it
        return None
    for name, part in module.named_modules():
        blocks = getattr(part, "blocks", None) or getattr(part, "layers", None)
        if hasattr(part, "downsample") and isinstance(blocks, nn.ModuleList) and len(blocks):
            ends.append(f"{name}.{'blocks' if hasattr(part, 'blocks') else 'layers'}.{len(blocks) - 1}")
    return ends[-wanted:] if len(ends) > 1 and wanted else None


def _is_foreign(key: str) -> bool:
    return key in _FOREIGN or key.startswith("_")


def _foreign(fields: Mapping[str, Any]) -> list[str]:
    """Words that no architecture has, also in configurations within the configuration."""
    inner = [key for value in fields.values() if isinstance(value, Mapping) for key in _foreign(value)]
    return sorted(filter(_is_foreign, map(str, fields))) + inner


def _without_foreign(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_foreign(inner) for key, inner in value.items() if not _is_foreign(str(key))}


@quiet_torchao()
def _config_class(family: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


def make_config(family: str, fields: Mapping[str, Any], num_classes: int | None = None) -> Any:
    """The configuration that words say, with a head for so many classes, or that which they say themselves."""
    names = fields.get("id2label")
    config = _config_class(family).from_dict({key: value for key, value in fields.items() if value is not None})
    if num_classes is not None:
        names = {i: f"LABEL_{i}" for i in range(num_classes)}
    if names is not None:  # said again: a family with a default number of its own forgets them
        config.id2label = {int(i): str(name) for i, name in names.items()}
        config.label2id = {name: i for i, name in config.id2label.items()}
        config.num_labels = len(config.id2label)
    return config


@quiet_torchao()
def network_class(config: Any) -> Any:
    """The class for a configuration: that which it names itself, if it is one of the family's classifiers, else the first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    found: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    choices = found if isinstance(found, tuple | list) else (found,)
    architectures = config.architectures or ()
    return next((choice for choice in choices if choice.__name__ in architectures), choices[0])


@cache
def _known(family: str) -> frozenset[str]:
    """Words of a family's configuration."""
    kind = _config_class(family)
    fields = set(kind().to_dict()) | set(inspect.signature(kind).parameters)
    return frozenset(name for name in fields - _FOREIGN - _OURS - {"kwargs"} if not name.startswith("_"))


def _unknown_option(full: str, option: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(option, sorted(known), n=3, cutoff=0.6)
    return f"{full} takes no option '{option}'" + (f"; did you mean {', '.join(near)}?" if near else "")


def size_of_config(config: Any) -> Size | None:
    """(height, width) that a configuration was made for; None: it does not say."""
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    return None if side is None else pair(side)


def pair(side: Any) -> Size:
    """One side or two as (height, width)."""
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))
