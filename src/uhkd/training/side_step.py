"""Forward passes of a training without any effect on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.training.learner import StudentWithLosses
from uhkd.training.step import step_seed
from uhkd.training.teacher import TeacherSource

_SEED_PART = -1  # the forward passes of a step have parts from 0


class SideStep:
    """Computes loss terms on some images of a batch, of which gradients can be taken.

    The training is unchanged: no `.grad` is written; random generators and buffers (batch statistics, memory banks) are restored.
    """

    def __init__(
        self,
        learner: StudentWithLosses,
        teacher: TeacherSource | None,
        fabric: Fabric,
        seed: int = 0,
        grad_accum_steps: int = 1,
    ) -> None:
        self.learner, self.teacher, self.fabric = learner, teacher, fabric
        self.seed, self.grad_accum_steps = seed, grad_accum_steps

    @contextmanager
    def restored(self, step: int) -> Iterator[None]:
        """Seed torch's generator by the number of a step, with gradients enabled; afterwards restore generators and buffers."""
        saved_buffers = [(buffer, buffer.clone()) for buffer in self.learner.buffers()]
        device = self.fabric.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
                torch.manual_seed(step_seed(self.seed, step, _SEED_PART))
                yield
        finally:
            with torch.no_grad():
                for buffer, saved in saved_buffers:
                    buffer.copy_(saved)

    def terms(self, batch: Batch, images: int, start: int = 0) -> dict[str, Tensor]:
        """Return the raw loss terms of `images` images from `start` on; to be called inside `restored`.

        images: of all processes, at least two in each, and at most as many as in one forward pass of a step.
        """
        size = len(batch.index) // self.grad_accum_steps
        count = min(max(2, -(-images // self.fabric.world_size)), size)
        start = min(start, size - count)
        fields = {name: x[start : start + count] for name, x in batch._asdict().items() if x is not None}
        some = batch._replace(**fields).to(self.fabric.device)
        some = some._replace(image=some.image.contiguous(memory_format=torch.channels_last))
        learner = self.learner
        teacher_output = self.teacher.outputs(some, learner.teacher_needs) if self.teacher else NetworkOutput()
        with self.fabric.autocast():
            # `forward`, because a compiled `__call__` would be compiled again for this number of images
            return learner.forward(some._replace(record=None), teacher_output)
