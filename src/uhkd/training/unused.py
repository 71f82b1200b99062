"""Trainable parameters on which no loss term depends."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from uhkd.console import first_line, listed, log_info, pluralize
from uhkd.data import Batch
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.side_step import SideStep

_PROBES, _IMAGES = 8, 4  # as many images as in one measurement of gradient norms


class UnusedParameters:
    """Finds and freezes parameters that receive no gradient: a mask token, an auxiliary head, the layers of a term of weight 0.

    DDP would wait for their gradients. Eight steps without effect on the training find them, with different images and random
    numbers.

    Attributes:
        frozen: names of the frozen parameters, those of the student as in its module.
        varying: whether some parameters receive a gradient in some steps only, as with stochastic depth over whole blocks.
        checked: whether the parameters were checked for the present loss terms; to be reset when terms are removed.
    """

    def __init__(self, side_step: SideStep) -> None:
        self.side_step = side_step
        self.frozen: list[str] = []
        self.varying = self.checked = False
        self._parameters: list[Tensor] = []

    def freeze(self, batch: Batch, weights: Mapping[str, float]) -> bool:
        """Freeze and log the parameters that no term of weight above 0 uses; return whether any has no gradient in some step."""
        learner, fabric = self.side_step.learner, self.side_step.fabric
        trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        used, unknown = torch.zeros(len(trained), device=fabric.device), ""
        for number in range(_PROBES):
            with self.side_step.restored(number):
                loss = weighted_sum(self.side_step.terms(batch, _IMAGES, number * _IMAGES), weights)
                try:
                    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
                except RuntimeError as error:  # reentrant checkpointing of activations allows a backward pass only
                    unknown = unknown or first_line(error)
                    gradients = tuple(trained.values())
            used += torch.tensor([float(gradient is not None) for gradient in gradients], device=fabric.device)
        if unknown:
            log_info(f"  whether all parameters receive a gradient cannot be determined: {unknown}")
        total = _PROBES * fabric.world_size
        if fabric.world_size > 1:
            used = fabric.all_reduce(used, reduce_op="sum")
            assert isinstance(used, Tensor)
        counts = dict(zip(trained, used.tolist(), strict=True))
        unused = [name for name, count in counts.items() if count == 0]
        self.checked, self.varying = True, any(0 < count < total for count in counts.values())
        for name in unused:
            trained[name].requires_grad_(False)
        self._parameters += [trained[name] for name in unused]
        names = [name.removeprefix("student.module.") for name in unused]
        self.frozen += names
        if names:
            log_info(
                f"  {pluralize(len(names), 'parameter')} ({sum(trained[n].numel() for n in unused):,} numbers) without gradient, "
                f"because no loss term depends on them, are frozen: {listed(names, 4)}"
            )
        return bool(unused) or self.varying

    def release(self) -> list[str]:
        """Make the frozen parameters trainable again, and return their names."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        return self.frozen


def wrap(fabric: Fabric, learner: StudentWithLosses, *, varying: bool) -> Any:
    """Return the learner in DDP; varying: some of its parameters receive a gradient in some steps only."""
    if varying:
        log_info("  some parameters receive a gradient in some steps only: DDP searches for them in each step")
        fabric.strategy._ddp_kwargs["find_unused_parameters"] = True  # pyright: ignore[reportAttributeAccessIssue]
    return fabric.setup_module(learner, move_to_device=False)
