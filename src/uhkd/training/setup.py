"""The assembly of a training: `prepare` builds data, networks, teachers and losses from a recipe, also for dry runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from uhkd.cache import TeacherCache
from uhkd.console import log_info
from uhkd.data import Augmentation
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.methods import parse_methods
from uhkd.models import has_weights
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe
from uhkd.runs import RunFolder
from uhkd.training.cache_checks import inherit_cache_views, log_view_mismatch
from uhkd.training.cached_teacher import CachedTeacher, check_needs
from uhkd.training.class_balance import weights_of_classes
from uhkd.training.defaults import choose_image_size, choose_length, choose_start, keep_choices
from uhkd.training.freeze import FrozenParts
from uhkd.training.inputs import (
    Inputs,
    choose_augmentation,
    image_size,
    log_augmentation,
    open_recipe_data,
    record_split,
    run_folder,
)
from uhkd.training.label_free import describe_probe, log_frozen, make_agreement_evaluator, make_probe_evaluator
from uhkd.training.learner import StudentWithLosses
from uhkd.training.load_teacher import build_teacher_module
from uhkd.training.loggers import check_loggers
from uhkd.training.machine import choose_device, choose_workers, log_device, make_fabric
from uhkd.training.students import build_student, check_separate, freeze_unused
from uhkd.training.teacher import Teacher, TeacherSource
from uhkd.training.teachers import (
    PreparedTeacher,
    balance_of,
    distillers_of,
    facts_of_teachers,
    prepare_teachers,
    resolve_balance,
    student_classes,
)


@dataclass(kw_only=True)
class Setup(Inputs):
    """The parts of one training.

    Args:
        recipe: with every default resolved.
        finished: whether the run to resume is finished; there are no networks then.
        teachers: as loaded, with their share of the loss and facts for result.json.
        learner: student and losses.
        frozen: parts of the student that do not learn.
        teacher: source of the teacher outputs; None without a teacher.
        augmentation: of the training images.
        val_size: height and width of validation images in pixels.
        evaluator: measures the student if there are no labels, in place of the accuracy.
        facts: for result.json.
    """

    recipe: TrainRecipe
    finished: bool = False
    teachers: list[PreparedTeacher] = field(default_factory=list)
    learner: StudentWithLosses = field(init=False)
    frozen: FrozenParts = field(init=False)
    teacher: TeacherSource | None = None
    augmentation: Augmentation = field(init=False)
    val_size: tuple[int, int] = field(init=False)
    evaluator: Callable[[FeatureExtractor], dict[str, float]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> list[FeatureExtractor]:
        """The teacher networks that run during training."""
        return [t.source for t in self.teachers if isinstance(t.source, FeatureExtractor)]

    @property
    def cache(self) -> TeacherCache | None:
        """The cache in place of a teacher network; it is then the only teacher."""
        return next((t.source for t in self.teachers if isinstance(t.source, TeacherCache)), None)

    @property
    def live_teachers(self) -> tuple[Teacher, ...]:
        """The teachers that run during training, each with the statistics of its spectra."""
        return () if self.teacher is None else self.teacher.each_teacher()

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy."""
        return float(getattr(self.recipe, "weights", {}).get("ce", 1.0))


