"""The training loop: every step is a function of its number, so an interrupted run goes on to the bit."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from uhkd.data import Augmentation, Batch, Data, Loader, batch_images, eval_loader, steps_per_epoch, train_loader
from uhkd.diagnostics import DIAGNOSTIC_IMAGES, Diagnostics, first_images
from uhkd.engine.averaging import Average
from uhkd.engine.deterministic import deterministic_advice
from uhkd.engine.gradients import GradientProbe
from uhkd.engine.learner import Learner
from uhkd.engine.memory import memory_advice
from uhkd.engine.optimizer import make_optimizer
from uhkd.engine.progress import Progress
from uhkd.engine.reporting import Reporter
from uhkd.engine.resuming import check_facts, check_sources, check_tensors, fitting_optimizer
from uhkd.engine.schedule import lr_factor
from uhkd.engine.step import Stepper
from uhkd.engine.stopping import Agreement, Request, Stopped
from uhkd.engine.stored import StoredTeacher
from uhkd.engine.teacher import Teacher, Teachers
from uhkd.engine.totals import Totals
from uhkd.evaluation import evaluate
from uhkd.methods import matching_of
from uhkd.recipe import TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.taps import TappedModel
from uhkd.telling import verbose

EVAL_BATCH = 256
"""Images at a time in validation."""
NONFINITE = "nonfinite.json"  # steps whose loss or gradient was not finite, and their images


@dataclass(frozen=True)
class Job:
    """All that one training needs; the learner's student, with averaged weights where asked for, is left at the end."""

    learner: Learner
    teacher: Teacher | Teachers | StoredTeacher | None
    data: Data
    augmentation: Augmentation
    val_size: tuple[int, int]
    recipe: TrainRecipe
    folder: RunFolder
    fabric: Fabric
    workers: int = 0
    ce_weight: float = 1.0
    judge: Callable[[TappedModel], dict[str, float]] | None = (
        None  # in place of the accuracy, where there are no labels
    )
    say: Callable[[str], None] = print


class Unloaded(Exception):
    """The next batch could not be had; between two steps, so what was learned until then is whole."""


def fetched(loader: Loader) -> Iterator[Batch]:
    """The loader's batches; its own errors, and not those of whoever uses the batches, come as `Unloaded`."""
    try:
        yield from loader
    except ValueError as error:
        raise Unloaded(str(error)) from error


