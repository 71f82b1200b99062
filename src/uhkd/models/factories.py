"""Building a bare module from a library's name, with its own input size and normalisation."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features import IMAGENET_MEAN, IMAGENET_STD
from uhkd.models.cifar_variants import build_variant
from uhkd.models.names import ModelName
from uhkd.models.pretrained import hub_within_reach, unavailable
from uhkd.models.weights import apply_state
from uhkd.runs import read_mapping

Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects its images to be; `size` is (height, width)."""

    size: Size
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class BuiltModel:
    """A module with its input, what has to be announced, and the size its architecture was made for."""

    module: nn.Module
    input: Preprocessing
    notes: tuple[str, ...] = ()
    made_for: Size = (224, 224)


def build(
    reference: ModelName, *, size: Size | None, num_classes: int | None, options: Mapping[str, Any], pretrained: bool
) -> BuiltModel:
    """The module that a reference to a library names; `num_classes` None keeps its own head.

    Raises:
        UhkdError: an option it does not take, a size it cannot have, or pretrained weights that cannot be had.
    """
    if reference.library == "transformers":
        from uhkd.models.transformers import build_family  # it stands on this file

        if pretrained:
            raise unavailable(
                f"transformers/{reference.name}", ValueError("a family has none; name a model of the hub")
            )
        return build_family(reference.name, size, num_classes, options)
    builder = {"uhkd": _uhkd, "torchvision": _torchvision, "timm": _timm}[reference.library]
    return builder(reference.name, size, num_classes, dict(options), pretrained)


def read_folder(path: str) -> tuple[str, dict[str, Any], dict[str, Any], Path]:
    """Architecture, its options, its input configuration and its weights file, from a timm model folder.

    Raises:
        UhkdError: config.json or the weights are missing or unreadable.
    """
    folder = Path(path)
    try:
        config = read_mapping(folder / "config.json")
        architecture = config["architecture"]
    except (OSError, ValueError, KeyError) as error:
        raise UhkdError(f"'{folder / 'config.json'}' is no timm configuration: expected an 'architecture'") from error
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        raise UhkdError(f"'{folder}' has no weights: expected {' or '.join(file.name for file in files)}")
    described = dict(config.get("pretrained_cfg") or {})
    described.setdefault("num_classes", config.get("num_classes"))
    return architecture, dict(config.get("model_args") or {}), described, weights


