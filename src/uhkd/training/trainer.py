"""The training loop. Every step depends only on its number, so that a resumed training is bit-equal to an uninterrupted one."""

import contextlib
import gc
import time
from collections.abc import Sequence
from statistics import fmean
from typing import NoReturn

from uhkd.console import log_info, verbose
from uhkd.data import Batch, eval_loader, steps_per_epoch
from uhkd.distributed import broadcast_only
from uhkd.errors import UhkdError
from uhkd.evaluation.diagnostics import DIAGNOSTIC_IMAGES, Diagnostics, first_images
from uhkd.evaluation.metrics import EVAL_BATCH, evaluate
from uhkd.methods import find_matching_loss
from uhkd.runs import read_or_replace
from uhkd.training.batches import DataLoadingError, train_batches
from uhkd.training.best_weights import BestWeights
from uhkd.training.cached_teacher import CachedTeacher
from uhkd.training.checkpoint_checks import check_sources
from uhkd.training.deterministic import deterministic_advice
from uhkd.training.ema import ModelEMA
from uhkd.training.gradient_norms import GradientNorms
from uhkd.training.metrics_writer import MetricsWriter, write_nonfinite
from uhkd.training.oom import memory_advice, step_advice
from uhkd.training.optimizer import make_optimizer
from uhkd.training.progress import ProgressBar
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.schedule import learning_rate
from uhkd.training.setup import Setup
from uhkd.training.side_step import SideStep
from uhkd.training.signals import ProcessGroupSync, SignalHandler, interrupted
from uhkd.training.state import TrainingState
from uhkd.training.step import TrainStep
from uhkd.training.teacher import TeacherEnsemble
from uhkd.training.unused import UnusedParameters, wrap


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
        broadcast_only(learner, "student.")
        self.model, self.optimizer = fabric.setup(learner, optimizer)
        self.average, self.best = ModelEMA(learner.student, recipe.ema_decay), BestWeights(learner.student, recipe)
        self.val_loader = eval_loader(
            setup.data.val,
            setup.val_size,
            batch_size=EVAL_BATCH,
            workers=setup.workers,
            resize=setup.data.resize,
            device=fabric.device,
        )
        images = first_images(self.val_loader, DIAGNOSTIC_IMAGES).to(fabric.device)
        reference = None if teacher is None else teacher.reference(images)
        self.diagnostics = Diagnostics(
            learner.student, images, fabric.autocast, reference, find_matching_loss(learner.distillers)
        )
        cache = teacher.stored.manifest.key if isinstance(teacher, CachedTeacher) else None
        self.sources = {"data": setup.data.fingerprint, "cache": cache}
        self.totals, self.processes = RunningMetrics(fabric.device), ProcessGroupSync()
        self.side_step = SideStep(learner, teacher, fabric, recipe.seed, recipe.grad_accum_steps)
        self.unused = UnusedParameters(self.side_step)
        self.state = TrainingState(recipe, learner, teacher, self.optimizer, self.average, self.best)
        self.rows: list[dict[str, float]] = []
        self.step, self.seconds, self.lr = 0, 0.0, 0.0
        self.last_checkpoint = "no checkpoint was written yet"

    def train(self) -> list[dict[str, float]]:
        """Train to the last step and return the rows of metrics.csv; the student gets the averaged weights, if any.

        Raises:
            UhkdError: if the data has changed since the interrupted training, a batch cannot be loaded (a checkpoint is saved
                before), or the loss is no longer finite.
            TrainingInterrupted: on a signal.
        """
        self._restore()
        batches = train_batches(self.setup, self.step)
        self._make_writers()
        self.model.train()
        if self.balance is not None and (closed := self.balance.closed_groups):
            self._close_terms(closed)
        self.last_save = self.began = time.monotonic()
        with (
            self.writer,
            self.progress,
            SignalHandler() as signals,
            memory_advice(lambda: step_advice(self.step, self.total, self.last_checkpoint)),
            deterministic_advice(),
        ):
            try:
                for batch in self.progress.follow(() if self.best.stopped else batches):
                    self._freeze_unused(batch)
                    self._train_step(batch)
                    self._after_step(batch, signals)
                    if self.best.stopped:
                        break
            except DataLoadingError as error:
                self._stop_without_batch(error, signals)
            finally:  # also for a caller that goes on with its module after an interruption
                if names := self.unused.release():
                    self.setup.facts.setdefault("unused_parameters", []).extend(names)
        self.average.copy_to_model()
        return self.rows

    def _restore(self) -> None:
        """Load the newest undamaged checkpoint of the run folder; without one, write the first diagnostics."""
        checkpoint = self.state.read(self.folder, self.total, self.weights)
        if checkpoint is None:
            self.diagnostics.begin()
            self._write_arrays()
            return
        check_sources(checkpoint, self.sources, self.setup.data.name, self.folder.path)
        self.state.load(checkpoint, self.total)
        facts, totals, world_size = checkpoint.facts, checkpoint.facts["totals"], self.fabric.world_size
        self.step, self.rows, self.seconds = checkpoint.step, facts["rows"], facts["seconds"]
        if len(totals) != world_size:
            log_info(f"warning: started with {len(totals)} processes, resumes with {world_size}: not bit-equal")
            totals = [{name: fmean(sums[name] for sums in totals) for name in totals[0]}] * world_size
        self.totals.restore(totals[self.fabric.global_rank], facts["skipped"])
        arrays = read_or_replace(self.folder.read_arrays, dict, self.folder.diagnostics)
        self.diagnostics.restore(arrays, self.step)
        self.last_checkpoint = f"the checkpoint of step {self.step} is kept"
        if not arrays:
            self._write_arrays()
        for why in checkpoint.damaged:
            log_info(f"warning: a newer checkpoint is damaged and was skipped: {why}")
        epoch = min(self.step // self.per_epoch + 1, self.recipe.epochs)
        log_info(f"resuming at step {self.step} of {self.total} (epoch {epoch})")

    def _write_arrays(self) -> None:
        if self.fabric.is_global_zero:
            with self.folder.writing(self.folder.diagnostics.name, self.last_checkpoint):
                self.folder.write_arrays(self.diagnostics.arrays())

    def _make_writers(self) -> None:
        self.progress = ProgressBar(self.total, self.recipe.batch_size, start=self.step, log_line=log_info)
        self.writer = MetricsWriter(
            self.setup, self.progress, self.rows, self.weights, log_info, start_step=self.step, per_epoch=self.per_epoch
        )
        self.writer.restore(self.totals)
        self.gradient_norms = GradientNorms(self.side_step, log_info)

    def _train_step(self, batch: Batch) -> None:
        """Set the learning rate and the weights of the loss terms, and take one optimizer step."""
        recipe, step, balance = self.recipe, self.step, self.balance
        self.lr = learning_rate(recipe, step, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.step_weights = self.weights
        if balance is not None:
            self.step_weights = balance.scheduled(self.weights, step, self.total)
            balance.measure(step, lambda weights: self.gradient_norms(batch, step, weights), self.step_weights)
        take_step = TrainStep(
            recipe, self.learner, self.teacher, self.fabric, self.model, self.optimizer, self.average, self.totals
        )
        take_step(batch, step, self.step_weights)
        self.step += 1

    def _after_step(self, batch: Batch, signals: SignalHandler) -> None:
        """Log, validate, save a checkpoint and stop, whichever is due; `batch` is the last one."""
        recipe, step, is_last = self.recipe, self.step, self.step == self.total
        save_due = self.fabric.is_global_zero and time.monotonic() - self.last_save >= 60 * recipe.checkpoint_minutes
        signal_number, save_due = self.processes.largest([signals.signal or 0, int(save_due)])
        validate = is_last or step % (self.per_epoch * recipe.eval_every) == 0
        save = is_last or save_due or signal_number
        if validate or save:
            self._check_finite()  # waits for the device, so that its pending work counts as training time
        now = time.monotonic()
        self.seconds, self.began = self.seconds + now - self.began, now
        if step == 1:  # before 50 steps of NaN
            self._check_finite(parameters=False)
        if step % (1 if verbose() else recipe.log_every) == 0:
            self._check_finite(parameters=False)
            self.writer.log(step, self.seconds, self.totals, self.lr)
        else:
            self.writer.heartbeat(step, self.seconds)
        with self.progress.exclude():
            if validate:
                self._validate(batch)
                # without cross-entropy the student would have no loss left
                supervised = self.setup.data.classes and self.weights["ce"]
                if self.balance is not None and supervised and (groups := self.balance.close_zero_groups()):
                    self._close_terms(groups)
            if save or self.best.stopped:
                self._save_checkpoint()
                self.last_save = time.monotonic()
        if signal_number and not is_last and not self.best.stopped:
            raise interrupted(signal_number, self.step, self.total, self.last_checkpoint)
        self.began = time.monotonic()

    def _validate(self, batch: Batch) -> None:
        """Evaluate the averaged student and write a row of metrics; gradient norms are measured on `batch`."""
        step, balance, evaluator = self.step, self.balance, self.setup.evaluator
        self.writer.heartbeat(step, self.seconds, "validating")
        balance_columns = {} if balance is None else balance.columns(step - 1, self.total)
        weights = self.step_weights if balance is None else balance.with_factors(self.step_weights)
        norms = self.gradient_norms(batch, step, weights)
        with self.average.swap_in():
            student, evaluation = self.learner.student, None
            if evaluator is None:
                evaluation = evaluate(student, self.val_loader, self.fabric.device, self.fabric.autocast)
                metrics = evaluation.metrics
                if balance is not None:  # by the first process's value, so that all have the same factors
                    balance.validated(self.processes.all_of([metrics["accuracy"]])[0][0], len(self.setup.data.val))
            else:
                metrics = evaluator(student)
            means = self.totals.means()
            averaged = [fmean(values) for values in zip(*self.processes.all_of(list(means.values())), strict=True)]
            row: dict[str, float] = {"step": step, "epoch": step // self.per_epoch, "lr": self.lr}
            row |= dict(zip(means, averaged, strict=True))
            row |= {f"val_{name}": value for name, value in metrics.items()}
            if self.recipe.nonfinite == "skip":
                row["skipped"] = len(self.totals.skipped)
            row |= {f"grad_{name}": norm for name, norm in norms.items()}
            row |= balance_columns
            self.totals.reset()
            self.diagnostics.note(step)
            if evaluator is not None:
                row |= {f"val_{name}": value for name, value in self.diagnostics.similarity().items()}
            final = self.best.validated([*self.rows, row], self.processes)
            if final or (step == self.total and not self.best.keep):
                self.diagnostics.end(evaluation)
        row |= {"seconds": round(self.seconds, 3), **self.progress.rates()}
        self.writer.write_row(row, self.diagnostics.arrays(), self.last_checkpoint)

    def _close_terms(self, groups: Sequence[int]) -> None:
        """Remove the loss terms of groups that the balance has closed, and the teachers that no term needs any more."""
        assert self.balance is not None
        unused_teachers = self.learner.close(groups)
        if isinstance(self.teacher, TeacherEnsemble):
            for index in unused_teachers:
                self.teacher.drop(index)
        self._wrap_again()
        self.unused.checked = False
        names = " and ".join(self.balance.label(group) for group in groups)
        log_info(
            f"the teacher no longer leads: its terms ({names}) are switched off{', and the teacher too' * bool(unused_teachers)}"
        )

    def _freeze_unused(self, batch: Batch) -> None:
        """Freeze the parameters that no loss term uses, once for each set of terms; `batch` is the next one."""
        if not self.unused.checked and self.unused.freeze(batch, self.learner.weights(self.setup.ce_weight)):
            self._wrap_again()

    def _wrap_again(self) -> None:
        """Wrap the learner anew: DDP waits for the gradients of all parameters that were trainable at its creation."""
        if self.fabric.world_size > 1:
            del self.model
            gc.collect()  # removes the hooks of the previous wrapper
            self.model = wrap(self.fabric, self.learner, varying=self.unused.varying)

    def _save_checkpoint(self) -> None:
        sums = self.totals.as_dict()
        totals = [dict(zip(sums, values, strict=True)) for values in self.processes.all_of(list(sums.values()))]
        if self.fabric.is_global_zero:
            facts = {"rows": self.rows, "seconds": self.seconds, "totals": totals, "skipped": self.totals.skipped}
            with self.folder.writing(f"the checkpoint of step {self.step}", self.last_checkpoint):
                self.folder.write_checkpoint(self.state.checkpoint(self.step, self.sources | facts))
                write_nonfinite(self.setup, self.totals.skipped)
        self.last_checkpoint = f"the checkpoint of step {self.step} is kept"

    def _check_finite(self, *, parameters: bool = True) -> None:
        """Raise a UhkdError if loss, gradient or, with `parameters`, weights are not finite (waits for the device)."""
        if parameters:
            self.totals.check_parameters(self.learner.parameters())
        try:
            self.totals.check_finite(self.step, self.last_checkpoint)
            self.totals.check_skipped(self.step, self.last_checkpoint)
        except UhkdError:
            step = self.totals.first_nonfinite_step()
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                write_nonfinite(self.setup, self.totals.skipped if step is None else [*self.totals.skipped, step])
            raise

    def _stop_without_batch(self, error: DataLoadingError, signals: SignalHandler) -> NoReturn:
        if self.fabric.world_size == 1:  # a checkpoint needs all processes, and the others wait inside a step
            self._check_finite()
            self._save_checkpoint()
        if signals.signal is not None:  # it has stopped the loader's processes too
            raise interrupted(signals.signal, self.step, self.total, self.last_checkpoint) from None
        raise UhkdError(f"{error}; {self.last_checkpoint}") from error
