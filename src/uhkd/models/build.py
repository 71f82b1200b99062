"""Build a FeatureExtractor with its config: `create` (by name), `wrap_module` (a custom network), `load_run` (a run folder)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, UnsupportedImageSize
from uhkd.features.selection import LayerSelection
from uhkd.models import transformers
from uhkd.models.config import ModelConfig
from uhkd.models.factories import build_module, input_of, read_folder
from uhkd.models.families import PREFIX, families
from uhkd.models.module_checks import check_module
from uhkd.models.names import ModelName, check_run, parse_name
from uhkd.models.preprocessing import native_preprocessing, native_size_of
from uhkd.models.types import Preprocessing, as_size
from uhkd.models.weights import apply_state, check_finite, fit_state, head_classes, head_names, num_outputs
from uhkd.models.weights_file import load_state, read_copy
from uhkd.recipe import path_hint
from uhkd.runs import RunFolder

DEFAULT_LEVELS = 4


@dataclass(frozen=True)
class _Request:
    """An architecture to build and the weights to load."""

    reference: ModelName
    num_classes: int | None = None
    size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    state: Mapping[str, Tensor] | None = None
    source: str = ""
    input: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def create(
    name: str,
    *,
    num_classes: int | None,
    start: str | Path = "random",
    weights_key: str | None = None,
    image_size: int | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    levels: LayerSelection | None = None,
) -> FeatureExtractor:
    """Build the model of a name as a FeatureExtractor, with its `config` and with `notes` for the user.

    Args:
        name: `timm/NAME` (or NAME alone), `torchvision/NAME`, `uhkd/NAME`, `transformers/NAME` (a family, a folder written by
            save_pretrained, or a hub name), `local-dir:PATH` (a timm model folder), or a run folder. Folders include weights.
        num_classes: None keeps the model's head, 0 removes it; a head for another number of classes is initialised at random.
        start: "random", "pretrained" (may need a network connection), or the path of a weights file or run folder.
        weights_key: the copy of the weights in the file `start`, such as "model_ema"; None: the weights themselves.
        image_size: one side or (height, width) in pixels; None: the model's default.
        options: arguments of the architecture.
        levels: number or names of the layers whose feature maps are returned; None: those of the run folder, else 4.

    Raises:
        UhkdError: unknown name, impossible size or option, or weights that do not fit or are not available.
    """
    if num_classes is not None and num_classes < 0:
        raise UhkdError(f"num_classes must be at least 1 (0: no head), found {num_classes}")
    reference, size = parse_name(name), None if image_size is None else as_size(image_size)
    options, pretrained = dict(options or {}), str(start) == "pretrained"
    if reference.library == "run":
        config, state = _read_run(reference.name)
        body = {key: tensor for key, tensor in state.items() if not key.startswith("probe.")}
        request = _request_of_config(config, body, reference.name)
        levels = config.levels or None if levels is None else levels
    elif reference.library == "folder":
        architecture, arguments, cfg, weights = read_folder(reference.name)
        loaded: dict[str, Any] = {"state": load_state(weights), "source": f"'{weights}'", "input": input_of(cfg, None)}
        request = _Request(parse_name(f"timm/{architecture}"), cfg.get("num_classes"), None, arguments, **loaded)
    elif reference.library == "transformers" and reference.name not in families():
        request = _request_of_transformers(reference, pretrained)
    else:
        request = _Request(reference, pretrained=pretrained)
    default_classes = options.pop("num_classes", request.num_classes)
    request = replace(
        request,
        num_classes=default_classes if num_classes is None else num_classes,
        size=size or (request.input.size if request.input else None),
        options={**request.options, **options},
        input=request.input and replace(request.input, size=size or request.input.size),
    )
    if str(start) not in ("random", "pretrained"):
        state, notes = read_copy(file := _weights_file(start), weights_key)
        request = replace(request, state=state, source=f"'{file}'", pretrained=False, notes=(*request.notes, *notes))
    elif weights_key is not None:
        raise UhkdError(f"weights_key '{weights_key}' names weights in a file: give the file as start, found {start}")
    network = _instantiate(request, DEFAULT_LEVELS if levels is None else levels)
    if reference.library == "run":
        network.config = replace(network.config, resize=config.resize)
    if len(request.classes) == network.shapes.logits:
        network.config = replace(network.config, classes=request.classes)
    if pretrained and request.state is not None and reference.library != "transformers":
        network.notes.append(f"the weights come from {request.source}; no pretrained ones were fetched")
    return network


def wrap_module(
    module: nn.Module,
    *,
    num_classes: int | None,
    image_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    levels: LayerSelection | None = None,
    name: str | None = None,
) -> FeatureExtractor:
    """Wrap a custom network as a FeatureExtractor; a FeatureExtractor is returned as it is, with a config if it has none.

    `num_classes`: expected number of outputs; 0: the output is an embedding; None: not checked. Size and normalisation default
    to those in the configuration of a network of timm or transformers, else to 224 px and ImageNet's mean and std; a module
    that contains torchvision's `Normalize` gets images in [0,1].

    Raises:
        UhkdError: another number of classes, no usable layers, or an image size that the network cannot process.
    """
    check_module(module)
    if isinstance(module, FeatureExtractor):
        network = module
    else:
        check_finite(module, f"of {type(module).__name__}")
        size = native_size_of(module) or (224, 224) if image_size is None else as_size(image_size)
        native = native_preprocessing(module, size) or Preprocessing(size)
        native = replace(native, mean=tuple(mean or native.mean), std=tuple(std or native.std))
        network = _extractor(module, native, DEFAULT_LEVELS if levels is None else levels, head=num_classes != 0)
        if (native.mean, native.std) == ((0.0,) * 3, (1.0,) * 3):
            network.notes.append(f"{type(module).__name__} gets images in [0,1], without normalisation")
    network.keep_frozen_norms()
    owner, outputs = type(network.module).__name__, network.shapes.logits
    if num_classes is not None and num_classes != (outputs or 0):
        gives = "no class scores" if outputs is None else f"{outputs} classes"
        raise UhkdError(
            f"{owner} gives {gives}, expected {num_classes or 'an embedding'}: "
            + ("replace its last layer" if num_classes else "build it with num_classes=0")
        )
    if network.config is not None:
        return network
    native_name, options = transformers.config_of(network.module) or (f"module/{owner}", {})
    return _with_config(network, name or native_name, options)


def load_run(folder: str | Path) -> FeatureExtractor:
    """Load the trained network of a run folder in eval mode, with its config and, if there is one, its linear probe.

    Raises:
        UhkdError: no run folder, a network that was passed as a module, or weights that do not fit the config.
    """
    config, state = _read_run(folder)
    if config.name.startswith("module/"):
        raise UhkdError(
            f"'{folder}' holds a module of your own ({config.name}): build it, then use uhkd.models.load_state and "
            "uhkd.models.wrap_module"
        )
    probe = {key.removeprefix("probe."): state.pop(key) for key in ("probe.weight", "probe.bias") if key in state}
    network = _instantiate(_request_of_config(config, state, folder), config.levels)
    if probe:
        linear = nn.Linear(*reversed(probe["weight"].shape), bias="bias" in probe)
        linear.load_state_dict(probe)
        network.set_probe(linear)
    network.config = config
    return network.eval()


def save(network: FeatureExtractor, folder: str | Path, classes: Sequence[str] = ()) -> Path:
    """Write the config and weights of a network into a new folder and return its path.

    `load_run` opens the folder, or `load_state` for a custom module. `classes`: names in the order of the outputs.

    Raises:
        UhkdError: the folder is a file or not empty, or the number of names differs from the number of classes.
    """
    assert isinstance(network.config, ModelConfig)
    if classes and len(classes) != network.config.num_classes:
        raise UhkdError(f"classes must be {network.config.num_classes} names, found {len(classes)}")
    run = RunFolder(Path(folder).expanduser())
    if run.path.is_file() or (run.path.exists() and any(run.path.iterdir())):
        raise UhkdError(f"'{folder}' is there already; choose a folder that is new or empty")
    run.path.mkdir(parents=True, exist_ok=True)
    config = replace(network.config, classes=tuple(classes) or network.config.classes)
    run.write_model(config.to_json(), network.module.state_dict())
    return run.path


def has_weights(name: str) -> bool:
    """Return whether a name refers to a network with weights: a run folder or a model folder."""
    if name.startswith(PREFIX):
        return transformers.has_safetensors(name.removeprefix(PREFIX))
    return RunFolder(Path(name).expanduser()).has_model() or "local-dir:" in name


def _request_of_config(config: ModelConfig, state: Mapping[str, Tensor], folder: str | Path) -> _Request:
    return _Request(
        parse_name(config.name),
        config.num_classes,
        config.image_size,
        config.options,
        state=state,
        source=f"'{folder}'",
        input=Preprocessing(config.image_size, config.mean, config.std, config.interpolation),
        classes=config.classes,
    )


def _request_of_transformers(reference: ModelName, pretrained: bool) -> _Request:
    model = transformers.find(reference.name, pretrained=pretrained)
    return _Request(
        replace(reference, name=model.family),
        model.num_classes,
        options=model.options,
        state=model.state,
        source=f"'{reference.name}'",
        input=model.input,
        classes=model.classes,
        notes=model.notes,
    )


def _instantiate(request: _Request, levels: LayerSelection) -> FeatureExtractor:
    """Build the module, load its weights, and wrap it with its config."""
    reference, classes = request.reference, request.num_classes
    arguments: dict[str, Any] = {"size": request.size, "options": request.options, "pretrained": request.pretrained}
    built = build_module(reference, num_classes=classes, **arguments)
    notes = [*request.notes, *built.notes]
    if request.state is not None:
        outputs = num_outputs(built.module)
        state, more = fit_state(built.module, request.state, num_classes=outputs or classes or 0, source=request.source)
        if classes is None and outputs is not None:
            stored = head_classes(state, head_names(built.module, outputs))
            if stored not in (None, outputs):  # keep the head of the file
                built, outputs = build_module(reference, num_classes=stored, **arguments), stored
        notes += more + apply_state(built.module, state, num_classes=outputs or classes or 0, source=request.source)
    name = f"{reference.library}/{reference.name}"
    try:
        network = _extractor(built.module, request.input or built.input, levels, head=classes != 0)
    except UnsupportedImageSize as error:
        height, width = built.made_for
        made_for = f"; {name} was made for {height}x{width}" if built.made_for != request.size else ""
        raise UhkdError(f"{error}{made_for}") from error
    network.notes[:0] = notes
    return _with_config(network, name, request.options)


def _extractor(module: nn.Module, preprocessing: Preprocessing, levels: LayerSelection, head: bool) -> FeatureExtractor:
    return FeatureExtractor(
        module,
        input_size=preprocessing.size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        levels=(transformers.stage_ends(module, levels) or levels) if isinstance(levels, int) else levels,
        head=head,
    )


def _with_config(network: FeatureExtractor, name: str, options: Mapping[str, Any]) -> FeatureExtractor:
    network.config = ModelConfig(
        name=name,
        num_classes=network.shapes.logits or 0,
        image_size=network.input_size,
        options=dict(options),
        mean=network.mean,
        std=network.std,
        interpolation=network.interpolation,
        levels=network.levels,
    )
    return network


def _read_run(folder: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    run = check_run(folder)
    try:
        config = ModelConfig.from_json(run.read_config())
    except UhkdError as error:
        raise UhkdError(f"'{folder}' cannot be used: {error}") from error
    return config, load_state(run.weights)


def _weights_file(start: str | Path) -> Path:
    """Return the weights file of `start`: the file itself, or that of a run folder or timm model folder."""
    if (path := Path(start).expanduser()).is_file():
        return path
    if RunFolder(path).has_model():
        return RunFolder(path).weights
    if (path / "config.json").is_file():
        return read_folder(str(path))[3]
    missing = f"there is no file '{path}'{path_hint(path, Path.exists)}"
    found = f"'{path}' is a folder without card.json or config.json" if path.is_dir() else missing
    raise UhkdError(f"start must be random, pretrained or the path of a weights file; {found}")
