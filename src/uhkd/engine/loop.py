"""The training loop: every step is a function of its number, so an interrupted run goes on to the bit."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from uhkd.data import Augmentation, Batch, Data, eval_loader, steps_per_epoch, train_loader
from uhkd.diagnostics import DIAGNOSTIC_IMAGES, Diagnostics, first_images
from uhkd.engine.averaging import Average
from uhkd.engine.learner import Learner, weigh
from uhkd.engine.optimizer import make_optimizer
from uhkd.engine.progress import Progress
from uhkd.engine.schedule import lr_factor, weights_factor
from uhkd.engine.stored import StoredTeacher
from uhkd.engine.teacher import Teacher
from uhkd.engine.totals import Totals
from uhkd.evaluation import evaluate
from uhkd.methods import matching_of
from uhkd.recipe import DistillRecipe, TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.taps import Signals

EVAL_BATCH = 256


@dataclass(frozen=True)
class Job:
    """All that one training needs; the learner's student, with averaged weights where asked for, is left at the end."""

    learner: Learner
    teacher: Teacher | StoredTeacher | None
    data: Data
    augmentation: Augmentation
    val_size: tuple[int, int]
    recipe: TrainRecipe
    folder: RunFolder
    fabric: Fabric
    workers: int = 0
    ce_weight: float = 1.0
    say: Callable[[str], None] = print


