"""Getting a teacher ready: its weights, a head that fits the data, and proof that it knows something."""

from dataclasses import replace

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from scipy.stats import binomtest
from torch import nn

from uhkd.commands.setup import image_size, say
from uhkd.data import Augmentation, Data, eval_loader, train_loader
from uhkd.engine import EVAL_BATCH, Teacher, at_chance, calibrate, check_tensors, fit_linear_probe
from uhkd.evaluation import Evaluation, evaluate
from uhkd.models import create, wrap
from uhkd.recipe import CacheRecipe, DistillRecipe
from uhkd.runs import RunFolder, write_tensors
from uhkd.taps import TappedModel

_CALIBRATION_IMAGES = 1024


def load_teacher(recipe: DistillRecipe | CacheRecipe, module: nn.Module | None, data: Data) -> TappedModel:
    """The recipe's teacher with its own head, or the user's own module.

    Without a word on its weights a run folder brings its own and a named network its pretrained ones.
    """
    assert recipe.teacher is not None, "the recipe checks that a method other than scratch has a teacher"
    levels = recipe.teacher_levels or 4
    if isinstance(module, TappedModel):
        return module
    if module is not None:
        size = data.native_size or (224, 224)
        return wrap(module, num_classes=None, image_size=size, levels=levels)
    run = RunFolder(recipe.teacher)
    if run.started() and run.read_recipe().get("data") == recipe.data:
        held_out = run.read_recipe().get("val_fraction", recipe.val_fraction)
        if held_out != recipe.val_fraction:
            say(
                f"  the teacher was trained with val_fraction {held_out:g}, this run has {recipe.val_fraction:g}: it may "
                "have seen validation images, and its accuracy below may be too good"
            )
    brings_its_own = RunFolder(recipe.teacher).exists() or "local-dir:" in recipe.teacher
    start = recipe.teacher_start or ("random" if brings_its_own else "pretrained")
    try:
        return create(recipe.teacher, num_classes=None, start=start, options=recipe.teacher_options, levels=levels)
    except ValueError as error:
        flag = (
            "" if recipe.teacher_start else " (for a teacher: --teacher-start, or --teacher with a run folder of yours)"
        )
        raise ValueError(f"teacher: {error}{flag if start == 'pretrained' else ''}") from error


def prepare_teacher(
    recipe: DistillRecipe | CacheRecipe,
    data: Data,
    fabric: Fabric,
    folder: RunFolder,
    workers: int,
    module: nn.Module | None = None,
    *,
    judged: bool = False,
) -> tuple[TappedModel, dict[str, float]]:
    """A teacher that fits the data's classes and beats chance, sealed, and its validation metrics.

    judged: its accuracy was seen before; the metrics are then left out.

    Raises:
        ValueError: when its head does not fit and may not be replaced, or when it knows no more than chance.
    """
    teacher = load_teacher(recipe, module, data).to(fabric.device).eval()
    for note in teacher.notes:
        say(f"  teacher: {note}")
    classes = len(data.classes)
    fits, why = _head_fits(teacher, data)
    if recipe.teacher_head == "keep" and not fits:
        raise ValueError(f"the teacher's head does not fit: {why}; use teacher_head=auto to train a linear probe")
    probed = recipe.teacher_head == "probe" or not fits
    if probed:
        if teacher.shapes.embedding is None:
            raise ValueError(
                f"the teacher's head does not fit ({why}) and it has no embedding for a linear probe; finetune it"
            )
        _probe(teacher, data, fabric, folder, workers, why or "teacher_head=probe")
    if judged:
        return teacher, {}
    size = image_size(data, [teacher])
    loader = eval_loader(data.val, size, batch_size=EVAL_BATCH, workers=workers, device=fabric.device)
    evaluation = evaluate(teacher, loader, fabric.device, fabric.autocast)
    accuracy = evaluation.metrics["accuracy"]
    say(f"teacher {recipe.teacher}: validation accuracy {accuracy:.2%}" + (" (linear probe)" if probed else ""))
    if at_chance(evaluation.correct, evaluation.labels) and not recipe.allow_weak_teacher:
        raise ValueError(
            f"the teacher {recipe.teacher} is at chance level on these images ({accuracy:.1%} of {len(evaluation.labels)} right, "
            f"{classes} classes; {_certain(evaluation)}); train it first: "
            f"uhkd finetune --model {recipe.teacher} --data {recipe.data} --out DIR, "
            "then --teacher DIR (or go on anyway with --allow-weak-teacher)"
        )
    return teacher, evaluation.metrics


