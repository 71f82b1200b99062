"""All distillation methods by name, and how a list of them is built from words."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import DistillationLoss, Requirements
from uhkd.methods.registry import method_class, settings_of
from uhkd.methods.spectral_matching import SpectralMatchingLoss
from uhkd.recipe.method_table import method_names, names_of, suggest

__all__ = [
    "DistillationLoss",
    "Requirements",
    "build_losses",
    "default_balance",
    "find_matching_loss",
    "label_free_weights",
    "method_class",
    "method_names",
    "parse_methods",
    "resolve_settings",
    "settings_of",
    "uses_logits",
]

_FINITE = ConfigDict(allow_inf_nan=False)  # "nan" and "inf" are floats to pydantic, and to a loss they are poison


def _names(method: str) -> list[str]:
    names = names_of(method)
    for name in names:
        method_class(name)  # a plug-in may fail
    return names


def _drop_duplicate_logit_terms(names: list[str], plan: Mapping[str, tuple[dict[str, Any], dict[str, float]]]) -> None:
    """Give weight 0 to soft targets that a method only brings along, where a list has other ones of its own.

    A weight that was asked for stays.
    """
    has_logit_term = any(method_class(name).is_logit_method for name in names)
    for name in names:
        auxiliary_logit_terms = method_class(name).auxiliary_logit_terms
        if has_logit_term:
            for term in sorted(auxiliary_logit_terms):
                plan[name][1].setdefault(term, 0.0)
        has_logit_term = has_logit_term or bool(auxiliary_logit_terms)


def parse_methods(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """Sort settings and weights by method and check names and types before anything is loaded.

    Args:
        method: a name or several joined by "+", such as "uhkd" or "uhkd+dkd". Of several terms that imitate the teacher's
            logits one counts: that of a method made for it (kd, dkd, dist, ofa), else the first.
        settings: by name; "uhkd.radius" is meant for one method, "radius" for each that has it.
        weights: of loss terms, by name in the same way.

    Returns:
        name -> (settings, weights of terms).

    Raises:
        UhkdError: listing every unknown name and every value of the wrong type.
    """
    names = _names(method)
    plan: dict[str, tuple[dict[str, Any], dict[str, float]]] = {name: ({}, {}) for name in names}
    problems = []
    for kind, given in enumerate((settings or {}, weights or {})):
        what = ("setting", "weight")[kind]
        for key, value in given.items():
            prefix, _, term = key.rpartition(".")
            known = {n: list(settings_of(n)) if kind == 0 else list(method_class(n).default_weights) for n in names}
            takers = [n for n in names if term in known[n] and prefix in ("", n)]
            if kind == 1 and key == "ce":
                continue  # the trainer's own term
            if not takers:
                everything = sorted({w for terms in known.values() for w in terms} | ({"ce"} if kind else set()))
                problems.append(
                    f"{method} has no {what} {key!r}{suggest(term, everything)} (known: {', '.join(everything) or 'none'})"
                )
            for name in takers:
                annotation = settings_of(name)[term].annotation if kind == 0 else float
                try:
                    plan[name][kind][term] = TypeAdapter(annotation, config=_FINITE).validate_python(value)
                except ValidationError as error:
                    message = error.errors()[0]["msg"].lower()
                    problems.append(f"{what} {key}={value!r} of {name}: {message}")
    if any(w < 0 for _, term_weights in plan.values() for w in term_weights.values()):
        problems.append("weights of loss terms must be numbers >= 0")
    if problems:
        raise UhkdError("\n".join(problems))
    _drop_duplicate_logit_terms(names, plan)
    return plan


def resolve_settings(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """{name: {"settings", "weights"}} with defaults filled in: what a run must note, as a default may change.

    Raises:
        UhkdError: as `parse_methods`.
    """
    return {
        name: {
            "settings": {key: chosen.get(key, parameter.default) for key, parameter in settings_of(name).items()},
            "weights": {**method_class(name).default_weights, **given},
        }
        for name, (chosen, given) in parse_methods(method, settings, weights).items()
    }


def default_balance(method: str) -> str:
    """Return the balance of a method, or of several joined by "+": the first that is not constant.

    Raises:
        UhkdError: for an unknown method.
    """
    return next((own for name in _names(method) if (own := method_class(name).balance) != "constant"), "constant")


def uses_logits(
    method: str, settings: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None
) -> bool:
    """Whether any term that counts is about the logits of both sides."""
    return any(
        weight and (method_class(name).is_logit_method or term in method_class(name).auxiliary_logit_terms)
        for name, chosen in resolve_settings(method, settings, weights).items()
        for term, weight in chosen["weights"].items()
    )


def label_free_weights(
    method: str, settings: Mapping[str, Any] | None, weights: Mapping[str, float], *, logits: bool
) -> dict[str, float]:
    """The weights by which a method learns from images without labels, of a teacher with `logits` or none.

    Without logits the terms on them that a method only brings along get weight 0, unless one was asked for.

    Raises:
        UhkdError: for a method that learns from labels alone, treats the labelled class apart, or imitates logits that are not
            there.
    """
    names, others = _names(method), "rsd, rkd, cc, fitnet, at, crd, spectralkd or uhkd"
    for name in names:
        own = method_class(name)
        if not own.default_weights:
            raise UhkdError(f"{name} learns from labels alone, and these images have none; choose {others}")
        if own.needs_labels:
            raise UhkdError(
                f"{name} treats the labelled class apart, and these images have no labels; choose kd, {others}"
            )
        if own.is_logit_method and not logits:
            raise UhkdError(f"{name} imitates class scores, and this teacher has none; choose {others}")
    silent = {} if logits else {f"{n}.{t}": 0.0 for n in names for t in method_class(n).auxiliary_logit_terms}
    return {key: w for key, w in silent.items() if key.partition(".")[2] not in weights} | dict(weights)


def build_losses(
    method: str,
    shapes: PairShapes,
    settings: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
) -> nn.ModuleDict:
    """Distillers by method name, ready to train, from measured shapes and words (see `parse_methods`).

    Raises:
        UhkdError: for unknown or impossible settings, or for a field of the teacher that cannot be had.
    """
    distillers = nn.ModuleDict()
    for name, (chosen, term_weights) in parse_methods(method, settings, weights).items():
        make: Any = method_class(name)  # each takes settings of its own, checked above
        distillers[name] = make(shapes, term_weights, **chosen)
    targets = set()
    for name, distiller in distillers.items():
        assert isinstance(distiller, DistillationLoss)
        for side, measured in (("student", shapes.student), ("teacher", shapes.teacher)):
            for field in sorted(getattr(distiller.needs, side)):
                if field in ("logits", "embedding") and getattr(measured, field, None) is None:
                    hint = (
                        f"; set {_on_logits(distiller)} to 0 or give the teacher a head (teacher_head=probe)"
                        if field == "logits"
                        else ""
                    )
                    raise UhkdError(f"{name} needs {side} {field}, and the {side} has none{hint}")
        classes = [side.logits for side in (shapes.student, shapes.teacher) if side is not None]
        if "logits" in distiller.needs.student & distiller.needs.teacher and len(set(classes)) > 1:
            raise UhkdError(
                f"{name} compares logits: the student has {classes[0]} classes, the teacher {classes[1]}; "
                f"give the teacher a head for these classes (teacher_head=probe), or set {_on_logits(distiller)} to 0"
            )
        if distiller.needs.target is not None:
            targets.add(distiller.needs.target)
    if len(targets) > 1:
        raise UhkdError(
            f"the methods of {method!r} ask for different targets of one teacher; give them the same "
            "settings, or use one of them (spatial and spectral targets do not join)"
        )
    return distillers


def _on_logits(distiller: DistillationLoss) -> str:
    """The weights that would have to go for a method to need no logits."""
    terms = sorted(filter(distiller.is_active, distiller.auxiliary_logit_terms or distiller.weights))
    return f"the weight{'s' if len(terms) > 1 else ''} of {', '.join(terms)}"


def find_matching_loss(distillers: nn.Module) -> SpectralMatchingLoss | None:
    """The level matching of the first method that has one, for diagnostics."""
    return next((m for m in distillers.modules() if isinstance(m, SpectralMatchingLoss)), None)
