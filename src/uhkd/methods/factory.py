"""Methods by name: options -> checked `MethodSpec`s -> loss modules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import DistillationLoss
from uhkd.methods.registry import method_class, settings_of
from uhkd.methods.spectral_matching import SpectralMatchingLoss
from uhkd.recipe import did_you_mean
from uhkd.recipe.method_table import METHODS, names_of

_FINITE = ConfigDict(allow_inf_nan=False)  # pydantic accepts "nan" and "inf" as floats; a loss must not


@dataclass(frozen=True)
class MethodSpec:
    """Explicit choices for one method: constructor keyword arguments, and weights of loss terms by term name."""

    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: dict[str, float] = field(default_factory=dict[str, float])


def _classes(method: str) -> dict[str, type[DistillationLoss]]:
    return {name: method_class(name) for name in names_of(method)}


def parse_methods(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, MethodSpec]:
    """Assign settings and weights to methods, and check their names and types before anything is loaded.

    Args:
        method: one name or several joined by "+", such as "uhkd" or "uhkd+dkd". If several methods compare logits, only one
            does so by default: a method made for it (`is_logit_method`), else the first. The others' logit terms get weight
            0, unless their weight is given.
        settings: value by name; "uhkd.radius" is for one method, "radius" for every method that has this setting.
        weights: weight of loss terms, with the same kind of names.

    Returns:
        The spec of each method, without defaults (see `resolve_settings`).

    Raises:
        UhkdError: listing every unknown name and every value of the wrong type.
    """
    classes = _classes(method)
    specs = {name: MethodSpec() for name in classes}
    problems = []
    for kind, options in (("setting", settings or {}), ("weight", weights or {})):
        types = {
            name: {key: parameter.annotation for key, parameter in settings_of(name).items()}
            if kind == "setting"
            else dict.fromkeys(cls.default_weights, float)
            for name, cls in classes.items()
        }
        for key, value in options.items():
            if kind == "weight" and key == "ce":  # the trainer's term
                continue
            prefix, _, term = key.rpartition(".")
            targets = [name for name in classes if term in types[name] and prefix in ("", name)]
            if not targets:
                known = sorted(
                    {term for terms in types.values() for term in terms} | ({"ce"} if kind == "weight" else set())
                )
                hint = f"{did_you_mean(term, known, 1)} (known: {', '.join(known) or 'none'})"
                problems.append(f"{method} has no {kind} {key!r}{hint}")
            for name in targets:
                values = specs[name].kwargs if kind == "setting" else specs[name].weights
                try:
                    values[term] = TypeAdapter(types[name][term], config=_FINITE).validate_python(value)
                except ValidationError as error:
                    problems.append(f"{kind} {key}={value!r} of {name}: {error.errors()[0]['msg'].lower()}")
    if any(weight < 0 for spec in specs.values() for weight in spec.weights.values()):
        problems.append("weights of loss terms must be numbers >= 0")
    if problems:
        raise UhkdError("\n".join(problems))
    has_logit_term = any(cls.is_logit_method for cls in classes.values())
    for name, cls in classes.items():
        if has_logit_term:
            for term in sorted(cls.auxiliary_logit_terms):
                specs[name].weights.setdefault(term, 0.0)
        has_logit_term = has_logit_term or bool(cls.auxiliary_logit_terms)
    return specs


def resolve_settings(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {name: {"settings", "weights"}} with defaults filled in. A run records it, because defaults may change.

    Raises:
        UhkdError: as `parse_methods`.
    """
    return {
        name: {
            "settings": {key: parameter.default for key, parameter in settings_of(name).items()} | spec.kwargs,
            "weights": {**method_class(name).default_weights, **spec.weights},
        }
        for name, spec in parse_methods(method, settings, weights).items()
    }


def default_balance(method: str) -> str:
    """Return the balance of a method, or of several joined by "+": the first that is not "constant".

    Raises:
        UhkdError: for an unknown method.
    """
    balances = [cls.balance for cls in _classes(method).values()]
    return next((balance for balance in balances if balance != "constant"), "constant")