def step_seed(seed: int, step: int, part: int) -> int:
    """Seed of torch's generators for one forward pass: dropout and drop-path depend on the position alone, not on the past."""
    return (seed * 1_000_003 + step) * 1_009 + part


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` of equal size, in order (gradient accumulation)."""
    pieces = [field.chunk(parts) if isinstance(field, Tensor) else [None] * parts for field in batch]
    return [Batch(*fields) for fields in zip(*pieces, strict=True)]


def train(job: Job) -> list[dict[str, float]]:
    """Train by the recipe; leaves metrics, diagnostics and checkpoints in the folder and returns the rows of metrics.csv.

    Goes on from the newest checkpoint in the folder if there is one; on a CPU the result is then bit-equal to that of a run
    which was never interrupted.

    Raises:
        ValueError: when the batch is larger than the training part, the data is not the interrupted run's, or the loss stops
            being finite.
    """
    recipe, learner, teacher, fabric, folder = job.recipe, job.learner, job.teacher, job.fabric, job.folder
    per_epoch = steps_per_epoch(len(job.data.train), recipe.batch_size)
    total = per_epoch * recipe.epochs
    optimizer = make_optimizer(learner, recipe)
    if recipe.compile:
        learner.compile()
    model, optimizer = fabric.setup(learner, optimizer)
    average = Average(learner.student, recipe.ema_decay)
    weights = learner.weights(job.ce_weight)
    fading = recipe.weights_schedule if isinstance(recipe, DistillRecipe) else "constant"
    val = eval_loader(job.data.val, job.val_size, batch_size=EVAL_BATCH, workers=job.workers, device=fabric.device)
    shown = first_images(val, DIAGNOSTIC_IMAGES).to(fabric.device)
    diagnostics = Diagnostics(
        learner.student, shown, fabric.autocast, teacher and teacher.reference(shown), matching_of(learner.distillers)
    )
    stored = teacher.stored if isinstance(teacher, StoredTeacher) else None
    sources = {"data": job.data.fingerprint, "cache": stored and stored.manifest.key}
    totals, rows, step, seconds = Totals(fabric.device), [], 0, 0.0
    kept = "no checkpoint was written yet"

    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        if checkpoint.facts["data"] != job.data.fingerprint:
            raise ValueError(
                f"cannot resume {folder.path}: the images or labels of {job.data.name} are not those that it began with; "
                "put them back, or start a new run with another --out"
            )
        if checkpoint.facts.get("cache") != sources["cache"]:
            raise ValueError(
                f"cannot resume {folder.path}: it began with {'other' if stored else 'the'} stored signals of its teacher; give "
                "the same --teacher-cache, or start a new run with another --out"
            )
        step, rows, seconds = checkpoint.step, checkpoint.facts["rows"], checkpoint.facts["seconds"]
        others = ("ftm.", "average.")
        learner.load_state_dict({k: v for k, v in checkpoint.tensors.items() if not k.startswith(others)})
        average.load({k.removeprefix("average."): v for k, v in checkpoint.tensors.items()})
        optimizer.load_state_dict(checkpoint.optimizer)
        totals.restore(checkpoint.facts["totals"])
        diagnostics.restore(folder.read_arrays(), step)
        kept = f"the checkpoint of step {step} is kept"
        job.say(f"going on at step {step} of {total} (epoch {min(step // per_epoch + 1, recipe.epochs)})")
    else:
        diagnostics.begin()
        folder.write_arrays(diagnostics.arrays())

    def check_finite() -> None:
        totals.look_at(learner.parameters())
        totals.check_finite(step, kept)

    def save() -> None:
        nonlocal kept
        tensors = learner.state_dict() | {f"average.{k}": v for k, v in average.tensors.items()}
        tensors |= {} if teacher is None else teacher.kept()
        if fabric.is_global_zero:
            facts = {**sources, "rows": rows, "seconds": seconds, "totals": totals.as_dict()}
            folder.write_checkpoint(Checkpoint(step, tensors, optimizer.state_dict(), facts))
        kept = f"the checkpoint of step {step} is kept"

    def validate() -> None:
        with average.shown():
            evaluation = evaluate(learner.student, val, fabric.device, fabric.autocast)
            row = {"step": step, "epoch": step // per_epoch, "lr": lr, **totals.means()}
            row |= {f"val_{name}": value for name, value in evaluation.metrics.items()}
            rows.append(row | {"seconds": round(seconds, 3), **progress.rates()})
            totals.reset()
            diagnostics.note(step)
            if step == total:
                diagnostics.end(evaluation)
        if fabric.is_global_zero:
            folder.write_metrics(rows)
            folder.write_arrays(diagnostics.arrays())
        progress.epoch(rows[-1], recipe.epochs)

    loader = train_loader(
        job.data.train,
        job.augmentation,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        num_classes=len(job.data.classes),
        start_step=step,
        workers=job.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        views=teacher.views if isinstance(teacher, StoredTeacher) else None,
        view_seed=stored and stored.manifest.seed,
        beside=stored and stored.beside,
        device=fabric.device,
    )
    progress = Progress(total, recipe.batch_size, start=step, say=job.say)
    saved = began = time.monotonic()
    model.train()
    with progress:
        for batch in progress.follow(loader):
            lr = recipe.learning_rate * lr_factor(
                step,
                total,
                schedule=recipe.schedule,
                warmup=round(recipe.warmup_epochs * per_epoch),
                milestones=[epoch * per_epoch for epoch in recipe.step_epochs],
                gamma=recipe.step_gamma,
                first=None if recipe.warmup_lr is None else recipe.warmup_lr / recipe.learning_rate,
                floor=recipe.min_lr / recipe.learning_rate,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            factor = weights_factor(step, total, fading)
            weighing = {name: w if name == "ce" else w * factor for name, w in weights.items()}
            batch = batch.to(fabric.device)
            # convolutions on channels-last images take 0.8-0.9 of the time on CPUs with bf16, and tensor cores want them
            batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
            parts = split(batch, recipe.accumulate)
            for part, micro in enumerate(parts):
                torch.manual_seed(step_seed(recipe.seed, step, part * fabric.world_size + fabric.global_rank))
                with fabric.no_backward_sync(model, enabled=part + 1 < len(parts)):
                    said = teacher.signals(micro, learner.teacher_needs) if teacher else Signals()
                    terms = model(micro._replace(record=None), said)
                    loss = weigh(terms, weighing)
                    fabric.backward(loss / len(parts))
                totals.add(loss.detach(), terms)
            if recipe.clip_grad is not None:
                # each side by itself: a method's own layers must not shrink the step of the student, which all methods share
                for side in (learner.student, learner.distillers):
                    torch.nn.utils.clip_grad_norm_(list(side.parameters()), recipe.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            step += 1
            validating = step == total or step % (per_epoch * recipe.eval_every) == 0
            saving = step == total or time.monotonic() - saved >= 60 * recipe.checkpoint_minutes
            if validating or saving:
                check_finite()  # waits for the device: what it still has to do belongs to the training's time
            seconds, began = seconds + time.monotonic() - began, time.monotonic()
            if step % recipe.log_every == 0:
                totals.check_finite(step, kept)
                progress.log(totals.means(), lr)
            with progress.aside():
                if validating:
                    validate()
                if saving:
                    save()
                    saved = time.monotonic()
            began = time.monotonic()
    average.settle()
    return rows