def _uhkd(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    if pretrained:
        raise unavailable(f"uhkd/{name}", ValueError("our small variants have none"))
    size = size or (32, 32)
    classes = 1000 if num_classes is None else num_classes
    module = construct(
        f"uhkd/{name}", size, lambda: build_variant(name, size=size, num_classes=classes, options=options)
    )
    return BuiltModel(module, Preprocessing(size), made_for=(32, 32))


def _timm(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    if foreign := sorted(_ELSEWHERE & options.keys()):
        raise UhkdError(
            f"timm/{name}: the option {foreign[0]} would read other files or fetch weights; name weights with start (--start, "
            "--student-start, --teacher-start)"
        )
    given = options.pop("img_size", None)
    size = size or (_pair(given) if given is not None else None)
    arguments = {**options, "num_classes": num_classes}
    # Networks whose weights know their grid must be built for a size; the others take images as they come.
    if size is not None and (cfg.fixed_input_size or given is not None):
        arguments["img_size"] = size
    where = size or (int(cfg.input_size[1]), int(cfg.input_size[2]))
    if not pretrained:
        module = construct(f"timm/{name}", where, lambda: timm.create_model(name, pretrained=False, **arguments))
    else:
        with hub_within_reach():
            try:
                module = timm.create_model(name, pretrained=True, **arguments)
            except (OSError, RuntimeError, ImportError) as error:
                raise unavailable(f"timm/{name}", error) from error
            except (TypeError, ValueError, AssertionError) as error:
                raise _refusal(f"timm/{name}", where, error) from error
    own: dict[str, Any] = getattr(module, "pretrained_cfg", None) or cfg.to_dict()
    notes = []
    if pretrained and num_classes not in (None, own.get("num_classes")):
        notes.append(
            f"the pretrained head is for {own.get('num_classes')} classes: the one for {num_classes} starts at random"
        )
    return BuiltModel(module, input_of(own, size), tuple(notes), input_of(own, None).size)


# arguments of timm.create_model that are no architecture: a model card from elsewhere must not open what it likes
_ELSEWHERE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def input_of(cfg: Mapping[str, Any], size: Size | None) -> Preprocessing:
    """The input that a timm configuration describes, at another size if one is given."""
    shape = cfg.get("input_size") or (3, 224, 224)
    mean, std = (tuple(map(float, cfg.get(key) or default)) for key, default in _NORMS)
    return Preprocessing(size or (int(shape[1]), int(shape[2])), mean, std, str(cfg.get("interpolation") or "bicubic"))


_NORMS = (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))


def _torchvision(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    crop = getattr(weights.transforms(), "crop_size", [224])
    made_for = (int(crop[0]), int(crop[-1]))
    where = size or made_for
    arguments = dict(options)
    if name.startswith("vit_"):
        if where[0] != where[1]:
            raise UhkdError(f"torchvision/{name} takes square images only, found {where[0]}x{where[1]} px")
        arguments.setdefault("image_size", where[0])
    elif name.startswith("maxvit"):
        arguments.setdefault("input_size", where)
    elif name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)
    if num_classes:
        arguments["num_classes"] = num_classes
    full = f"torchvision/{name}"
    module = construct(full, where, lambda: torchvision.models.get_model(name, weights=None, **arguments))
    notes: list[str] = []
    if pretrained:
        try:
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise unavailable(full, error) from error
        notes = apply_state(module, state, num_classes=num_classes or 1000, source="torchvision's pretrained weights")
    if num_classes == 0:
        _behead(module, full)
    return BuiltModel(module, replace(Preprocessing(where), interpolation="bilinear"), tuple(notes), made_for)


def _behead(module: nn.Module, name: str) -> None:
    """Put an identity in place of the last linear layer, so that the module's output is its embedding.

    Raises:
        UhkdError: when the network does not end with one.
    """
    linear = [part for part, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear or module.get_submodule(linear[-1]) is not list(module.modules())[-1]:
        raise UhkdError(
            f"{name} cannot be had without a head: it does not end with a linear layer; choose another network"
        )
    module.set_submodule(linear[-1], nn.Identity())


def construct(name: str, size: Size, make: Callable[[], Any]) -> Any:
    """What a foreign constructor makes.

    Raises:
        UhkdError: in one line, for whatever it does not like.
    """
    try:
        return make()
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise _refusal(name, size, error) from error


def _refusal(name: str, size: Size, error: BaseException) -> ValueError:
    """One clear line for a constructor's error: an unknown option, or a size or setting it cannot have."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "unexpected keyword argument" in text:
        option = text.rsplit("argument", 1)[1].strip(" '\"")
        near = difflib.get_close_matches(option, _OPTIONS, n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        return ValueError(f"{name} takes no option '{option}'{hint}")
    if "multiple values" in text:
        return ValueError(f"{name} sets this option itself: {text}")
    return ValueError(f"{name} cannot be built for images of {size[0]}x{size[1]} px: {text}")


# What timm's classes call the settings people change most: only for "did you mean".
_OPTIONS = (
    *("depth", "depths", "drop_path_rate", "drop_rate", "embed_dim", "global_pool", "img_size", "layers", "mlp_ratio"),
    *("num_blocks", "num_heads", "patch_size", "qkv_bias", "reg_tokens", "window_size", "channels", "image_size"),
)


def _pair(size: Any) -> Size:
    return (int(size), int(size)) if isinstance(size, (int, float)) else (int(size[0]), int(size[1]))
