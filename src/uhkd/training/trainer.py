"""The training loop: each step depends on its number alone, so an interrupted training resumes to the bit."""

import contextlib
import gc
import signal
import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from uhkd.console import log_info, verbose
from uhkd.data import Batch, Loader, batch_images, eval_loader, steps_per_epoch, train_loader
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import DIAGNOSTIC_IMAGES, Diagnostics, first_images
from uhkd.evaluation.metrics import EVAL_BATCH, evaluate
from uhkd.methods import find_matching_loss
from uhkd.training.cached_teacher import CachedTeacher
from uhkd.training.checkpoint_checks import check_sources
from uhkd.training.deterministic import deterministic_advice
from uhkd.training.ema import ModelEMA
from uhkd.training.gradient_norms import GradientNorms
from uhkd.training.metrics_writer import MetricsWriter
from uhkd.training.oom import memory_advice
from uhkd.training.optimizer import make_optimizer
from uhkd.training.progress import ProgressBar
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.schedule import lr_factor
from uhkd.training.setup import Setup
from uhkd.training.signals import ProcessGroupSync, SignalHandler, TrainingInterrupted
from uhkd.training.state import TrainingState
from uhkd.training.step import TrainStep
from uhkd.training.teacher import TeacherEnsemble

NONFINITE = "nonfinite.json"  # steps whose loss or gradient was not finite, and their images


class DataLoadingError(Exception):
    """The next batch could not be loaded; raised between two steps, so that the state learned until then can be saved."""


def loaded(loader: Loader) -> Iterator[Batch]:
    """Yield the loader's batches; an error of the loader, unlike one of the step, is raised as `DataLoadingError`."""
    try:
        yield from loader
    except ValueError as error:
        raise DataLoadingError(str(error)) from error


