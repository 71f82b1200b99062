"""`finetune` and `distill`: from a recipe to a trained network in a run folder."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from uhkd.data import Data
from uhkd.evaluation import Evaluation
from uhkd.methods import Distiller, check
from uhkd.pictures import draw
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe, as_recorded
from uhkd.runs import RunFolder
from uhkd.stored import Stored
from uhkd.taps import TappedModel
from uhkd.telling import put
from uhkd.text import count
from uhkd.training import Job, Learner, StoredTeacher, Teachers, Trainer, check_loggers, check_needs
from uhkd.training.cache_checks import follow, tell_other_views
from uhkd.training.finish import note_rest, sizes
from uhkd.training.label_free import agreement, described, open_judge, tell_unreached
from uhkd.training.load_teacher import restore_ftm, save_probe, seal
from uhkd.training.setup import (
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
    tell_loss,
    tell_machine,
)
from uhkd.training.students import check_labels, finished_network, first_network, freeze_unreached
from uhkd.training.summary import ended, next_steps
from uhkd.training.teachers import (
    Call,
    balance_of,
    distillers_of,
    facts_of_voices,
    hear,
    settle_balance,
    student_classes,
)

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
    check_labels(opened)
    network = first_network(
        model, recipe.model, recipe.start, recipe.options, recipe.levels, recipe, opened, len(opened.classes)
    ).to(fabric.device)
    learner = Learner(network, nn.ModuleDict(), recipe.label_smoothing)
    return _train(recipe, opened, fabric, folder, learner, [], {"verb": "finetune", "model": recipe.model})


def distill(
    recipe: DistillRecipe,
    *,
    teacher: nn.Module | Sequence[nn.Module | None] | None = None,
    student: nn.Module | None = None,
    data: Any = None,
) -> Result:
    """Train a student to imitate a teacher, or several. The keyword arguments replace the recipe's words by the user's objects.

    teacher: of several, None where the recipe's word counts.

    Raises:
        ValueError: for anything in recipe, data, teacher or student that cannot be used as asked.
    """
    for one, _ in recipe.taught():
        check(one.method, one.settings, one.weights)
    asked = recipe
    recipe, opened, fabric, folder = _begin(recipe, recipe.method, data)
    if recipe.resume and folder.result.is_file():
        return _finished(folder, student, fabric)
    workers = choose_workers(recipe, opened, fabric.device.type)
    judge = open_judge(recipe, opened, fabric, workers)
    call = Call(opened, fabric, folder, workers, judge)
    # without labels the student's classes are the teacher's; with them a student that cannot be is refused sooner
    voices = [] if opened.classes else hear(recipe, teacher, call)
    classes, names = student_classes(opened, voices)
    network = first_network(
        student,
        recipe.student,
        recipe.student_start,
        recipe.student_options,
        recipe.student_levels,
        recipe,
        opened,
        classes,
    ).to(fabric.device)
    voices = voices or hear(recipe, teacher, call)
    for voice in voices:
        if isinstance(voice.source, Stored):
            tell_other_views(asked, opened, network, voice.source)
    facts = {"verb": "distill", "teacher": recipe.teacher, "student": recipe.student, "method": recipe.method}
    facts |= facts_of_voices(voices) | {"balance": recipe.balance, "balance_settings": recipe.balance_settings}
    torch.manual_seed(recipe.seed + 1)  # a method's own layers never shift the student's first weights
    distillers = distillers_of(voices, network, classes, opened).to(fabric.device)
    balance = balance_of(recipe, voices, distillers, classes, labels=bool(opened.classes))
    learner = Learner(network, distillers, recipe.label_smoothing, balance)
    sources = [voice.source for voice in voices if voice.source is not None]
    if opened.classes:
        said = voices[0].said if len(voices) == 1 else None
        return _train(recipe, opened, fabric, folder, learner, sources, facts, said)
    network.card = replace(network.card, classes=names)
    if judge is not None:
        facts["probe"] = described(judge, network)
    tell_unreached(freeze_unreached(network, learner.student_needs), learner.student_needs)
    judged = judge or agreement(sources[0], classes, opened, fabric, workers)
    result = _train(recipe, opened, fabric, folder, learner, sources, facts, judge=judged)
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
    if isinstance(recipe, DistillRecipe):
        recipe = settle_balance(recipe, folder if recipe.resume and folder.started() else None)
    recipe = fit_batch(recipe, opened).resolved().model_copy(update={"precision": precision, "out": str(folder.path)})
    if recipe.batch_size % fabric.world_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} must be a multiple of the number of processes, {fabric.world_size}; for example "
            f"--batch-size {-(-recipe.batch_size // fabric.world_size) * fabric.world_size}"
        )
    if recipe.resume:
        folder.check(recipe.model_dump(mode="json"), resume=True, defaults=recipe.defaults(), translate=as_recorded)
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
    teachers: Sequence[TappedModel | Stored],
    facts: dict[str, Any],
    taught: Evaluation | None = None,
    judge: Callable[[TappedModel], dict[str, float]] | None = None,
) -> Result:
    student = learner.to(memory_format=torch.channels_last).student
    workers = choose_workers(recipe, data, fabric.device.type)
    stored = next((teacher for teacher in teachers if isinstance(teacher, Stored)), None)  # then it is the only one
    networks = [teacher for teacher in teachers if isinstance(teacher, TappedModel)]
    if stored is not None:
        augmentation = stored.manifest.augmentation
    else:
        augmentation = choose_augmentation(recipe, data, [student, *networks])
    tell_augmentation(augmentation)
    val_size = image_size(data, [student])  # what `uhkd eval` shows it, whatever size the teacher wants
    sealed = None
    if stored is not None:
        distillers = {name: d for name, d in learner.distillers.items() if isinstance(d, Distiller)}
        for name, distiller in distillers.items():
            check_needs(name, distiller.needs, stored)
        assert isinstance(recipe, DistillRecipe)
        target = next((d.needs.target for d in distillers.values() if d.needs.target), None)
        sealed = StoredTeacher(stored, target, recipe.teacher_views)
    # nothing that is refused before it leaves a folder behind; of several processes the first alone writes
    with folder.mine() if fabric.is_global_zero else contextlib.nullcontext():
        if fabric.is_global_zero:
            with folder.writing("the run's recipe", "nothing was trained yet"):
                folder.begin(recipe.model_dump(mode="json"))
                for number, network in enumerate(networks, 1):
                    save_probe(network, folder, number if len(networks) > 1 else None)
        fabric.barrier()
        if networks:
            sealed = seal(networks, learner, fabric.autocast)
            for one in [one for one, _ in sealed.each] if isinstance(sealed, Teachers) else [sealed]:
                if one.ftm is not None:
                    restore_ftm(one, recipe, data, augmentation, fabric, folder, workers)
        say(
            f"training {_millions(student)} parameters for {count(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, "
            f"{recipe.optimizer} lr {recipe.learning_rate:g}"
            f"{f', weights averaged with decay {recipe.ema_decay}' if recipe.ema_decay else ''}; writing to {folder.path}"
        )
        ce_weight = float(getattr(recipe, "weights", {}).get("ce", 1.0))
        tell_loss(learner.weights(ce_weight), labels=bool(data.classes))
        job = Job(learner, sealed, data, augmentation, val_size, recipe, folder, fabric, workers, ce_weight, judge, say)
        rows = Trainer(job).train()
        student.eval()
        if fabric.is_global_zero:
            card = replace(student.card, classes=data.classes or student.card.classes).to_json()
            parameters = sum(p.numel() for p in student.module.parameters())
            extra = sum(p.numel() for p in learner.distillers.parameters())
            facts |= {"seed": recipe.seed, "metrics": rows[-1], "parameters": parameters, "extra_parameters": extra}
            facts |= {"data": data.name, "data_fingerprint": data.fingerprint, "train_images": len(data.train)}
            facts |= {"environment": folder.read_environment(), "sizes": {"student": sizes(student)}}
            live = networks[0] if len(networks) == 1 else None
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
                for line in next_steps(folder.path, facts, headless=not student.shapes.logits):
                    say(line)
        return Result(student, rows[-1], folder)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