def prepare(
    recipe: FinetuneRecipe | DistillRecipe,
    *,
    model: nn.Module | None = None,
    teacher: nn.Module | Sequence[nn.Module | None] | None = None,
    data: Any = None,
    dry_run: bool = False,
) -> Setup:
    """Assemble a training, without writing anything.

    Args:
        recipe: the options of the training.
        model: network to train, in place of the recipe's name.
        teacher: likewise; for several teachers a list, with None where the recipe's name is used.
        data: a Dataset or a pair of them, in place of the recipe's.
        dry_run: see `Inputs`.

    Raises:
        UhkdError: for anything in recipe, data or networks that cannot be used; no folder is created.
    """
    for teacher_recipe, _ in recipe.teacher_recipes() if isinstance(recipe, DistillRecipe) else ():
        parse_methods(teacher_recipe.method, teacher_recipe.settings, teacher_recipe.weights)
    for module in teacher if isinstance(teacher, Sequence) else [teacher]:
        check_separate(model, module)
    setup = _open(recipe, data, dry_run, model, teacher)
    if setup.finished:
        return setup
    class_weights = weights_of_classes(setup.recipe, setup.data)
    if isinstance(setup.recipe, DistillRecipe):
        assert isinstance(recipe, DistillRecipe)
        _add_student_and_teachers(setup, setup.recipe, recipe, model, teacher)
    else:
        assert isinstance(setup.recipe, FinetuneRecipe)
        if not setup.data.classes:
            raise UhkdError(
                f"data {setup.data.name} has no labels, and finetune learns only from labels; expected class folders or (image, "
                "label) pairs, or distil a teacher, which needs none"
            )
        network = build_student(setup.recipe, setup, model, len(setup.data.classes)).to(setup.fabric.device)
        setup.learner = StudentWithLosses(network, nn.ModuleDict(), setup.recipe.label_smoothing)
        setup.facts = {"verb": "finetune", "model": setup.recipe.model}
    distilling = isinstance(recipe, DistillRecipe)
    name, start = (recipe.student, recipe.student_start) if distilling else (recipe.model, recipe.start)
    random = model is None and start == "random" and not has_weights(name)
    setup.frozen = FrozenParts(setup.learner.student, setup.recipe.freeze, random=random)
    if class_weights is not None:
        setup.learner.class_weights = class_weights.to(setup.fabric.device)
    if setup.learner.choose_memory_format().contiguous:
        log_info(
            "  not channels last: a strided 1x1 convolution of few channels, for which oneDNN is wrong on this processor"
        )
    _add_augmentation(setup)
    _add_teacher_source(setup)
    return setup


def _open(
    given: FinetuneRecipe | DistillRecipe,
    data: Any,
    dry_run: bool,
    model: nn.Module | None,
    teacher: nn.Module | Sequence[nn.Module | None] | None,
) -> Setup:
    """Choose device, processes, data and batch size, and check that the folder can be written, before anything slow."""
    recipe = given
    check_loggers(recipe.log)
    device, precision = choose_device(recipe)
    fabric = make_fabric(device, precision, recipe.deterministic)
    # the default name contains the time: all processes use that of the first
    label = recipe.method if isinstance(recipe, DistillRecipe) else "finetune"
    folder = RunFolder(fabric.broadcast(str(run_folder(recipe, label).path)))
    resumed = recipe.resume and folder.started()
    if resumed:
        recipe = keep_choices(recipe, folder)
    else:
        folder.check({}, resume=recipe.resume)
    log_device(recipe, device, precision)
    if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
        recipe = inherit_cache_views(recipe, folder)
    opened = open_recipe_data(recipe, data)
    recipe = record_split(recipe, opened)
    recipe = choose_start(recipe, module=model is not None)
    if not resumed:
        recipe = choose_image_size(recipe, opened, teacher, module=model is not None)
    if isinstance(recipe, DistillRecipe):
        recipe = resolve_balance(recipe, folder if resumed else None)
    recipe = choose_length(recipe, len(opened.train), fabric.world_size).resolved()
    recipe = recipe.model_copy(update={"precision": precision, "out": str(folder.path)})
    if recipe.resume:
        folder.check(recipe.model_dump(mode="json"), resume=True, defaults=recipe.defaults())
    fabric.barrier()  # no process writes before all have checked the folder
    workers = choose_workers(recipe, opened, fabric.device.type)
    return Setup(
        recipe=recipe,
        fabric=fabric,
        folder=folder,
        data=opened,
        workers=workers,
        dry_run=dry_run,
        finished=recipe.resume and folder.result.is_file() and not dry_run,
    )


