"""create, wrap and load_run: the three ways to a TappedModel with a card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, UnsupportedImageSize
from uhkd.models import transformers
from uhkd.models.card import ModelCard
from uhkd.models.factories import Preprocessing, build, input_of, read_folder
from uhkd.models.families import PREFIX, families
from uhkd.models.names import ModelName, check_run, parse
from uhkd.models.preprocessing import native_preprocessing, native_size_of
from uhkd.models.transformers import config_of, find, stage_ends
from uhkd.models.weights import apply_state, head_classes, head_names, load_state
from uhkd.runs import RunFolder

Levels = int | Sequence[int | str]


@dataclass(frozen=True)
class _Request:
    """An architecture to build and the weights to put in."""

    reference: ModelName
    num_classes: int | None
    size: tuple[int, int] | None
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    state: Mapping[str, Tensor] | None = None
    source: str = ""
    input: Preprocessing | None = None
    notes: tuple[str, ...] = ()


def create(
    name: str,
    *,
    num_classes: int | None,
    start: str | Path = "random",
    image_size: int | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    levels: Levels = 4,
) -> FeatureExtractor:
    """The model of a name as a TappedModel, with its `card` and with `notes` on what has to be announced.

    `name`: `timm/NAME` (or NAME alone), `torchvision/NAME`, `uhkd/NAME`, `transformers/NAME` (a family, a folder of
    save_pretrained or a name of the hub), `local-dir:PATH` (a timm model folder) or a run folder of ours; folders bring their
    weights. `start`: "random", "pretrained" (network), or the path of a
    weights file or run folder. `num_classes` None keeps the model's own head, 0 is none; one that does not fit starts
    at random. `image_size` is one side or (height, width) in pixels, by default the model's own.

    Raises:
        UhkdError: unknown name, impossible size or option, weights that do not fit or cannot be had.
    """
    if num_classes is not None and num_classes < 0:
        raise UhkdError(f"num_classes must be at least 1 (0: no head), found {num_classes}")
    reference, size, options = parse(name), _size(image_size), dict(options or {})
    classes: tuple[str, ...] = ()
    num_classes = _or(num_classes, options.pop("num_classes", None))
    if reference.library == "run":
        card, state = _read_run(reference.name)
        state = {key: tensor for key, tensor in state.items() if not key.startswith("probe.")}
        request = _Request(
            parse(card.name), _or(num_classes, card.num_classes), size or card.image_size, {**card.options, **options}
        )
        described = Preprocessing(request.size or card.image_size, card.mean, card.std, card.interpolation)
        request = replace(request, state=state, source=f"'{reference.name}'", input=described)
        classes = card.classes
        if levels == 4:
            levels = card.levels or levels
    elif reference.library == "folder":
        architecture, own, cfg, weights = read_folder(reference.name)
        described = input_of(cfg, size)
        request = _Request(
            parse(f"timm/{architecture}"), _or(num_classes, cfg.get("num_classes")), described.size, {**own, **options}
        )
        request = replace(request, state=load_state(weights), source=f"'{weights}'", input=described)
    elif reference.library == "transformers" and reference.name not in families():
        found = find(reference.name, pretrained=str(start) == "pretrained")
        request = _Request(
            replace(reference, name=found.family),
            _or(num_classes, found.num_classes),
            size,
            {**found.options, **options},
        )
        described = replace(found.input, size=size or found.input.size)
        request = replace(request, size=described.size, input=described, notes=found.notes)
        request = replace(request, state=found.state, source=f"'{reference.name}'")
        classes = found.classes
    else:
        request = _Request(reference, num_classes, size, options, pretrained=str(start) == "pretrained")
    if str(start) not in ("random", "pretrained"):
        file = _weights_file(start)
        request = replace(request, state=load_state(file), source=f"'{file}'", pretrained=False)
    tapped = _instantiate(request, levels)
    if len(classes) == tapped.shapes.logits:
        tapped.card = replace(tapped.card, classes=classes)
    if str(start) == "pretrained" and request.state is not None and reference.library != "transformers":
        tapped.notes.append(f"the weights come from {request.source}; no pretrained ones were fetched")
    return tapped


def wrap_module(
    module: nn.Module,
    *,
    num_classes: int | None,
    image_size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    levels: Levels = 4,
    name: str | None = None,
) -> FeatureExtractor:
    """A network of one's own as a TappedModel; `num_classes` 0 says that its output is an embedding, None: as it is.

    Size and normalisation are by default those that a network of timm or transformers knows of itself; others get 224 px and
    ImageNet's.

    Raises:
        UhkdError: it gives another number of classes, no usable taps, or cannot process images of this size.
    """
    given = _size(image_size) or native_size_of(module) or (224, 224)
    own = native_preprocessing(module, given) or Preprocessing(given)
    tapped = FeatureExtractor(
        module,
        input_size=own.size,
        mean=mean or own.mean,
        std=std or own.std,
        interpolation=own.interpolation,
        levels=_levels(module, levels),
        head=num_classes != 0,
    )
    found = tapped.shapes.logits
    if num_classes and found != num_classes:
        gives = "no class scores" if found is None else f"{found} classes"
        raise UhkdError(f"{type(module).__name__} gives {gives}, expected {num_classes}: replace its last layer")
    known, options = config_of(module) or (f"module/{type(module).__name__}", {})
    return _with_card(tapped, name or known, options)


def load_run(folder: str | Path) -> FeatureExtractor:
    """The trained network of a run folder of ours, in eval mode, with its card (and its linear probe, if it has one).

    Raises:
        UhkdError: no run folder, a network that was given as a module, or weights that do not fit the card.
    """
    card, state = _read_run(folder)
    probe = {key: state.pop(key) for key in ("probe.weight", "probe.bias") if key in state}
    described = Preprocessing(card.image_size, card.mean, card.std, card.interpolation)
    if card.name.startswith("module/"):
        raise UhkdError(
            f"'{folder}' holds a module of your own ({card.name}): build it, then use uhkd.models.load_state and uhkd.models.wrap"
        )
    tapped = _instantiate(
        _Request(
            parse(card.name), card.num_classes, card.image_size, card.options, False, state, f"'{folder}'", described
        ),
        card.levels,
    )
    if probe:
        linear = nn.Linear(*reversed(probe["probe.weight"].shape), bias="probe.bias" in probe)
        linear.load_state_dict({key.removeprefix("probe."): tensor for key, tensor in probe.items()})
        tapped.set_probe(linear)
    tapped.card = card
    return tapped.eval()


def save(network: FeatureExtractor, folder: str | Path, classes: Sequence[str] = ()) -> Path:
    """Write card and weights of a network into a new folder, which `load_run` opens (modules of one's own: `load_state`).

    `classes`: names of its outputs, in order.

    Raises:
        UhkdError: when the folder is a file or holds something already, or the names are not as many as the classes.
    """
    assert isinstance(network.card, ModelCard)
    if classes and len(classes) != network.card.num_classes:
        raise UhkdError(f"classes must be {network.card.num_classes} names, found {len(classes)}")
    run = RunFolder(Path(folder).expanduser())
    if run.path.is_file() or (run.path.exists() and any(run.path.iterdir())):
        raise UhkdError(f"'{folder}' is there already; choose a folder that is new or empty")
    run.path.mkdir(parents=True, exist_ok=True)
    card = replace(network.card, classes=tuple(classes) or network.card.classes)
    run.write_model(card.to_json(), network.module.state_dict())
    return run.path


def has_weights(name: str) -> bool:
    """Whether a name stands for a network with its weights: a run folder or a model folder."""
    if name.startswith(PREFIX):
        return transformers.has_weights(name.removeprefix(PREFIX))
    return RunFolder(Path(name).expanduser()).exists() or "local-dir:" in name


def _instantiate(request: _Request, levels: Levels) -> FeatureExtractor:
    """Build, load, tap, and write the card."""
    reference, classes = request.reference, request.num_classes
    settings: dict[str, Any] = {"size": request.size, "options": request.options, "pretrained": request.pretrained}
    built = build(reference, num_classes=classes, **settings)
    notes = [*request.notes, *built.notes]
    if request.state is not None:
        own = _own_classes(built.module)
        if classes is None and own is not None:
            held = head_classes(request.state, head_names(built.module, own))
            if held not in (None, own):  # the file's head is the one to keep
                built, own = build(reference, num_classes=held, **settings), held
        notes += apply_state(built.module, request.state, num_classes=own or classes or 0, source=request.source)
    given = request.input or built.input
    try:
        tapped = FeatureExtractor(
            built.module,
            input_size=given.size,
            mean=given.mean,
            std=given.std,
            interpolation=given.interpolation,
            levels=_levels(built.module, levels),
            head=classes != 0,
        )
    except UnsupportedImageSize as error:
        height, width = built.made_for
        raise UhkdError(f"{error}; {reference.library}/{reference.name} was made for {height}x{width}") from error
    tapped.notes[:0] = notes
    return _with_card(tapped, f"{reference.library}/{reference.name}", request.options)


def _levels(module: nn.Module, levels: Levels) -> Levels:
    return (stage_ends(module, levels) or levels) if isinstance(levels, int) else levels


def _own_classes(module: nn.Module) -> int | None:
    """Number of classes a freshly built module has: timm and transformers say so, elsewhere its last layer with outputs does."""
    classes = getattr(module, "num_classes", getattr(module, "num_labels", None))
    if isinstance(classes, int):
        return classes
    outputs = [getattr(part, "out_features", getattr(part, "out_channels", None)) for part in module.modules()]
    return next((item for item in reversed(outputs) if isinstance(item, int)), None)


def _with_card(tapped: FeatureExtractor, name: str, options: Mapping[str, Any]) -> FeatureExtractor:
    tapped.card = ModelCard(
        name=name,
        num_classes=tapped.shapes.logits or 0,
        image_size=tapped.input_size,
        options=dict(options),
        mean=tapped.mean,
        std=tapped.std,
        interpolation=tapped.interpolation,
        levels=tapped.levels,
    )
    return tapped


def _read_run(folder: str | Path) -> tuple[ModelCard, dict[str, Tensor]]:
    run = check_run(folder)
    try:
        card = ModelCard.from_json(run.read_card())
    except ValueError as error:
        raise UhkdError(f"'{folder}' cannot be used: {error}") from error
    return card, load_state(run.weights)


def _weights_file(start: str | Path) -> Path:
    """The weights file that `start` names: itself, or the one of a run folder or timm model folder."""
    path = Path(start).expanduser()
    if path.is_file():
        return path
    if RunFolder(path).exists():
        return RunFolder(path).weights
    if (path / "config.json").is_file():
        return read_folder(str(path))[3]
    raise UhkdError(f"start must be random, pretrained or the path of a weights file; there is no file '{path}'")


def _size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise UhkdError(f"image_size must be one or two positive numbers of pixels, found {size}")
    return (int(pair[0]), int(pair[1]))


def _or(first: int | None, second: int | None) -> int | None:
    return second if first is None else first
