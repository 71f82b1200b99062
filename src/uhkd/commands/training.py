"""`finetune` and `distill`: from a recipe to a trained network in a run folder."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

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
    tell_loss,
    tell_machine,
)
from uhkd.commands.stored import facts_of, follow, open_stored, tell_other_views
from uhkd.commands.teaching import prepare_teacher, save_probe, settle_ftm
from uhkd.data import Augmentation, Data
from uhkd.engine import Job, Learner, StoredTeacher, Teacher, check_needs, check_tensors, train
from uhkd.methods import Distiller, build, check, effective
from uhkd.models import ModelCard, create, fingerprint, load_run, read_safetensors, wrap
from uhkd.pictures import draw
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.stored import Stored
from uhkd.taps import Shapes, TappedModel
from uhkd.telling import put
from uhkd.text import count

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
            f"data {opened.name} has no labels, and finetune learns from them alone; expected (image, label) pairs, or distil a "
            "teacher by a method that needs none"
        )
    network = _network(model, recipe.model, recipe.start, recipe.options, recipe.levels, recipe, opened).to(
        fabric.device
    )
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
    network = _network(
        student, recipe.student, recipe.student_start, recipe.student_options, recipe.student_levels, recipe, opened
    ).to(fabric.device)
    facts: dict[str, Any] = {"verb": "distill", "teacher": recipe.teacher, "student": recipe.student}
    facts["method"], sealed = recipe.method, None
    facts["methods"] = effective(recipe.method, recipe.settings, recipe.weights)
    stored = None
    if recipe.method != "scratch" and recipe.teacher_cache is not None:
        stored = open_stored(recipe, opened, teacher)
        tell_other_views(asked, opened, network, stored)
        facts |= facts_of(stored, recipe)
    elif recipe.method != "scratch":
        workers = choose_workers(recipe, opened, fabric.device.type)
        sealed, facts["teacher_metrics"] = prepare_teacher(recipe, opened, fabric, folder, workers, teacher)
        facts["teacher_fingerprint"] = fingerprint(sealed)
    taught = stored.manifest.shapes if stored else sealed and sealed.shapes
    shapes = Shapes(network.shapes, taught, len(opened.classes), len(opened.train))
    torch.manual_seed(recipe.seed + 1)  # a method's own layers never shift the student's first weights
    distillers = build(recipe.method, shapes, recipe.settings, recipe.weights).to(fabric.device)
    learner = Learner(network, distillers, recipe.label_smoothing)
    return _train(recipe, opened, fabric, folder, learner, stored or sealed, facts)


def _begin(recipe: Recipe, label: str, data: Any) -> tuple[Recipe, Data, Fabric, RunFolder]:
    """Settle machine, processes, data and batch, and see that the folder can be written, before anything slow."""
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
    if module is None:
        network = load_run(folder.path)
    else:
        card = ModelCard.from_json(folder.read_card())
        network = module
        if not isinstance(network, TappedModel):
            network = wrap(module, num_classes=card.num_classes, image_size=card.image_size, levels=card.levels)
        network.module.load_state_dict(read_safetensors(folder.weights))
        network.card = card
    return Result(network.to(fabric.device).eval(), folder.read_result()["metrics"], folder)


def _network(
    module: nn.Module | None,
    name: str,
    start: str,
    options: dict[str, Any],
    levels: Sequence[str] | None,
    recipe: TrainRecipe,
    data: Data,
) -> TappedModel:
    """The network to train: the same first weights for the same seed, whatever the method."""
    torch.manual_seed(recipe.seed)
    classes = len(data.classes)
    if isinstance(module, TappedModel):
        if module.shapes.logits != classes:
            raise ValueError(f"the model to train gives {module.shapes.logits or 'no'} classes, the data has {classes}")
        network = module if module.card is not None else _with_card(module)
    elif module is not None:
        size = (recipe.image_size,) * 2 if recipe.image_size else data.native_size or (224, 224)
        network = wrap(module, num_classes=classes, image_size=size, levels=levels or 4)
    else:
        network = create(
            name, num_classes=classes, start=start, image_size=recipe.image_size, options=options, levels=levels or 4
        )
    for note in network.notes:
        say(f"  {note}")
    return network


def _with_card(network: TappedModel) -> TappedModel:
    network.card = ModelCard(
        name=f"module/{type(network.module).__name__}",
        num_classes=network.shapes.logits or 0,
        image_size=network.input_size,
        mean=network.mean,
        std=network.std,
        interpolation=network.interpolation,
        levels=network.levels,
    )
    return network


def _train(
    recipe: TrainRecipe,
    data: Data,
    fabric: Fabric,
    folder: RunFolder,
    learner: Learner,
    teacher: TappedModel | Stored | None,
    facts: dict[str, Any],
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
            f"training {_millions(student)} parameters for {count(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, "
            f"{recipe.optimizer} lr {recipe.learning_rate:g}"
            f"{f', weights averaged with decay {recipe.ema_decay}' if recipe.ema_decay else ''}; writing to {folder.path}"
        )
        ce_weight = float(getattr(recipe, "weights", {}).get("ce", 1.0))
        tell_loss(learner.weights(ce_weight))
        rows = train(
            Job(learner, sealed, data, augmentation, val_size, recipe, folder, fabric, workers, ce_weight, say)
        )
        student.eval()
        if fabric.is_global_zero:
            card = replace(student.card, classes=data.classes).to_json()
            parameters = sum(p.numel() for p in student.module.parameters())
            extra = sum(p.numel() for p in learner.distillers.parameters())
            facts |= {"seed": recipe.seed, "metrics": rows[-1], "parameters": parameters, "extra_parameters": extra}
            facts |= {"data": data.name, "data_fingerprint": data.fingerprint, "train_images": len(data.train)}
            facts |= {"environment": folder.read_environment()}
            with folder.writing("the trained network", f"the checkpoint of step {rows[-1]['step']} is kept"):
                folder.write_model(card, student.module.state_dict())
                pictures = ", ".join(path.name for path in draw(folder))
                folder.write_json(folder.result.name, facts)  # the last: it says "finished"
            folder.drop_checkpoints()
            for line in _table(facts):
                put(line)
            say(f"run folder {folder.path} with {pictures}")
            if card["name"].startswith("module/"):
                say(f'its weights: uhkd.models.load_state("{folder.weights}"), into a module of your own')
            else:
                say(f"measure it with: uhkd eval {folder.path}")
                if facts["verb"] == "distill":
                    say(f"rows that are not run: uhkd compare --pairs {folder.path} --methods scratch kd uhkd")
                say(f'in Python: model = uhkd.load_run("{folder.path}"); model(images in [0, 1]).logits')
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


def _table(facts: dict[str, Any]) -> list[str]:
    """Validation accuracy after the last epoch beside the baselines; what was not run says so."""
    own = f"{facts['metrics']['val_accuracy']:.2%}"
    if facts["verb"] == "finetune":
        return [f"{facts['model']}: validation accuracy {own}"]
    teacher = facts.get("teacher_metrics")
    rows = {"teacher": f"{teacher['accuracy']:.2%}  {facts['teacher']}" if teacher else "not run"}
    rows |= dict.fromkeys(("scratch", "kd", "uhkd"), "not run") | {facts["method"]: f"{own}  {facts['student']}"}
    return ["validation accuracy after the last epoch:", *(f"  {name:<10} {said}" for name, said in rows.items())]


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