def uses_logits(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> bool:
    """Return whether any term with a weight above 0 compares the logits of student and teacher."""
    return any(
        weight and (method_class(name).is_logit_method or term in method_class(name).auxiliary_logit_terms)
        for name, resolved in resolve_settings(method, settings, weights).items()
        for term, weight in resolved["weights"].items()
    )


def label_free_weights(
    method: str, settings: Mapping[str, Any] | None, weights: Mapping[str, float], *, logits: bool
) -> dict[str, float]:
    """Return the weights for training on images without labels.

    Args:
        logits: whether the teacher has logits. Without them, auxiliary logit terms get weight 0, unless `weights` has them.

    Raises:
        UhkdError: for a method that only uses labels, needs the labelled class, or compares logits that the teacher lacks.
    """
    classes, others = _classes(method), _methods_without_labels(logits)
    for name, cls in classes.items():
        if not cls.default_weights:
            raise UhkdError(f"{name} only uses labels, and these images have none; choose {others}")
        if cls.needs_labels:
            raise UhkdError(f"{name} needs the labelled class, and these images have no labels; choose {others}")
        if cls.is_logit_method and not logits:
            raise UhkdError(f"{name} compares logits, and this teacher has none; choose {others}")
    if logits:
        return dict(weights)
    inactive = [(name, term) for name, cls in classes.items() for term in cls.auxiliary_logit_terms]
    return {f"{name}.{term}": 0.0 for name, term in inactive if term not in weights} | dict(weights)


def _methods_without_labels(logits: bool) -> str:
    """Return the names of the packaged methods that train without labels; `logits`: for a teacher with logits."""
    classes = {name: method_class(name) for name in METHODS}
    *names, last = (
        name
        for name, cls in classes.items()
        if cls.default_weights and not cls.needs_labels and (logits or not cls.is_logit_method)
    )
    return f"{', '.join(names)} or {last}"


def build_losses(
    method: str,
    shapes: PairShapes,
    settings: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
) -> nn.ModuleDict:
    """Build the loss module of each method, by method name, for measured shapes (options: see `parse_methods`).

    Raises:
        UhkdError: for unknown or impossible settings, or an output that student or teacher does not have.
    """
    losses: dict[str, DistillationLoss] = {}
    for name, spec in parse_methods(method, settings, weights).items():
        cls: Any = method_class(name)  # every class has other keyword arguments; `parse_methods` has checked them
        losses[name] = cls(shapes, spec.weights, **spec.kwargs)
    for name, loss in losses.items():
        for side, outputs in (("student", shapes.student), ("teacher", shapes.teacher)):
            for field_name in sorted(getattr(loss.needs, side) & {"logits", "embedding", "maps"}):
                if getattr(outputs, field_name, None) in (None, ()):
                    hint = f"; {_without_logits(loss)} or give the teacher a head (teacher_head=probe)"
                    raise UhkdError(
                        f"{name} needs {side} {field_name}, and the {side} has none{hint if field_name == 'logits' else ''}"
                    )
        classes = [side.logits for side in (shapes.student, shapes.teacher) if side is not None]
        if "logits" in loss.needs.student & loss.needs.teacher and len(set(classes)) > 1:
            raise UhkdError(
                f"{name} compares logits: the student has {classes[0]} classes, the teacher {classes[1]}; "
                f"give the teacher a head for these classes (teacher_head=probe), or {_without_logits(loss)}"
            )
    if len({loss.needs.target for loss in losses.values() if loss.needs.target is not None}) > 1:
        raise UhkdError(
            f"the methods of {method!r} need different spectral targets of one teacher; give them the same settings, "
            "or use one of them (spatial and spectral targets cannot be combined)"
        )
    return nn.ModuleDict(losses)


def _without_logits(loss: DistillationLoss) -> str:
    """Return how to change the weights so that a method needs no logits."""
    terms = sorted(filter(loss.is_active, loss.auxiliary_logit_terms or loss.weights))
    return f"set the weight{'s' if len(terms) > 1 else ''} of {', '.join(terms)} to 0"


def find_matching_loss(losses: nn.Module) -> SpectralMatchingLoss | None:
    """Return the level matching of the first method that has one, for diagnostics."""
    return next((m for m in losses.modules() if isinstance(m, SpectralMatchingLoss)), None)
