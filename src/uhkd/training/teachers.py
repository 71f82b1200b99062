"""The teachers of a student: one or several, live or stored, each with its method, its settings and its share of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from uhkd.cache import TeacherCache
from uhkd.console import escape, log_info
from uhkd.data import DataSplits
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import Evaluation
from uhkd.features import FeatureExtractor, OutputShapes, PairShapes
from uhkd.methods import (
    DistillationLoss,
    build_losses,
    default_balance,
    resolve_settings,
    uses_logits,
)
from uhkd.models import fingerprint
from uhkd.recipe import DistillRecipe, balance_settings
from uhkd.runs import RunFolder
from uhkd.training.balance import Balance, Lead, make_balance
from uhkd.training.cache_checks import cache_metadata, open_cache
from uhkd.training.inputs import Inputs
from uhkd.training.label_free import ProbeEvaluator, weights_without_labels
from uhkd.training.load_teacher import prepare_teacher


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher of one student: its recipe, network or cache, the weights of its terms, its share of the loss, and facts.

    evaluation: on the validation images, where they have labels and it is live. The method scratch has one without source.
    """

    recipe: DistillRecipe
    source: FeatureExtractor | TeacherCache | None
    weights: dict[str, float]
    share: float
    facts: dict[str, Any]
    evaluation: Evaluation | None = None

    @property
    def shapes(self) -> OutputShapes | None:
        return (
            self.source.manifest.shapes if isinstance(self.source, TeacherCache) else self.source and self.source.shapes
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of its classes, where they are known."""
        card = self.source.card if isinstance(self.source, FeatureExtractor) else None
        return () if card is None else tuple(card.classes)


def prepare_teachers(
    recipe: DistillRecipe,
    modules: nn.Module | Sequence[nn.Module | None] | None,
    inputs: Inputs,
    evaluator: ProbeEvaluator | None,
) -> list[PreparedTeacher]:
    """Return the recipe's teachers, ready for use; `modules` replace its names.

    Raises:
        UhkdError: for a teacher that cannot be used, or is at chance level.
    """
    taught = recipe.teacher_recipes()
    if modules is None or isinstance(modules, nn.Module):
        modules = [modules] * len(taught)
    teachers = []
    for number, ((one, share), module) in enumerate(zip(taught, modules, strict=True), 1):
        if len(taught) > 1:
            log_info(f"teacher {number} of {len(taught)}: {one.teacher}, by {one.method}, share {share:.0%}")
        source, facts, evaluation = None, {}, None
        if one.method == "scratch":
            pass
        elif one.teacher_cache is not None:
            source = open_cache(one, inputs.data, module)
            facts = cache_metadata(source, one)
        else:
            source, evaluation = prepare_teacher(
                one, inputs, module, evaluator=evaluator, number=number if len(taught) > 1 else None
            )
            facts = {
                "teacher": one.teacher,
                "teacher_metrics": evaluation.metrics if evaluation else {},
                "teacher_fingerprint": fingerprint(source),
            }
        weights = one.weights if inputs.data.classes else weights_without_labels(one, source)
        teachers.append(PreparedTeacher(one, source, weights, share, facts, evaluation))
    return teachers


def student_classes(data: DataSplits, teachers: Sequence[PreparedTeacher]) -> tuple[int, tuple[str, ...]]:
    """How many classes the student has and their names: the data's, or else those of the first teacher whose logits count.

    Raises:
        UhkdError: where the logits of several count and their classes are not the same in the same order.
    """
    if data.classes:
        return len(data.classes), data.classes
    prepared = []
    for one in teachers:
        logits = one.shapes and one.shapes.logits
        if logits and uses_logits(one.recipe.method, one.recipe.settings, one.weights):
            prepared.append((one, logits, one.names if len(one.names) == logits else ()))
    named = [(one, names) for one, _, names in prepared if names]
    for one, names in named[1:]:
        if names != named[0][1]:
            raise UhkdError(
                f"the teachers {named[0][0].recipe.teacher} and {one.recipe.teacher} know other classes, or the same in "
                f"another order ({', '.join(map(escape, named[0][1][:3]))}, ... and {', '.join(map(escape, names[:3]))}, ...), "
                "and without labels one head learns both: leave one out, or give it a method without logits, as rsd"
            )
    if prepared:
        _, logits, names = prepared[0]
        log_info(f"  no labels: the student learns the {logits} classes of its teacher")
        return logits, names
    log_info("  no labels and no logits to imitate: the student is a backbone without head")
    return 0, ()


def distillers_of(
    teachers: Sequence[PreparedTeacher], student: FeatureExtractor, classes: int, data: DataSplits
) -> nn.ModuleDict:
    """The methods of all teachers, their weights in shares; of several teachers under numbered names.

    Raises:
        UhkdError: as `uhkd.methods.build_losses`, naming the teacher among several.
    """
    distillers = nn.ModuleDict()
    for number, one in enumerate(teachers, 1):
        recipe, shapes = one.recipe, PairShapes(student.shapes, one.shapes, classes, len(data.train))
        try:
            own = build_losses(recipe.method, shapes, recipe.settings, one.weights)
        except ValueError as error:
            which = f"teacher {number} ({recipe.teacher}): " if len(teachers) > 1 else ""
            raise UhkdError(f"{which}{error}") from error
        for name, loss in own.items():
            assert isinstance(loss, DistillationLoss)
            loss.teacher_index = number - 1
            if len(teachers) > 1:
                loss.weights = {term: weight * one.share for term, weight in loss.weights.items()}
            distillers[f"{number}:{name}" if len(teachers) > 1 else name] = loss
    return distillers


def resolve_balance(recipe: DistillRecipe, run: RunFolder | None) -> DistillRecipe:
    """Return the recipe with its balance named and all settings of it written out; one that is resumed (`run`) keeps its own.

    Raises:
        UhkdError: for an unknown method.
    """
    name, settings = recipe.balance, recipe.balance_settings
    if name is None and run is not None:
        before = run.read_recipe()
        name, settings = before["balance"], before.get("balance_settings", {})
    if name is None:
        defaults = [default_balance(one.method) for one, _ in recipe.teacher_recipes()]
        name = next((one for one in defaults if one != "constant"), "constant")
    full = balance_settings(name, settings).model_dump()
    return recipe.model_copy(update={"balance": name, "balance_settings": full})


def balance_of(
    recipe: DistillRecipe, teachers: Sequence[PreparedTeacher], distillers: nn.ModuleDict, classes: int, *, labels: bool
) -> Balance | None:
    """Return how much the terms of all teachers count over the training, and say so where it is not constant.

    A teacher whose logits are not of the student's classes has no lead that could be measured; without labels neither has one
    whose logits no method reads.

    Raises:
        UhkdError: as `make_balance`.
    """
    led, bounds = [], []
    for place, one in enumerate(teachers):
        own = [d for d in distillers.values() if isinstance(d, DistillationLoss) and d.teacher_index == place]
        stored = one.source.manifest.layout.logits if isinstance(one.source, TeacherCache) else None
        logits = stored if isinstance(one.source, TeacherCache) else one.shapes and one.shapes.logits
        reads = any("logits" in d.needs.student & d.needs.teacher for d in own)
        led.append(bool(classes) and logits == classes and (labels or reads))
        bounds.append(float(one.facts.get("teacher_metrics", {}).get("accuracy", 1.0)) if labels else 1.0)
    assert recipe.balance is not None
    balance = make_balance(recipe.balance, recipe.balance_settings, distillers, led=led, bounds=bounds, labels=labels)
    if isinstance(balance, Lead):
        for line in balance.described():
            log_info(f"  {line}")
    elif balance is not None:
        log_info(f"  balance: {recipe.balance}")
    return balance


def facts_of_teachers(teachers: Sequence[PreparedTeacher]) -> dict[str, Any]:
    """What a run notes of its teachers."""
    plans = [resolve_settings(one.recipe.method, one.recipe.settings, one.weights) for one in teachers]
    if len(teachers) == 1:
        return {"methods": plans[0]} | {k: v for k, v in teachers[0].facts.items() if v is not None}
    names = [str(one.recipe.teacher) for one in teachers]
    each = [
        {"method": one.recipe.method, "methods": own, "share": one.share} | one.facts
        for one, own in zip(teachers, plans, strict=True)
    ]
    methods = list(dict.fromkeys(one.recipe.method for one in teachers))
    prints = "+".join(str(one.facts["teacher_fingerprint"]) for one in teachers)
    return {
        "teacher": " and ".join(names),
        "method": " and ".join(methods),
        "methods": {
            f"{number}:{name}": options for number, own in enumerate(plans, 1) for name, options in own.items()
        },
        "teachers": each,
        "teacher_metrics": {},
        "teacher_fingerprint": prints,
    }
