"""Bare modules of the libraries by name, with the input size and normalisation that they were made for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features import IMAGENET_MEAN, IMAGENET_STD
from uhkd.models.cifar_variants import build_variant
from uhkd.models.names import ModelName
from uhkd.models.pretrained import hub_within_reach, unavailable
from uhkd.models.transformers import build_family
from uhkd.models.types import BuiltModel, Preprocessing, Size, as_size, construct, construction_error
from uhkd.models.weights import apply_state, fit_state
from uhkd.runs import read_mapping


def build_module(
    reference: ModelName, *, size: Size | None, num_classes: int | None, options: Mapping[str, Any], pretrained: bool
) -> BuiltModel:
    """Build an architecture of a library; `num_classes` None keeps its default head.

    Raises:
        UhkdError: an unknown option, an impossible size, or pretrained weights that are not available.
    """
    if reference.library == "transformers":
        if pretrained:
            raise unavailable(f"transformers/{reference.name}", "a family has none; name a model of the hub")
        return build_family(reference.name, size, num_classes, options)
    builder = {"uhkd": _uhkd, "torchvision": _torchvision, "timm": _timm}[reference.library]
    return builder(reference.name, size, num_classes, dict(options), pretrained)


def read_folder(path: str) -> tuple[str, dict[str, Any], dict[str, Any], Path]:
    """Read a timm model folder: return architecture, model arguments, pretrained_cfg and weights file.

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
    cfg = dict(config.get("pretrained_cfg") or {})
    if "num_classes" in config:  # of this head; that of pretrained_cfg may be of the original one, as in timm
        cfg["num_classes"] = config["num_classes"]
    return architecture, dict(config.get("model_args") or {}), cfg, weights


def _uhkd(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    if pretrained:
        raise unavailable(f"uhkd/{name}", "the networks uhkd/... have none")
    size = size or (32, 32)
    classes = 1000 if num_classes is None else num_classes
    module = construct(
        f"uhkd/{name}", size, lambda: build_variant(name, size=size, num_classes=classes, options=options)
    )
    return BuiltModel(module, Preprocessing(size), made_for=(32, 32))


# arguments of timm.create_model that would read or fetch files: not allowed as options of a downloaded card
_FILE_OPTIONS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def _timm(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    import timm

    default_cfg = timm.get_pretrained_cfg(name)
    assert default_cfg is not None
    if rejected := sorted(_FILE_OPTIONS & options.keys()):
        raise UhkdError(
            f"timm/{name}: the option {rejected[0]} would read other files or fetch weights; set the weights with start "
            "(--start, --student-start, --teacher-start)"
        )
    img_size = options.pop("img_size", None)
    if size is None and img_size is not None:
        size = as_size(img_size, "img_size")
    arguments = {**options, "num_classes": num_classes}
    # networks whose weights depend on the grid are built for a size; others accept any size
    if size is not None and (default_cfg.fixed_input_size or img_size is not None):
        arguments["img_size"] = size
    built_for = size or (int(default_cfg.input_size[1]), int(default_cfg.input_size[2]))
    if not pretrained:
        module = construct(f"timm/{name}", built_for, lambda: timm.create_model(name, pretrained=False, **arguments))
    else:
        with hub_within_reach():
            try:
                module = timm.create_model(name, pretrained=True, **arguments)
            except (OSError, RuntimeError, ImportError) as error:
                raise unavailable(f"timm/{name}", first_line(error)) from error
            except (TypeError, ValueError, AssertionError) as error:
                raise construction_error(f"timm/{name}", built_for, error) from error
    cfg: dict[str, Any] = getattr(module, "pretrained_cfg", None) or default_cfg.to_dict()
    notes = ()
    if pretrained and num_classes not in (None, cfg.get("num_classes")):
        notes = (
            f"the pretrained head is for {cfg.get('num_classes')} classes: the one for {num_classes} starts at random",
        )
    return BuiltModel(module, input_of(cfg, size), notes, input_of(cfg, None).size)


def input_of(cfg: Mapping[str, Any], size: Size | None) -> Preprocessing:
    """Return the preprocessing in a timm configuration, at another size if one is given."""
    shape = cfg.get("input_size") or (3, 224, 224)
    return Preprocessing(
        size or (int(shape[1]), int(shape[2])),
        tuple(map(float, cfg.get("mean") or IMAGENET_MEAN)),
        tuple(map(float, cfg.get("std") or IMAGENET_STD)),
        str(cfg.get("interpolation") or "bicubic"),
    )


def _torchvision(
    name: str, size: Size | None, num_classes: int | None, options: dict[str, Any], pretrained: bool
) -> BuiltModel:
    import torchvision

    full = f"torchvision/{name}"
    weights = torchvision.models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    crop = getattr(weights.transforms(), "crop_size", [224])
    made_for = (int(crop[0]), int(crop[-1]))
    size = size or made_for
    arguments = dict(options)
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise UhkdError(f"{full} takes only square images, found {size[0]}x{size[1]} px")
        arguments.setdefault("image_size", size[0])
    elif name.startswith("maxvit"):
        arguments.setdefault("input_size", size)
    elif name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)
    if num_classes:
        arguments["num_classes"] = num_classes
    module = construct(full, size, lambda: torchvision.models.get_model(name, weights=None, **arguments))
    notes: list[str] = []
    if pretrained:
        try:
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise unavailable(full, first_line(error)) from error
        origin: dict[str, Any] = {"num_classes": num_classes or 1000, "source": "torchvision's pretrained weights"}
        state, notes = fit_state(module, state, **origin)
        notes += apply_state(module, state, **origin)
    if num_classes == 0:
        _remove_head(module, full)
    return BuiltModel(module, Preprocessing(size, interpolation="bilinear"), tuple(notes), made_for)


def _remove_head(module: nn.Module, name: str) -> None:
    """Replace the last linear layer with an identity, so that the module returns its embedding.

    Raises:
        UhkdError: the network does not end with a linear layer.
    """
    linear = [part for part, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear or module.get_submodule(linear[-1]) is not list(module.modules())[-1]:
        raise UhkdError(
            f"{name} cannot be built without a head: it does not end with a linear layer; choose another network"
        )
    module.set_submodule(linear[-1], nn.Identity())
