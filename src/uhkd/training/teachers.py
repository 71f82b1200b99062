"""The teachers of a student: one or several, as networks or a cache, each with its method, settings and share of the loss."""

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
from uhkd.methods import DistillationLoss, build_losses, default_balance, resolve_settings, uses_logits
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
    """A teacher of one student, ready for use.

    Args:
        recipe: with the teacher's name, method and settings.
        source: network or cache; None for the method scratch.
        weights: of its terms.
        share: of the loss, 0..1.
        facts: for result.json.
        evaluation: of a network on the validation images, if they have labels.
    """

    recipe: DistillRecipe
    source: FeatureExtractor | TeacherCache | None
    weights: dict[str, float]
    share: float
    facts: dict[str, Any]
    evaluation: Evaluation | None = None

    @property
    def shapes(self) -> OutputShapes | None:
        if isinstance(self.source, TeacherCache):
            return self.source.manifest.shapes
        return self.source and self.source.shapes

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its classes; empty if unknown."""
        config = self.source.config if isinstance(self.source, FeatureExtractor) else None
        return () if config is None else tuple(config.classes)


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
    recipes = recipe.teacher_recipes()
    several = len(recipes) > 1
    if modules is None or isinstance(modules, nn.Module):
        modules = [modules] * len(recipes)
    teachers = []
    for number, ((own_recipe, share), module) in enumerate(zip(recipes, modules, strict=True), 1):
        if several:
            description = f"{own_recipe.teacher}, by {own_recipe.method}, share {share:.0%}"
            log_info(f"teacher {number} of {len(recipes)}: {description}")
        source, facts, evaluation = None, {}, None
        if own_recipe.teacher_cache is not None and own_recipe.method != "scratch":
            source = open_cache(own_recipe, inputs.data, module)
            facts = cache_metadata(source, own_recipe)
        elif own_recipe.method != "scratch":
            source, evaluation = prepare_teacher(
                own_recipe, inputs, module, evaluator=evaluator, number=number if several else None
            )
            facts = {
                "teacher": own_recipe.teacher,
                "teacher_metrics": evaluation.metrics if evaluation else {},
                "teacher_fingerprint": fingerprint(source),
            }
        weights = own_recipe.weights if inputs.data.classes else weights_without_labels(own_recipe, source)
        teachers.append(PreparedTeacher(own_recipe, source, weights, share, facts, evaluation))
    return teachers


def student_classes(data: DataSplits, teachers: Sequence[PreparedTeacher]) -> tuple[int, tuple[str, ...]]:
    """Return the number of the student's classes and their names.

    They are those of the data, or without labels those of the first teacher with a term on logits.

    Raises:
        UhkdError: if several teachers have terms on logits and their classes are not the same in the same order.
    """
    if data.classes:
        return len(data.classes), data.classes
    candidates = []
    for teacher in teachers:
        count = teacher.shapes and teacher.shapes.logits
        if count and uses_logits(teacher.recipe.method, teacher.recipe.settings, teacher.weights):
            candidates.append((teacher, count, teacher.names if len(teacher.names) == count else ()))
    named = [(teacher.recipe.teacher, names) for teacher, _, names in candidates if names]
    for teacher, names in named[1:]:
        first, first_names = named[0]
        if names != first_names:
            raise UhkdError(
                f"the teachers {first} and {teacher} have other classes, or the same in another order "
                f"({', '.join(map(escape, first_names[:3]))}, ... and {', '.join(map(escape, names[:3]))}, ...), and without "
                "labels one head learns both: leave one out, or give it a method without logits, as rsd"
            )
    if candidates:
        _, count, names = candidates[0]
        log_info(f"  no labels: the student learns the {count} classes of its teacher")
        return count, names
    log_info("  no labels and no terms on logits: the student is a backbone without a head")
    return 0, ()


def distillers_of(
    teachers: Sequence[PreparedTeacher], student: FeatureExtractor, classes: int, data: DataSplits
) -> nn.ModuleDict:
    """Return the losses of all teachers by name, their weights times the teacher's share.

    With several teachers the name has the teacher's number: "2:uhkd". The names are parts of the names of tensors in
    checkpoints and of metrics.

    Raises:
        UhkdError: as `uhkd.methods.build_losses`; with several teachers the message names the teacher.
    """
    several, distillers = len(teachers) > 1, nn.ModuleDict()
    for index, teacher in enumerate(teachers):
        recipe, shapes = teacher.recipe, PairShapes(student.shapes, teacher.shapes, classes, len(data.train))
        try:
            losses = build_losses(recipe.method, shapes, recipe.settings, teacher.weights)
        except ValueError as error:  # a plug-in may raise a plain one
            which = f"teacher {index + 1} ({recipe.teacher}): " if several else ""
            raise UhkdError(f"{which}{error}") from error
        for name, loss in losses.items():
            assert isinstance(loss, DistillationLoss)
            loss.teacher_index = index
            if several:
                loss.weights = {term: weight * teacher.share for term, weight in loss.weights.items()}
            distillers[f"{index + 1}:{name}" if several else name] = loss
    return distillers


def resolve_balance(recipe: DistillRecipe, run: RunFolder | None) -> DistillRecipe:
    """Return the recipe with its balance and all settings of it filled in; a resumed run (`run`) keeps the balance it had.

    Raises:
        UhkdError: for an unknown method.
    """
    name, settings = recipe.balance, recipe.balance_settings
    if name is None and run is not None:
        before = run.read_recipe()
        name, settings = before["balance"], before.get("balance_settings", {})
    if name is None:
        defaults = [default_balance(teacher_recipe.method) for teacher_recipe, _ in recipe.teacher_recipes()]
        name = next((default for default in defaults if default != "constant"), "constant")
    full = balance_settings(name, settings).model_dump()
    return recipe.model_copy(update={"balance": name, "balance_settings": full})


def balance_of(
    recipe: DistillRecipe, teachers: Sequence[PreparedTeacher], distillers: nn.ModuleDict, classes: int, *, labels: bool
) -> Balance | None:
    """Return the balance of the terms of all teachers, and log it if it is not constant.

    The lead of a teacher is measured if its logits are those of the student's classes; without labels also one of its methods
    must read them.

    Raises:
        UhkdError: as `make_balance`.
    """
    has_accuracy, bounds = [], []
    for index, teacher in enumerate(teachers):
        losses = [d for d in distillers.values() if isinstance(d, DistillationLoss) and d.teacher_index == index]
        if isinstance(teacher.source, TeacherCache):
            logits = teacher.source.manifest.record_format.logits
        else:
            logits = teacher.shapes and teacher.shapes.logits
        reads_logits = any("logits" in loss.needs.student & loss.needs.teacher for loss in losses)
        has_accuracy.append(bool(classes) and logits == classes and (labels or reads_logits))
        bounds.append(teacher.facts.get("teacher_metrics", {}).get("accuracy") if labels else None)
    assert recipe.balance is not None
    balance = make_balance(
        recipe.balance, recipe.balance_settings, distillers, has_accuracy=has_accuracy, bounds=bounds, labels=labels
    )
    if isinstance(balance, Lead):
        for line in balance.described():
            log_info(f"  {line}")
    elif balance is not None:
        log_info(f"  balance: {recipe.balance}")
    return balance


def facts_of_teachers(teachers: Sequence[PreparedTeacher]) -> dict[str, Any]:
    """Return the facts about the teachers for result.json."""
    methods = [resolve_settings(t.recipe.method, t.recipe.settings, t.weights) for t in teachers]
    if len(teachers) == 1:
        return {"methods": methods[0]} | {k: v for k, v in teachers[0].facts.items() if v is not None}
    numbered = enumerate(methods, 1)
    return {
        "teacher": " and ".join(str(t.recipe.teacher) for t in teachers),
        "method": " and ".join(dict.fromkeys(t.recipe.method for t in teachers)),
        "methods": {f"{number}:{name}": options for number, plan in numbered for name, options in plan.items()},
        "teachers": [
            {"method": t.recipe.method, "methods": plan, "share": t.share} | t.facts
            for t, plan in zip(teachers, methods, strict=True)
        ],
        "teacher_metrics": {},
        "teacher_fingerprint": "+".join(str(t.facts["teacher_fingerprint"]) for t in teachers),
    }