def _add_student_and_teachers(
    setup: Setup,
    recipe: DistillRecipe,
    given: DistillRecipe,
    model: nn.Module | None,
    modules: nn.Module | Sequence[nn.Module | None] | None,
) -> None:
    """Add student, teachers, losses and balance. `given`: the recipe without the defaults taken from its cache."""
    data, fabric = setup.data, setup.fabric
    evaluator = make_probe_evaluator(recipe, data, fabric, setup.workers)
    # without labels the student has the teacher's classes; with labels errors of the student come first: it is built faster
    teachers = [] if data.classes else prepare_teachers(recipe, modules, setup, evaluator)
    classes, names = student_classes(data, teachers)
    network = build_student(recipe, setup, model, classes).to(fabric.device)
    setup.teachers = teachers = teachers or prepare_teachers(recipe, modules, setup, evaluator)
    if setup.cache is not None:
        log_view_mismatch(given, data, network, setup.cache)
    torch.manual_seed(recipe.seed + 1)  # the student's initial weights do not depend on the method's layers
    distillers = distillers_of(teachers, network, classes, data).to(fabric.device)
    balance = balance_of(recipe, teachers, distillers, classes, labels=bool(data.classes))
    setup.learner = StudentWithLosses(network, distillers, recipe.label_smoothing, balance)
    setup.facts = {"verb": "distill", "teacher": recipe.teacher, "student": recipe.student, "method": recipe.method}
    setup.facts |= facts_of_teachers(teachers)
    setup.facts |= {"balance": recipe.balance, "balance_settings": recipe.balance_settings}
    if data.classes:
        return
    network.config = replace(network.config, classes=names)
    if unused := freeze_unused(network, setup.learner.student_needs):
        log_frozen(sum(network.module.get_parameter(name).numel() for name in unused), setup.learner.student_needs)
        setup.facts["unused_parameters"] = unused
    if setup.dry_run:
        return
    if evaluator is not None:
        setup.facts["probe"] = describe_probe(evaluator, network)
    source = next(prepared.source for prepared in teachers if prepared.source is not None)
    setup.evaluator = evaluator or make_agreement_evaluator(source, classes, data, fabric, setup.workers)


def _add_augmentation(setup: Setup) -> None:
    """Add image sizes and augmentation: those of the cache, if there is one."""
    student = setup.learner.student
    if setup.cache is None:
        setup.augmentation = choose_augmentation(setup.recipe, setup.data, [student, *setup.networks])
    else:
        setup.augmentation = setup.cache.manifest.augmentation
    log_augmentation(setup.augmentation, setup.data, [student, *setup.networks])
    setup.val_size = image_size(setup.data, [student])  # as in `uhkd eval`, whatever the teacher's size


def _add_teacher_source(setup: Setup) -> None:
    """Add the source of the teacher outputs: the cache or the teacher networks."""
    learner = setup.learner
    if (cache := setup.cache) is not None:
        for name, loss in learner.losses.items():
            check_needs(name, loss.needs, cache)
        assert isinstance(setup.recipe, DistillRecipe)
        target = next((loss.needs.target for loss in learner.losses.values() if loss.needs.target), None)
        setup.teacher = CachedTeacher(cache, target, setup.recipe.teacher_views)
    elif setup.networks:
        setup.teacher = build_teacher_module(setup.networks, learner, setup.fabric.autocast)


def log_loss(weights: Mapping[str, float], *, labels: bool, balance: str = "constant") -> None:
    """Log the weights of a loss with more terms than the cross-entropy.

    labels: whether there are labels, and so a cross-entropy. balance: by name; it changes the weights unless it is "constant".
    """
    parts = [f"{weight:g} {name}" for name, weight in weights.items() if weight and (labels or name != "ce")]
    if len(parts) > 1:
        notes = [f"balance {balance} changes them"] if balance != "constant" else []
        notes += ["the value of the loss cannot be compared with that of finetune"] if labels else []
        end = f" ({'; '.join(notes)})" if notes else ""
        log_info(f"  weights of the loss terms: {', '.join(parts)}{end}")
