"""One training step, from a loaded batch to updated weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.recipe import TrainRecipe
from uhkd.training.ema import ModelEMA
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.teacher import TeacherSource


def step_seed(seed: int, step: int, part: int) -> int:
    """Return torch's seed for one forward pass, so that dropout and drop-path do not depend on earlier steps."""
    return (seed * 1_000_003 + step) * 1_009 + part


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into `parts` of equal size, in order (gradient accumulation)."""
    pieces = [field.chunk(parts) if isinstance(field, Tensor) else [None] * parts for field in batch]
    return [Batch(*fields) for fields in zip(*pieces, strict=True)]


@dataclass(frozen=True)
class TrainStep:
    """Takes optimizer steps, which wait for the device only with nonfinite=skip.

    model: the learner as wrapped by Fabric. totals: receives losses, gradient norms and skipped steps.
    """

    recipe: TrainRecipe
    learner: StudentWithLosses
    teacher: TeacherSource | None
    fabric: Fabric
    model: _FabricModule
    optimizer: Optimizer
    average: ModelEMA
    totals: RunningMetrics

    def __call__(self, batch: Batch, number: int, weights: Mapping[str, float]) -> None:
        """Take step `number` (from 0) with these weights of the terms."""
        recipe, learner, fabric = self.recipe, self.learner, self.fabric
        batch = batch.to(fabric.device)
        # channels-last convolutions take 0.8 to 0.9 of the time on CPUs with bf16, and tensor cores need that layout
        batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        skip = recipe.nonfinite == "skip"
        # a forward pass that overflows would damage the student's running statistics for the rest of the training
        saved_buffers = [(buffer, buffer.clone()) for buffer in learner.buffers()] if skip else []
        teacher_finite, losses = self._forward_backward(batch, number, weights)
        grad_norms = []
        if skip or recipe.clip_grad is not None:
            # student and method layers are clipped separately: the layers of a method must not shrink the student's step
            for module in (learner.student, learner.distillers):
                if parameters := list(module.parameters()):
                    grad_norms.append(nn.utils.clip_grad_norm_(parameters, recipe.clip_grad or float("inf")))
        # gradients are shared, so all processes make the same decision
        if skip and not bool(torch.stack(grad_norms).isfinite().all()):
            for buffer, saved in saved_buffers:
                buffer.copy_(saved)
            self.optimizer.zero_grad()
            self.totals.skip(number)
            return
        for finite in teacher_finite:
            self.totals.check_teacher(finite, number)
        for loss, terms in losses:
            self.totals.add(loss, terms, number)
        for norm in grad_norms:
            self.totals.add_norm(norm, number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if learner.balance is not None:
            learner.balance.update(len(batch.index) * fabric.world_size)
        self.average.update()

    def _forward_backward(
        self, batch: Batch, number: int, weights: Mapping[str, float]
    ) -> tuple[list[Tensor], list[tuple[Tensor, dict[str, Tensor]]]]:
        """Accumulate gradients over the parts of a batch.

        Returns:
            Whether each teacher output was finite, and loss and terms of each part, detached.
        """
        recipe, learner, fabric = self.recipe, self.learner, self.fabric
        teacher_finite, losses = [], []
        parts = split(batch, recipe.grad_accum_steps)
        for index, part in enumerate(parts):
            torch.manual_seed(step_seed(recipe.seed, number, index * fabric.world_size + fabric.global_rank))
            with fabric.no_backward_sync(self.model, enabled=index + 1 < len(parts)):
                teacher_output = self.teacher.outputs(part, learner.teacher_needs) if self.teacher else NetworkOutput()
                terms = self.model(part._replace(record=None), teacher_output)
                loss = weighted_sum(terms, weights, learner.balance)
                fabric.backward(loss / len(parts))
            if (finite := teacher_output.all_finite()) is not None:
                teacher_finite.append(finite)
            losses.append((loss.detach(), {name: value.detach() for name, value in terms.items()}))
        return teacher_finite, losses