def _certain(evaluation: Evaluation) -> str:
    """How sure an accuracy is, and what knowing nothing would give."""
    right, images = evaluation.correct, len(evaluation.labels)
    known = binomtest(right, images).proportion_ci(method="wilson")
    few = f"; {images} images tell little, a larger --val-fraction more" if images < 100 else ""
    commonest = evaluation.labels.bincount().max().item() / images
    return f"95 % interval {known.low:.1%} to {known.high:.1%}, the commonest class alone {commonest:.1%}{few}"


def _head_fits(teacher: TappedModel, data: Data) -> tuple[bool, str]:
    found, wanted = teacher.shapes.logits, len(data.classes)
    if found != wanted:
        return False, f"it has {'no classes' if found is None else f'{found} classes'}, the data {wanted}"
    known = tuple(teacher.card.classes) if teacher.card is not None else ()
    if known and known != data.classes:
        differing = next((a, b) for a, b in zip(known, data.classes, strict=True) if a != b)
        return (
            False,
            f"its classes have other names or another order ({differing[0]!r} where the data has {differing[1]!r})",
        )
    return True, ""


def _probe(teacher: TappedModel, data: Data, fabric: Fabric, folder: RunFolder, workers: int, why: str) -> None:
    assert teacher.shapes.embedding is not None
    if folder.probe.is_file():
        probe = nn.Linear(teacher.shapes.embedding, len(data.classes))
        try:
            state = load_file(folder.probe)
            check_tensors(state, probe.state_dict(), state)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(
                f"{folder.probe} is damaged ({error}); delete it to have the probe trained anew"
            ) from error
        probe.load_state_dict(state)
        say("linear probe of the teacher: taken from the run folder")
    else:
        say(f"training a linear probe on the teacher's embedding of {len(data.train)} training images: {why}")
        embeddings, labels = [], []
        with torch.no_grad():
            size = image_size(data, [teacher])
            for batch in eval_loader(data.train, size, batch_size=EVAL_BATCH, workers=workers, device=fabric.device):
                with fabric.autocast():
                    said = teacher(batch.image.to(fabric.device), frozenset({"embedding"}))
                embeddings.append(said.embedding.float().cpu())
                assert batch.label is not None, "the probe's images have labels"
                labels.append(batch.label.cpu())
        probe = fit_linear_probe(torch.cat(embeddings), torch.cat(labels), len(data.classes))
    teacher.set_probe(probe.to(fabric.device))


def save_probe(teacher: TappedModel, folder: RunFolder) -> None:
    """Keep the probe beside the run that used it."""
    if teacher.probe is not None and not folder.probe.exists():
        write_tensors(folder.probe, teacher.probe.state_dict())


def settle_ftm(
    teacher: Teacher, data: Data, augmentation: Augmentation, seed: int, fabric: Fabric, workers: int
) -> None:
    """Fix the FTM's statistics by one pass over un-mixed training images of view 0."""
    loader = train_loader(
        data.train,
        replace(augmentation, mixup=0.0, cutmix=0.0),
        seed=seed,
        batch_size=min(EVAL_BATCH, len(data.train)),
        epochs=1,
        num_classes=len(data.classes),
        workers=workers,
        device=fabric.device,
    )
    assert teacher.ftm is not None
    used = calibrate(teacher, loader, fabric.device, min(_CALIBRATION_IMAGES, len(data.train)))
    say(f"spectra of {len(teacher.ftm.shapes)} levels standardised over {used} training images")
