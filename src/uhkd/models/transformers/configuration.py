"""Families of transformers: options <-> configuration -> network."""

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from uhkd.errors import UhkdError
from uhkd.models.families import PREFIX, families, quiet_torchao
from uhkd.models.types import BuiltModel, Preprocessing, Size, as_size, construct, unknown_option

# fields that may fetch or run code: never taken from a configuration
_UNSAFE = {"attn_implementation", "auto_map", "backbone", "backbone_config", "quantization_config"}
_UNSAFE |= {"trust_remote_code", "use_pretrained_backbone", "use_timm_backbone", "experts_implementation"}
# fields that are set here, or describe no architecture
_RESERVED = {"dtype", "torch_dtype", "id2label", "label2id", "num_labels", "output_attentions", "output_hidden_states"}
_RESERVED |= {"return_dict", "transformers_version", "model_type", "problem_type"}


def build_family(name: str, size: Size | None, num_classes: int | None, options: Mapping[str, Any]) -> BuiltModel:
    """Build a network of a family with random weights; `options` are fields of its configuration.

    Raises:
        UhkdError: an unknown or unsafe option, or a configuration that the family rejects.
    """
    full, known = PREFIX + name, _known_fields(name)
    if unsafe := _unsafe_fields(options):
        raise UhkdError(f"{full}: the option {unsafe[0]} is not part of an architecture and could fetch or run code")
    if unknown := sorted(options.keys() - known):
        raise unknown_option(full, unknown[0], sorted(known))
    fields = dict(options)
    if size is not None:
        side = size[0] if size[0] == size[1] else list(size)
        if "image_size" in known:
            fields["image_size"] = side
        elif "vision_config" in known:
            fields["vision_config"] = {**fields.get("vision_config", {}), "image_size": side}
    config: Any = construct(full, size or (224, 224), lambda: make_config(name, fields, num_classes))
    made_for = size_of_config(config) or (224, 224)
    module = construct(full, size or made_for, lambda: network_class(config)(config))
    return BuiltModel(module, Preprocessing(size or made_for), made_for=made_for)


def config_fields(config: Any) -> dict[str, Any]:
    """Return the options from which `build_family` builds the architecture of a configuration object."""
    return architecture_fields(config.model_type, config.to_dict())


def architecture_fields(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an untrusted configuration that describe an architecture of the family."""
    known = _known_fields(family)
    return {key: _without_unsafe(value) for key, value in config.items() if key in known and value is not None}


def config_of(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return the name and options that rebuild an object of transformers; None for other modules and custom classes."""
    if not is_pretrained_model(module):
        return None
    config: Any = module.config
    if config.model_type not in families() or type(module) is not network_class(config):
        return None
    return PREFIX + config.model_type, config_fields(config)


def is_pretrained_model(module: nn.Module) -> bool:
    """Return whether a module is a PreTrainedModel of transformers, without importing the library."""
    library: Any = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def stage_ends(module: nn.Module, count: int) -> list[str] | None:
    """Return the last blocks of the last `count` stages, where a stage ends with a downsampling (Swin, FocalNet); else None."""
    if not hasattr(module, "config"):  # in torchvision and timm a stage starts with the downsampling
        return None
    ends: list[str] = []
    for name, part in module.named_modules():
        blocks = getattr(part, "blocks", None) or getattr(part, "layers", None)
        if hasattr(part, "downsample") and isinstance(blocks, nn.ModuleList) and len(blocks):
            ends.append(f"{name}.{'blocks' if hasattr(part, 'blocks') else 'layers'}.{len(blocks) - 1}")
    return ends[-count:] if len(ends) > 1 and count else None


def _is_unsafe(key: str) -> bool:
    return key in _UNSAFE or key.startswith("_")


def _unsafe_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the unsafe keys, those of nested configurations included."""
    nested = [key for value in fields.values() if isinstance(value, Mapping) for key in _unsafe_fields(value)]
    return sorted(filter(_is_unsafe, map(str, fields))) + nested


def _without_unsafe(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_unsafe(nested) for key, nested in value.items() if not _is_unsafe(str(key))}


@quiet_torchao()
def _config_class(family: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


def make_config(family: str, fields: Mapping[str, Any], num_classes: int | None = None) -> Any:
    """Return the configuration with these fields and a head for `num_classes`; None: as the fields specify."""
    names = fields.get("id2label")
    config = _config_class(family).from_dict({key: value for key, value in fields.items() if value is not None})
    if num_classes is not None:
        names = {i: f"LABEL_{i}" for i in range(num_classes)}
    if names is not None:  # set again: families with a fixed default number of classes ignore the field
        config.id2label = {int(i): str(name) for i, name in names.items()}
        config.label2id = {name: i for i, name in config.id2label.items()}
        config.num_labels = len(config.id2label)
    return config


@quiet_torchao()
def network_class(config: Any) -> Any:
    """Return the family's classifier class named in the configuration, or else its first classifier class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    classes: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    classes = classes if isinstance(classes, tuple | list) else (classes,)
    return next((item for item in classes if item.__name__ in (config.architectures or ())), classes[0])


@cache
def _known_fields(family: str) -> frozenset[str]:
    config_class = _config_class(family)
    fields = set(config_class().to_dict()) | set(inspect.signature(config_class).parameters)
    return frozenset(name for name in fields - _UNSAFE - _RESERVED - {"kwargs"} if not name.startswith("_"))


def size_of_config(config: Any) -> Size | None:
    """Return the (height, width) that a configuration was made for; None: not specified."""
    side = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    return None if side is None else as_size(side)
