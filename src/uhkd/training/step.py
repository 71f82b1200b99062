"""One training step: from a loaded batch to new weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import nn
from torch.optim import Optimizer

from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.recipe import TrainRecipe
from uhkd.training.ema import ModelEMA
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.teacher import TeacherSource


def step_seed(seed: int, step: int, part: int) -> int:
    """Seed of torch's generators for one forward pass: dropout and drop-path depend on the position alone, not on the past."""
    return (seed * 1_000_003 + step) * 1_009 + part


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` of equal size, in order (gradient accumulation)."""
    pieces = [field.chunk(parts) if isinstance(field, torch.Tensor) else [None] * parts for field in batch]
    return [Batch(*fields) for fields in zip(*pieces, strict=True)]


@dataclass(frozen=True)
class TrainStep:
    """Takes steps, which never wait for the device (but with nonfinite=skip). `model` is the learner as Fabric wrapped it."""

    recipe: TrainRecipe
    learner: StudentWithLosses
    teacher: TeacherSource | None
    fabric: Fabric
    model: _FabricModule
    optimizer: Optimizer
    average: ModelEMA
    totals: RunningMetrics

    def __call__(self, batch: Batch, number: int, weights: Mapping[str, float]) -> None:
        """Step `number` of the training, by the weights of the terms."""
        recipe, learner, fabric = self.recipe, self.learner, self.fabric
        batch = batch.to(fabric.device)
        # convolutions on channels-last images take 0.8-0.9 of the time on CPUs with bf16, and tensor cores want them
        batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        parts = split(batch, recipe.grad_accum_steps)
        skip = recipe.nonfinite == "skip"
        # a forward pass that overflows spoils the running statistics of the student for good
        held = [(buffer, buffer.clone()) for buffer in learner.buffers()] if skip else []
        teacher_finite, passes = [], []
        for part, micro in enumerate(parts):
            torch.manual_seed(step_seed(recipe.seed, number, part * fabric.world_size + fabric.global_rank))
            with fabric.no_backward_sync(self.model, enabled=part + 1 < len(parts)):
                teacher_output = self.teacher.signals(micro, learner.teacher_needs) if self.teacher else NetworkOutput()
                terms = self.model(micro._replace(record=None), teacher_output)
                loss = weighted_sum(terms, weights, learner.balance)
                fabric.backward(loss / len(parts))
            if (finite := teacher_output.finite()) is not None:
                teacher_finite.append(finite)
            passes.append((loss.detach(), {name: value.detach() for name, value in terms.items()}))
        norms = []
        if skip or recipe.clip_grad is not None:
            # each side by itself: a method's own layers must not shrink the step of the student, which all methods share
            for side in (learner.student, learner.distillers):
                if parameters := list(side.parameters()):
                    norms.append(nn.utils.clip_grad_norm_(parameters, recipe.clip_grad or float("inf")))
        # alike in all processes, which share their gradients
        if skip and not bool(torch.stack(norms).isfinite().all()):
            for buffer, before in held:
                buffer.copy_(before)
            self.optimizer.zero_grad()
            self.totals.skip(number)
            return
        for finite in teacher_finite:
            self.totals.check_teacher(finite, number)
        for loss, terms in passes:
            self.totals.add(loss, terms, number)
        for norm in norms:
            self.totals.add_norm(norm, number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if learner.balance is not None:
            learner.balance.update(len(batch.index) * fabric.world_size)
        self.average.update()
