"""What each weighted term asks of the student: the norms of their gradients, measured beside the training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.training.learner import StudentWithLosses
from uhkd.training.step import step_seed
from uhkd.training.teacher import TeacherSource

PROBE_IMAGES = 32
_PART = -1  # among the passes of a step, which count from 0


class GradientNorms:
    """Norms of each weighted term's gradient by the student's weights, on the first images of a batch.

    By the weights, because only there terms on logits and terms on maps are told in one unit: how far each would move the
    student. Costs one forward pass of up to 32 images and one backward pass a term. The training does not notice: no `.grad` is
    written, no generator moves, and every buffer (batch statistics, memory banks) is put back. Without a second term there is
    nothing to compare, and nothing is measured.

    say: told once, when the terms of a method cannot be differentiated one by one; there are no norms then.
    """

    def __init__(
        self,
        learner: StudentWithLosses,
        teacher: TeacherSource | None,
        fabric: Fabric,
        seed: int,
        grad_accum_steps: int,
        log_line: Callable[[str], None],
    ) -> None:
        self.learner, self.teacher, self.fabric, self.log_line = learner, teacher, fabric, log_line
        self.seed, self.grad_accum_steps = seed, grad_accum_steps
        self.able = True

    def __call__(self, batch: Batch, step: int, weights: Mapping[str, float]) -> dict[str, float]:
        """The norm by name of each term of weight above 0 that the student can change; alike in all processes."""
        if not self.able or sum(weight > 0 for weight in weights.values()) < 2:
            return {}
        with self._untouched():
            torch.manual_seed(step_seed(self.seed, step, _PART))
            gradients, error = {}, None
            try:
                terms = self._terms(self._first(batch))
                try:
                    gradients = self._gradients(terms, weights)
                except (RuntimeError, ValueError) as failed:
                    error = failed
            except (RuntimeError, ValueError) as failed:
                if self.fabric.world_size > 1:  # others may wait for this process in the midst of a term
                    raise
                error = failed
            if self._all(error is None):
                return self._norms(gradients)
        self.able = False
        why = "another process failed" if error is None else (str(error).splitlines() or [type(error).__name__])[0]
        self.log_line(f"warning: the gradient of each term cannot be measured, the training goes on without: {why}")
        return {}

    def _first(self, batch: Batch) -> Batch:
        """As many as one pass of a step takes, at most; over all processes the same images that one would have."""
        fair = max(2, -(-PROBE_IMAGES // self.fabric.world_size))
        count = min(fair, len(batch.index) // self.grad_accum_steps)
        fields = {name: field[:count] for name, field in batch._asdict().items() if field is not None}
        own = batch._replace(**fields).to(self.fabric.device)
        return own._replace(image=own.image.contiguous(memory_format=torch.channels_last))

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        learner = self.learner
        teacher_output = self.teacher.signals(batch, learner.teacher_needs) if self.teacher else NetworkOutput()
        with self.fabric.autocast():
            # not the call but forward: a compiled call would be compiled once more, for this number of images
            return learner.forward(batch._replace(record=None), teacher_output)

    def _gradients(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Of each weighted term that reaches the student, all in one row."""
        parameters = [p for p in self.learner.student.parameters() if p.requires_grad]
        rows: dict[str, Tensor] = {}
        for name, value in terms.items():
            if weights[name] and value.requires_grad:
                found = torch.autograd.grad(weights[name] * value, parameters, retain_graph=True, allow_unused=True)
                if any(gradient is not None for gradient in found):
                    rows[name] = torch.cat([g.detach().float().flatten() for g in found if g is not None])
        return rows if len(rows) > 1 else {}

    def _all(self, finite: bool) -> bool:
        """Whether no process failed."""
        if self.fabric.world_size == 1:
            return finite
        mean = self.fabric.all_reduce(torch.tensor(float(finite), device=self.fabric.device), reduce_op="mean")
        return float(mean) == 1  # pyright: ignore[reportArgumentType] (a tensor gives a tensor)

    def _norms(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        if not gradients:
            return {}
        read = torch.stack([self._norm(row) for row in gradients.values()]).tolist()
        return {name: norm for name, norm in zip(gradients, read, strict=True) if norm < float("inf")}

    def _norm(self, gradients: Tensor) -> Tensor:
        if self.fabric.world_size > 1:
            mean = self.fabric.all_reduce(gradients, reduce_op="mean")
            assert isinstance(mean, Tensor)
            gradients = mean
        return gradients.norm()

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        held = [(buffer, buffer.clone()) for buffer in self.learner.buffers()]
        device = self.fabric.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
                yield
        finally:
            with torch.no_grad():
                for buffer, before in held:
                    buffer.copy_(before)