def train(job: Job) -> list[dict[str, float]]:
    """Train by the recipe; leaves metrics, diagnostics and checkpoints in the folder and returns the rows of metrics.csv.

    Goes on from the newest whole checkpoint in the folder if there is one; on a CPU, and on a GPU by `deterministic`, the result
    is then bit-equal to that of a run which was never interrupted. Asked to end by a signal (see `Request`), it saves itself
    after the step at work.

    Raises:
        ValueError: when the batch is larger than the training part, the data is not the interrupted run's, a batch cannot be
            loaded (what was learned is saved before), or the loss stops being finite.
        Stopped: when a signal asked for it.
    """
    recipe, learner, teacher, fabric, folder = job.recipe, job.learner, job.teacher, job.fabric, job.folder
    images = len(job.data.train)
    per_epoch = steps_per_epoch(images, recipe.batch_size)
    total = per_epoch * recipe.epochs
    optimizer = make_optimizer(learner, recipe)
    if recipe.compile:
        learner.compile()
    # alike in all processes by themselves: FAMs see the whole batch, and banks take in the same rows; sent at each step they
    # would be most of what is sent
    buffers = [f"distillers.{name}" for name, _ in learner.distillers.named_buffers()]
    if learner.balance is not None:
        buffers += [f"balance.{name}" for name, _ in learner.balance.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, buffers)
    model: Any
    model, optimizer = fabric.setup(learner, optimizer)
    average = Average(learner.student, recipe.ema_decay)
    weights, balance = learner.weights(job.ce_weight), learner.balance
    val = eval_loader(job.data.val, job.val_size, batch_size=EVAL_BATCH, workers=job.workers, device=fabric.device)
    shown = first_images(val, DIAGNOSTIC_IMAGES).to(fabric.device)
    diagnostics = Diagnostics(
        learner.student, shown, fabric.autocast, teacher and teacher.reference(shown), matching_of(learner.distillers)
    )
    stored = teacher.stored if isinstance(teacher, StoredTeacher) else None
    sources = {"data": job.data.fingerprint, "cache": stored and stored.manifest.key}
    totals, rows, step, seconds = Totals(fabric.device), [], 0, 0.0
    agreement = Agreement()
    kept = "no checkpoint was written yet"

    def state() -> dict[str, Tensor]:
        """All tensors that a checkpoint holds."""
        tensors = learner.state_dict() | {f"average.{k}": v for k, v in average.tensors.items()}
        return tensors | ({} if teacher is None else teacher.kept())

    fresh = optimizer.state_dict()
    sizes = {
        number: weight.shape
        for noted, group in zip(fresh["param_groups"], optimizer.param_groups, strict=True)
        for number, weight in zip(noted["params"], group["params"], strict=True)
    }

    def check_fits(found: Checkpoint) -> None:
        check_facts(found, total, weights)
        check_tensors(found.tensors, state(), [name for name, _ in learner.named_parameters()])
        fitting_optimizer(found.optimizer, fresh, sizes, recipe, total)

    checkpoint = folder.read_checkpoint(check_fits)
    if checkpoint is not None:
        check_sources(checkpoint, sources, job.data.name, folder.path)
        step, rows, seconds = checkpoint.step, checkpoint.facts["rows"], checkpoint.facts["seconds"]
        others = ("ftm.", "average.")
        learner.load_state_dict({k: v for k, v in checkpoint.tensors.items() if not k.startswith(others)})
        average.load({k.removeprefix("average."): v for k, v in checkpoint.tensors.items()})
        optimizer.load_state_dict(fitting_optimizer(checkpoint.optimizer, fresh, sizes, recipe, total))
        each = checkpoint.facts["totals"]
        if len(each) != fabric.world_size:
            job.say(
                f"warning: it began with {len(each)} processes and goes on with {fabric.world_size}: not to the bit"
            )
            each = [{name: fmean(one[name] for one in each) for name in each[0]}] * fabric.world_size
        totals.restore(each[fabric.global_rank], checkpoint.facts["skipped"])
        diagnostics.restore(folder.read_arrays(), step)
        kept = f"the checkpoint of step {step} is kept"
        for why in checkpoint.passed_over:
            job.say(f"warning: a newer checkpoint is damaged and was passed over: {why}")
        job.say(f"going on at step {step} of {total} (epoch {min(step // per_epoch + 1, recipe.epochs)})")
    else:
        diagnostics.begin()
        if fabric.is_global_zero:
            with folder.writing(folder.diagnostics.name, kept):
                folder.write_arrays(diagnostics.arrays())

    def note_bad(steps: Sequence[int]) -> None:
        if steps and fabric.is_global_zero:
            where = {"seed": recipe.seed, "batch_size": recipe.batch_size}
            found = [{"step": s + 1, "images": batch_images(job.data.train, **where, step=s).tolist()} for s in steps]
            folder.write_json(NONFINITE, found)

    def check_finite(*, weights: bool = True) -> None:
        if weights:
            totals.look_at(learner.parameters())
        try:
            totals.check_finite(step, kept)
            totals.check_skipped(step, kept)
        except ValueError:
            bad = totals.first_bad()
            with contextlib.suppress(OSError):  # a disk that is full as well is not what the user must hear of first
                note_bad(totals.skipped if bad is None else [*totals.skipped, bad])
            raise

    def save() -> None:
        nonlocal kept
        own = totals.as_dict()
        each = [dict(zip(own, one, strict=True)) for one in agreement.all_of(list(own.values()))]
        if fabric.is_global_zero:
            facts = {**sources, "rows": rows, "seconds": seconds, "totals": each, "skipped": totals.skipped}
            with folder.writing(f"the checkpoint of step {step}", kept):
                folder.write_checkpoint(Checkpoint(step, state(), optimizer.state_dict(), facts))
                note_bad(totals.skipped)
        kept = f"the checkpoint of step {step} is kept"

    def validate() -> None:
        report.beat(step, seconds, "validating")
        balanced = {} if balance is None else balance.columns(step - 1, total)
        norms = probe(batch, step, weighing if balance is None else balance.gated(weighing))
        with average.shown():
            evaluation = None if job.judge else evaluate(learner.student, val, fabric.device, fabric.autocast)
            metrics = evaluation.metrics if evaluation else job.judge(learner.student) if job.judge else {}
            own = totals.means()
            means = [fmean(values) for values in zip(*agreement.all_of(list(own.values())), strict=True)]
            row = {"step": step, "epoch": step // per_epoch, "lr": lr, **dict(zip(own, means, strict=True))}
            row |= {f"val_{name}": value for name, value in metrics.items()}
            row |= {"skipped": len(totals.skipped)} if recipe.nonfinite == "skip" else {}
            row |= {f"grad_{name}": norm for name, norm in norms.items()}
            row |= balanced
            totals.reset()
            diagnostics.note(step)
            if job.judge:
                row |= {f"val_{name}": value for name, value in diagnostics.likeness().items()}
            if step == total:
                diagnostics.end(evaluation)
        report.row(row | {"seconds": round(seconds, 3), **progress.rates()}, diagnostics.arrays(), kept)

    def switch_off(rows: Sequence[int]) -> None:
        """Leave out the terms of groups that the balance closed, and the teachers that no term needs any more."""
        nonlocal model, take_step
        assert balance is not None
        gone = learner.close(rows)
        if isinstance(teacher, Teachers):
            for place in gone:
                teacher.drop(place)
        if fabric.world_size > 1:  # DDP waits for the gradients of all parameters that were trained when it was made
            del take_step, model
            gc.collect()  # with the old one go its hooks
            model = fabric.setup_module(learner, move_to_device=False)
        take_step = Stepper(recipe, learner, teacher, fabric, model, optimizer, average, totals)
        names = " and ".join(balance.label(row) for row in rows)
        job.say(
            f"the teacher no longer leads: its terms ({names}) are switched off"
            f"{', and the teacher with them' if gone else ''}"
        )

    def stopped(number: int, step: int) -> Stopped:
        return Stopped(f"stopped by {signal.Signals(number).name} after step {step} of {total}; {kept}", 128 + number)

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
    report = Reporter(
        recipe,
        folder,
        progress,
        rows,
        weights,
        job.say,
        first=fabric.is_global_zero,
        begun=step,
        total=total,
        per_epoch=per_epoch,
    )
    report.restored(totals)
    probe = GradientProbe(learner, teacher, fabric, recipe.seed, recipe.accumulate, job.say)
    saved = began = time.monotonic()
    take_step: Any = Stepper(recipe, learner, teacher, fabric, model, optimizer, average, totals)
    model.train()
    if balance is not None and (closed := balance.closed_rows):
        switch_off(closed)

    def too_large() -> str:
        return (
            f"memory does not suffice for step {step + 1} of {total}; {kept}. Use a smaller batch "
            "(--batch-size), or --accumulate N to take it in N parts"
        )

    with report, progress, Request() as request, memory_advice(too_large), deterministic_advice():
        try:
            for batch in progress.follow(fetched(loader)):
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
                weighing = weights if balance is None else balance.scheduled(weights, step, total)
                if balance is not None:
                    balance.measure(step, lambda weights, b=batch, s=step: probe(b, s, weights), weighing)
                take_step(batch, step, weighing)
                step += 1
                due = fabric.is_global_zero and time.monotonic() - saved >= 60 * recipe.checkpoint_minutes
                asked, due = agreement.largest([request.signal or 0, int(due)])
                validating = step == total or step % (per_epoch * recipe.eval_every) == 0
                saving = bool(step == total or due or asked)
                if validating or saving:
                    check_finite()  # waits for the device: what it still has to do belongs to the training's time
                seconds, began = seconds + time.monotonic() - began, time.monotonic()
                if step % (1 if verbose() else recipe.log_every) == 0:
                    check_finite(weights=False)
                    report.log(step, seconds, totals, lr)
                else:
                    report.beat(step, seconds)
                with progress.aside():
                    if validating:
                        validate()
                        # without labels nothing would be left to learn from
                        if balance is not None and job.data.classes and weights["ce"] and (rows_ := balance.outgrown()):
                            switch_off(rows_)
                    if saving:
                        save()
                        saved = time.monotonic()
                if asked and step < total:
                    raise stopped(asked, step)
                began = time.monotonic()
        except Unloaded as error:
            if fabric.world_size == 1:  # with others a checkpoint needs all of them, who wait in the middle of a step
                check_finite()
                save()
            if request.signal is not None:  # it reached the loader's processes too
                raise stopped(request.signal, step) from None
            raise ValueError(f"{error}; {kept}") from error
    average.settle()
    return rows
