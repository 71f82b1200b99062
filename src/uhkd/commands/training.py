"""`finetune` and `distill`: from a recipe to a trained network in a run folder."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from uhkd.commands.noting import note_rest, sizes
from uhkd.commands.outcome import ended, next_steps
from uhkd.commands.setup import (
    choose_augmentation,
    choose_device,
    choose_workers,
    fit_batch,
    image_size,
    make_fabric,
    open_recipe_data,
    run_folder,
    say,
    tell_augmentation,
    tell_machine,
)
from uhkd.commands.stored import facts_of, follow, open_stored, tell_other_views
from uhkd.commands.students import finished_network, first_network, freeze_unreached
from uhkd.commands.teaching import prepare_teacher, save_probe, settle_ftm
from uhkd.commands.unlabelled import Lesson, agreement, described, lesson_without_labels, open_judge, tell_unreached
from uhkd.data import Augmentation, Data
from uhkd.engine import Job, Learner, StoredTeacher, Teacher, check_loggers, check_needs, check_tensors, train
from uhkd.evaluation import Evaluation
from uhkd.methods import Distiller, build, check, effective
from uhkd.models import fingerprint
from uhkd.pictures import draw
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.stored import Stored
from uhkd.taps import Shapes, TappedModel
from uhkd.telling import put

Recipe = TypeVar("Recipe", bound=TrainRecipe)


@dataclass(frozen=True)
class Result:
    """A finished training: the network in eval mode, its last metrics, and the folder that holds everything."""

    student: TappedModel
    metrics: dict[str, float]
    run: RunFolder

    def as_json(self) -> dict[str, Any]:
        """What result.json holds, and where the run lies."""
        return {"run": str(self.run.path), **(self.run.read_result() if self.run.result.is_file() else {})}


def finetune(recipe: FinetuneRecipe, *, model: nn.Module | None = None, data: Any = None) -> Result:
    """Train one network on labels. `model` and `data` replace the recipe's words by objects of the user's own.

    Raises:
        ValueError: for anything in recipe, data or model that cannot be used as asked.
    """
    recipe, opened, fabric, folder = _begin(recipe, "finetune", data)
    if recipe.resume and folder.result.is_file():
        return _finished(folder, model, fabric)
    if not opened.classes:
        raise ValueError(
            f"data {opened.name} has no labels, and finetune learns from them alone; expected class folders or (image, label) "
            "pairs, or distil a teacher, which needs none"
        )
    network = first_network(
        model, recipe.model, recipe.start, recipe.options, recipe.levels, recipe, opened, len(opened.classes)
    ).to(fabric.device)
    learner = Learner(network, nn.ModuleDict(), recipe.label_smoothing)
    return _train(recipe, opened, fabric, folder, learner, None, {"verb": "finetune", "model": recipe.model})


def distill(
    recipe: DistillRecipe, *, teacher: nn.Module | None = None, student: nn.Module | None = None, data: Any = None
) -> Result:
    """Train a student to imitate a teacher. The keyword arguments replace the recipe's words by objects of the user's own.

    Raises:
        ValueError: for anything in recipe, data, teacher or student that cannot be used as asked.
    """
    check(recipe.method, recipe.settings, recipe.weights)
    asked = recipe
    recipe, opened, fabric, folder = _begin(recipe, recipe.method, data)
    if recipe.resume and folder.result.is_file():
        return _finished(folder, student, fabric)
    workers = choose_workers(recipe, opened, fabric.device.type)
    judge = open_judge(recipe, opened, fabric, workers)

    def heard() -> tuple[TappedModel | Stored | None, dict[str, Any], Evaluation | None]:
        if recipe.method == "scratch" and opened.classes:
            return None, {}, None
        if recipe.teacher_cache is not None:
            stored = open_stored(recipe, opened, teacher)
            return stored, facts_of(stored, recipe), None
        sealed, said = prepare_teacher(recipe, opened, fabric, folder, workers, teacher, judge=judge)
        return (
            sealed,
            {"teacher_metrics": said.metrics if said else {}, "teacher_fingerprint": fingerprint(sealed)},
            said,
        )

    lesson = Lesson(len(opened.classes), opened.classes, recipe.weights)
    source, known, said = (None, {}, None) if opened.classes else heard()
    if not opened.classes:  # the teacher's classes, where its logits are imitated, are the student's
        lesson = lesson_without_labels(recipe, source)
    network = first_network(
        student,
        recipe.student,
        recipe.student_start,
        recipe.student_options,
        recipe.student_levels,
        recipe,
        opened,
        lesson.classes,
    ).to(fabric.device)
    if opened.classes:
        source, known, said = heard()
    if isinstance(source, Stored):
        tell_other_views(asked, opened, network, source)
    facts: dict[str, Any] = {"verb": "distill", "teacher": recipe.teacher, "student": recipe.student}
    facts |= {"method": recipe.method, "methods": effective(recipe.method, recipe.settings, lesson.weights)} | known
    taught = source.manifest.shapes if isinstance(source, Stored) else source and source.shapes
    shapes = Shapes(network.shapes, taught, lesson.classes, len(opened.train))
    torch.manual_seed(recipe.seed + 1)  # a method's own layers never shift the student's first weights
    distillers = build(recipe.method, shapes, recipe.settings, lesson.weights).to(fabric.device)
    learner = Learner(network, distillers, recipe.label_smoothing)
    if opened.classes:
        return _train(recipe, opened, fabric, folder, learner, source, facts, said)
    network.card = replace(network.card, classes=lesson.names)
    if judge is not None:
        facts["probe"] = described(judge, network)
    tell_unreached(freeze_unreached(network, learner.student_needs), learner.student_needs)
    judged = judge or agreement(source, lesson.classes, opened, fabric, workers)
    result = _train(recipe, opened, fabric, folder, learner, source, facts, judge=judged)
    result.student.requires_grad_(True)
    return result


def _begin(recipe: Recipe, label: str, data: Any) -> tuple[Recipe, Data, Fabric, RunFolder]:
    """Settle machine, processes, data and batch, and see that the folder can be written, before anything slow."""
    check_loggers(recipe.log)
    device, precision = choose_device(recipe)
    fabric = make_fabric(device, precision, recipe.deterministic)
    # a name with the time in it is one for all processes
    folder = RunFolder(fabric.broadcast(str(run_folder(recipe, label).path)))
    if not (recipe.resume and folder.started()):
        folder.check({}, resume=recipe.resume)
    tell_machine(recipe, device, precision)
    opened = open_recipe_data(recipe, data)
    if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
        recipe = follow(recipe, folder)
    recipe = fit_batch(recipe, opened).resolved().model_copy(update={"precision": precision, "out": str(folder.path)})
    if recipe.batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} must be a multiple of the number of processes, {fabric.world_size}; for example "
            f"--batch-size {-(-recipe.batch_size // fabric.world_size) * fabric.world_size}"
        )
    if recipe.resume:
        folder.check(recipe.model_dump(mode="json"), resume=True)
    fabric.barrier()  # nobody writes before all have looked
    return recipe, opened, fabric, folder


def _finished(folder: RunFolder, module: nn.Module | None, fabric: Fabric) -> Result:
    """The result of a run that needs no resuming: nothing is trained again."""
    say(f"{folder.path} is finished: there is nothing to resume, and this is its result")
    network = finished_network(folder, module)
    return Result(network.to(fabric.device).eval(), folder.read_result()["metrics"], folder)


def _train(
    recipe: TrainRecipe,
    data: Data,
    fabric: Fabric,
    folder: RunFolder,
    learner: Learner,
    teacher: TappedModel | Stored | None,
    facts: dict[str, Any],
    taught: Evaluation | None = None,
    judge: Callable[[TappedModel], dict[str, float]] | None = None,
) -> Result:
    student = learner.to(memory_format=torch.channels_last).student
    workers = choose_workers(recipe, data, fabric.device.type)
    if isinstance(teacher, Stored):
        augmentation = teacher.manifest.augmentation
    else:
        augmentation = choose_augmentation(recipe, data, [student] if teacher is None else [student, teacher])
    tell_augmentation(augmentation)
    val_size = image_size(data, [student])  # what `uhkd eval` shows it, whatever size the teacher wants
    targets = [d.needs.target for d in learner.distillers.values() if isinstance(d, Distiller) and d.needs.target]
    target, sealed = next(iter(targets), None), None
    if isinstance(teacher, Stored):
        for name, distiller in learner.distillers.items():
            assert isinstance(distiller, Distiller)
            check_needs(name, distiller.needs, teacher)
        assert isinstance(recipe, DistillRecipe)
        sealed = StoredTeacher(teacher, target, recipe.teacher_views)
    # nothing that is refused before it leaves a folder behind; of several processes the first alone writes
    with folder.mine() if fabric.is_global_zero else contextlib.nullcontext():
        if fabric.is_global_zero:
            with folder.writing("the run's recipe", "nothing was trained yet"):
                folder.begin(recipe.model_dump(mode="json"))
                if isinstance(teacher, TappedModel):
                    save_probe(teacher, folder)
        fabric.barrier()
        if isinstance(teacher, TappedModel):
            sealed = Teacher(teacher, target, fabric.autocast)
            if sealed.ftm is not None:
                _settle_ftm(sealed, recipe, data, augmentation, fabric, folder, workers)
        say(
            f"training {_millions(student)} parameters for {recipe.epochs} epochs, batch {recipe.batch_size}, "
            f"{recipe.optimizer} lr {recipe.learning_rate:g}"
            f"{f', weights averaged with decay {recipe.ema_decay}' if recipe.ema_decay else ''}; writing to {folder.path}"
        )
        ce_weight = float(getattr(recipe, "weights", {}).get("ce", 1.0))
        rows = train(
            Job(learner, sealed, data, augmentation, val_size, recipe, folder, fabric, workers, ce_weight, judge, say)
        )
        student.eval()
        if fabric.is_global_zero:
            card = replace(student.card, classes=data.classes or student.card.classes).to_json()
            parameters = sum(p.numel() for p in student.module.parameters())
            extra = sum(p.numel() for p in learner.distillers.parameters())
            facts |= {"seed": recipe.seed, "metrics": rows[-1], "parameters": parameters, "extra_parameters": extra}
            facts |= {"data": data.name, "data_fingerprint": data.fingerprint, "train_images": len(data.train)}
            facts |= {"environment": folder.read_environment(), "sizes": {"student": sizes(student)}}
            live = teacher if isinstance(teacher, TappedModel) else None
            facts["sizes"] |= {} if live is None else {"teacher": sizes(live)}
            with folder.writing("the trained network", f"the checkpoint of step {rows[-1]['step']} is kept"):
                folder.write_model(card, student.module.state_dict())
                note_rest(folder, data, val_size, live, taught, show=recipe.thumbnails)
                pictures = ", ".join(path.name for path in draw(folder))
                folder.write_json(folder.result.name, facts)  # the last: it says "finished"
            folder.drop_checkpoints()
            for line in ended(facts):
                put(line)
            say(f"run folder {folder.path} with {pictures}")
            if card["name"].startswith("module/"):
                say(f'its weights: uhkd.models.load_state("{folder.weights}"), into a module of your own')
            else:
                for line in next_steps(folder.path, headless=not student.shapes.logits):
                    say(line)
        return Result(student, rows[-1], folder)


def _settle_ftm(
    teacher: Teacher,
    recipe: TrainRecipe,
    data: Data,
    augmentation: Augmentation,
    fabric: Fabric,
    folder: RunFolder,
    workers: int,
) -> None:
    """Statistics from the checkpoint, or from one pass over training images."""
    assert teacher.ftm is not None
    own = teacher.kept()

    def saved(checkpoint: Checkpoint) -> dict[str, Tensor]:
        return {k: v for k, v in checkpoint.tensors.items() if k.startswith("ftm.")}

    found = folder.read_checkpoint(lambda checkpoint: check_tensors(saved(checkpoint), own, own))
    if found is not None:
        teacher.ftm.load_state_dict({k.removeprefix("ftm."): v for k, v in saved(found).items()})
        return
    settle_ftm(teacher, data, augmentation, recipe.seed, fabric, workers)
    # two devices may order or sign principal channels otherwise
    teacher.ftm.load_state_dict(fabric.broadcast(teacher.ftm.state_dict()))


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