class Trainer:
    """Trains a student by a recipe and writes metrics, diagnostics and checkpoints into its run folder.

    Resumes from the newest undamaged checkpoint in the folder, if there is one; on a CPU, and on a GPU with `deterministic`, the
    result is then bit-equal to that of an uninterrupted training. On SIGINT, SIGTERM or SIGUSR1 (see `SignalHandler`) it saves a
    checkpoint after the current step.

    Raises:
        UhkdError: if the batch is larger than the training split.
    """

    def __init__(self, setup: Setup) -> None:
        recipe, learner, teacher, fabric = setup.recipe, setup.learner, setup.teacher, setup.fabric
        self.setup, self.recipe, self.learner, self.teacher = setup, recipe, learner, teacher
        self.fabric, self.folder = fabric, setup.folder
        self.per_epoch = steps_per_epoch(len(setup.data.train), recipe.batch_size)
        self.total = self.per_epoch * recipe.epochs
        self.weights, self.balance = learner.weights(setup.ce_weight), learner.balance
        optimizer = make_optimizer(learner, recipe)
        if recipe.compile:
            learner.compile()
        # equal in all processes without being sent: FAMs see the whole batch, and memory banks store the same rows; sent at each
        # step they would be most of the traffic
        buffers = [f"distillers.{name}" for name, _ in learner.distillers.named_buffers()]
        if self.balance is not None:
            buffers += [f"balance.{name}" for name, _ in self.balance.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(learner, buffers)
        self.model: Any
        self.model, self.optimizer = fabric.setup(learner, optimizer)
        self.average = ModelEMA(learner.student, recipe.ema_decay)
        self.val = eval_loader(
            setup.data.val, setup.val_size, batch_size=EVAL_BATCH, workers=setup.workers, device=fabric.device
        )
        shown = first_images(self.val, DIAGNOSTIC_IMAGES).to(fabric.device)
        reference = None if teacher is None else teacher.reference(shown)
        self.diagnostics = Diagnostics(
            learner.student, shown, fabric.autocast, reference, find_matching_loss(learner.distillers)
        )
        self.stored = teacher.stored if isinstance(teacher, CachedTeacher) else None
        self.sources = {"data": setup.data.fingerprint, "cache": self.stored and self.stored.manifest.key}
        self.totals, self.processes = RunningMetrics(fabric.device), ProcessGroupSync()
        self.state = TrainingState(recipe, learner, teacher, self.optimizer, self.average)
        self.rows: list[dict[str, float]] = []
        self.step, self.seconds, self.lr = 0, 0.0, 0.0
        self.last_checkpoint = "no checkpoint was written yet"

    def train(self) -> list[dict[str, float]]:
        """Train to the last step and return the rows of metrics.csv; the student holds the averaged weights, if any.

        Raises:
            UhkdError: if the data differs from that of the interrupted training, a batch cannot be loaded (after saving a
                checkpoint), or the loss is no longer finite.
            Stopped: on a signal.
        """
        recipe = self.recipe
        self._restore()
        loader = self._loader()
        self.progress = ProgressBar(self.total, recipe.batch_size, start=self.step, log_line=log_info)
        self.report = MetricsWriter(
            self.setup,
            self.progress,
            self.rows,
            self.weights,
            log_info,
            start_step=self.step,
            total=self.total,
            per_epoch=self.per_epoch,
        )
        self.report.restored(self.totals)
        self.probe = GradientNorms(
            self.learner, self.teacher, self.fabric, recipe.seed, recipe.grad_accum_steps, log_info
        )
        self.saved = self.began = time.monotonic()
        self._make_step()
        self.model.train()
        if self.balance is not None and (closed := self.balance.closed_rows):
            self._switch_off(closed)
        with (
            self.report,
            self.progress,
            SignalHandler() as request,
            memory_advice(self._too_large),
            deterministic_advice(),
        ):
            try:
                for batch in self.progress.follow(loaded(loader)):
                    self._train_step(batch)
                    self._finish_step(batch, request)
            except DataLoadingError as error:
                if (
                    self.fabric.world_size == 1
                ):  # a checkpoint needs all processes, and the others wait in the middle of a step
                    self._check_finite()
                    self._save_checkpoint()
                if request.signal is not None:  # the loader's processes received it too
                    raise self._stopped(request.signal) from None
                raise UhkdError(f"{error}; {self.last_checkpoint}") from error
        self.average.copy_to_model()
        return self.rows

    def _restore(self) -> None:
        """Resume from the newest undamaged checkpoint of the folder, or write the first diagnostics."""
        found = self.state.read(self.folder, self.total, self.weights)
        if found is None:
            self.diagnostics.begin()
            if self.fabric.is_global_zero:
                with self.folder.writing(self.folder.diagnostics.name, self.last_checkpoint):
                    self.folder.write_arrays(self.diagnostics.arrays())
            return
        check_sources(found, self.sources, self.setup.data.name, self.folder.path)
        self.state.load(found, self.total)
        self.step, self.rows, self.seconds = found.step, found.facts["rows"], found.facts["seconds"]
        each = found.facts["totals"]
        if len(each) != self.fabric.world_size:
            log_info(
                f"warning: it began with {len(each)} processes and goes on with {self.fabric.world_size}: not to the bit"
            )
            each = [{name: fmean(one[name] for one in each) for name in each[0]}] * self.fabric.world_size
        self.totals.restore(each[self.fabric.global_rank], found.facts["skipped"])
        self.diagnostics.restore(self.folder.read_arrays(), self.step)
        self.last_checkpoint = f"the checkpoint of step {self.step} is kept"
        for why in found.passed_over:
            log_info(f"warning: a newer checkpoint is damaged and was passed over: {why}")
        epoch = min(self.step // self.per_epoch + 1, self.recipe.epochs)
        log_info(f"going on at step {self.step} of {self.total} (epoch {epoch})")

    def _loader(self) -> Loader:
        """Return the loader of all steps that are left."""
        setup, stored = self.setup, self.stored
        return train_loader(
            setup.data.train,
            setup.augmentation,
            seed=self.recipe.seed,
            batch_size=self.recipe.batch_size,
            epochs=self.recipe.epochs,
            num_classes=len(setup.data.classes),
            start_step=self.step,
            workers=setup.workers,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            views=self.teacher.views if isinstance(self.teacher, CachedTeacher) else None,
            view_seed=stored and stored.manifest.seed,
            record_reader=stored and stored.read_records,
            device=self.fabric.device,
        )

    def _make_step(self) -> None:
        self.take_step: Any = TrainStep(
            self.recipe,
            self.learner,
            self.teacher,
            self.fabric,
            self.model,
            self.optimizer,
            self.average,
            self.totals,
        )

    def _train_step(self, batch: Batch) -> None:
        """Set the learning rate and the weights of the terms, and take one optimiser step."""
        recipe, step, balance = self.recipe, self.step, self.balance
        self.lr = recipe.learning_rate * lr_factor(
            step,
            self.total,
            schedule=recipe.schedule,
            warmup=round(recipe.warmup_epochs * self.per_epoch),
            milestones=[epoch * self.per_epoch for epoch in recipe.step_epochs],
            gamma=recipe.step_gamma,
            first=None if recipe.warmup_lr is None else recipe.warmup_lr / recipe.learning_rate,
            floor=recipe.min_lr / recipe.learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.step_weights = self.weights
        if balance is not None:
            self.step_weights = balance.scheduled(self.weights, step, self.total)
            balance.measure(step, lambda weights: self.probe(batch, step, weights), self.step_weights)
        self.take_step(batch, step, self.step_weights)
        self.step += 1

    def _finish_step(self, batch: Batch, request: SignalHandler) -> None:
        """Log, validate, save and stop, where it is time for it."""
        recipe, step = self.recipe, self.step
        due = self.fabric.is_global_zero and time.monotonic() - self.saved >= 60 * recipe.checkpoint_minutes
        signal_number, due = self.processes.largest([request.signal or 0, int(due)])
        validating = step == self.total or step % (self.per_epoch * recipe.eval_every) == 0
        saving = bool(step == self.total or due or signal_number)
        if validating or saving:
            self._check_finite()  # waits for the device: its pending work belongs to the time of the training
        now = time.monotonic()
        self.seconds, self.began = self.seconds + now - self.began, now
        if step % (1 if verbose() else recipe.log_every) == 0:
            self._check_finite(weights=False)
            self.report.log(step, self.seconds, self.totals, self.lr)
        else:
            self.report.beat(step, self.seconds)
        with self.progress.exclude():
            if validating:
                self._validate(batch)
                # without the cross-entropy nothing would be left to learn from
                learns = self.setup.data.classes and self.weights["ce"]
                if self.balance is not None and learns and (rows := self.balance.outgrown()):
                    self._switch_off(rows)
            if saving:
                self._save_checkpoint()
                self.saved = time.monotonic()
        if signal_number and step < self.total:
            raise self._stopped(signal_number)
        self.began = time.monotonic()

    def _validate(self, batch: Batch) -> None:
        """Evaluate the student and write a row of metrics; `batch` is the last one, on which gradient norms are measured."""
        setup, step, balance = self.setup, self.step, self.balance
        self.report.beat(step, self.seconds, "validating")
        balanced = {} if balance is None else balance.columns(step - 1, self.total)
        norms = self.probe(batch, step, self.step_weights if balance is None else balance.gated(self.step_weights))
        with self.average.swap_in():
            student, metrics, evaluation = self.learner.student, {}, None
            if setup.evaluator is None:
                evaluation = evaluate(student, self.val, self.fabric.device, self.fabric.autocast)
                metrics = evaluation.metrics
            else:
                metrics = setup.evaluator(student)
            own = self.totals.means()
            means = [fmean(values) for values in zip(*self.processes.all_of(list(own.values())), strict=True)]
            row = {
                "step": step,
                "epoch": step // self.per_epoch,
                "lr": self.lr,
                **dict(zip(own, means, strict=True)),
            }
            row |= {f"val_{name}": value for name, value in metrics.items()}
            row |= {"skipped": len(self.totals.skipped)} if self.recipe.nonfinite == "skip" else {}
            row |= {f"grad_{name}": norm for name, norm in norms.items()}
            row |= balanced
            self.totals.reset()
            self.diagnostics.note(step)
            if setup.evaluator:
                row |= {f"val_{name}": value for name, value in self.diagnostics.similarity().items()}
            if step == self.total:
                self.diagnostics.end(evaluation)
        row |= {"seconds": round(self.seconds, 3), **self.progress.rates()}
        self.report.row(row, self.diagnostics.arrays(), self.last_checkpoint)

    def _switch_off(self, rows: Sequence[int]) -> None:
        """Switch off the terms of groups that the balance closed, and the teachers that no term needs any more."""
        assert self.balance is not None
        gone = self.learner.close(rows)
        if isinstance(self.teacher, TeacherEnsemble):
            for place in gone:
                self.teacher.drop(place)
        if (
            self.fabric.world_size > 1
        ):  # DDP waits for the gradients of all parameters that were trained when it was made
            del self.take_step, self.model
            gc.collect()  # with the old one go its hooks
            self.model = self.fabric.setup_module(self.learner, move_to_device=False)
        self._make_step()
        names = " and ".join(self.balance.label(row) for row in rows)
        log_info(
            f"the teacher no longer leads: its terms ({names}) are switched off"
            f"{', and the teacher with them' if gone else ''}"
        )

    def _save_checkpoint(self) -> None:
        """Write a checkpoint of the current step, from which the training resumes to the bit."""
        own = self.totals.as_dict()
        each = [dict(zip(own, one, strict=True)) for one in self.processes.all_of(list(own.values()))]
        if self.fabric.is_global_zero:
            facts = {
                **self.sources,
                "rows": self.rows,
                "seconds": self.seconds,
                "totals": each,
                "skipped": self.totals.skipped,
            }
            with self.folder.writing(f"the checkpoint of step {self.step}", self.last_checkpoint):
                self.folder.write_checkpoint(self.state.checkpoint(self.step, facts))
                self._note_nonfinite(self.totals.skipped)
        self.last_checkpoint = f"the checkpoint of step {self.step} is kept"

    def _check_finite(self, *, weights: bool = True) -> None:
        """Raise a ValueError if loss, gradient or weights are no longer finite (this waits for the device)."""
        if weights:
            self.totals.check_parameters(self.learner.parameters())
        try:
            self.totals.check_finite(self.step, self.last_checkpoint)
            self.totals.check_skipped(self.step, self.last_checkpoint)
        except ValueError:
            bad = self.totals.first_nonfinite_step()
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                self._note_nonfinite(self.totals.skipped if bad is None else [*self.totals.skipped, bad])
            raise

    def _note_nonfinite(self, steps: Sequence[int]) -> None:
        """Write which images the steps without finite loss or gradient were made of."""
        if steps and self.fabric.is_global_zero:
            where = {"seed": self.recipe.seed, "batch_size": self.recipe.batch_size}
            train = self.setup.data.train
            found = [{"step": s + 1, "images": batch_images(train, **where, step=s).tolist()} for s in steps]
            self.folder.write_json(NONFINITE, found)

    def _stopped(self, number: int) -> TrainingInterrupted:
        name = signal.Signals(number).name
        return TrainingInterrupted(
            f"stopped by {name} after step {self.step} of {self.total}; {self.last_checkpoint}", 128 + number
        )

    def _too_large(self) -> str:
        return (
            f"memory does not suffice for step {self.step + 1} of {self.total}; {self.last_checkpoint}. Use a smaller batch "
            "(--batch-size), or --grad-accum-steps N to compute it in N parts"
        )
