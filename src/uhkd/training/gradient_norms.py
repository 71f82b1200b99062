"""Norms of the gradient of each weighted loss term, to compare how much each term changes the student."""

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
_SEED_PART = -1  # the forward passes of a step have parts from 0


class GradientNorms:
    """Computes norms of each weighted term's gradient with respect to the student's weights, on the first images of a batch.

    With respect to the weights, because terms on logits and on feature maps have comparable gradients only there. Costs one
    forward pass of up to 32 images and one backward pass per term. The training is unchanged: no `.grad` is written, random
    generators and buffers (batch statistics, memory banks) are restored. With fewer than two terms nothing is computed.

    log_line: prints one warning if a term cannot be differentiated separately; no norms are computed from then on.
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
        self.enabled = True

    def __call__(self, batch: Batch, step: int, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the norm of each term that has a weight above 0 and a gradient; identical in all processes."""
        if not self.enabled or sum(weight > 0 for weight in weights.values()) < 2:
            return {}
        with self._state_restored():
            torch.manual_seed(step_seed(self.seed, step, _SEED_PART))
            gradients, error = {}, None
            try:
                terms = self._terms(self._first_images(batch))
                try:
                    gradients = self._gradients(terms, weights)
                except (RuntimeError, ValueError) as failure:
                    error = failure
            except (RuntimeError, ValueError) as failure:
                if self.fabric.world_size > 1:  # other processes may be waiting inside the forward pass of a term
                    raise
                error = failure
            if self._all_processes(error is None):
                return self._norms(gradients)
        self.enabled = False
        why = "another process failed" if error is None else (str(error).splitlines() or [type(error).__name__])[0]
        self.log_line(f"warning: the gradient of each term cannot be measured, the training continues without: {why}")
        return {}

    def _first_images(self, batch: Batch) -> Batch:
        """Return at most as many images as one forward pass of a step uses; in all processes together about PROBE_IMAGES."""
        share = max(2, -(-PROBE_IMAGES // self.fabric.world_size))
        count = min(share, len(batch.index) // self.grad_accum_steps)
        fields = {name: field[:count] for name, field in batch._asdict().items() if field is not None}
        first = batch._replace(**fields).to(self.fabric.device)
        return first._replace(image=first.image.contiguous(memory_format=torch.channels_last))

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        learner = self.learner
        teacher_output = self.teacher.outputs(batch, learner.teacher_needs) if self.teacher else NetworkOutput()
        with self.fabric.autocast():
            # `forward`, because a compiled `__call__` would be compiled again for this number of images
            return learner.forward(batch._replace(record=None), teacher_output)

    def _gradients(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the flattened gradient of each weighted term that depends on the student's weights."""
        parameters = [p for p in self.learner.student.parameters() if p.requires_grad]
        flat: dict[str, Tensor] = {}
        for name, value in terms.items():
            if weights[name] and value.requires_grad:
                gradients = torch.autograd.grad(weights[name] * value, parameters, retain_graph=True, allow_unused=True)
                if any(gradient is not None for gradient in gradients):
                    flat[name] = torch.cat([g.detach().float().flatten() for g in gradients if g is not None])
        return flat if len(flat) > 1 else {}

    def _all_processes(self, succeeded: bool) -> bool:
        if self.fabric.world_size == 1:
            return succeeded
        mean = self.fabric.all_reduce(torch.tensor(float(succeeded), device=self.fabric.device), reduce_op="mean")
        return float(mean) == 1  # pyright: ignore[reportArgumentType] (a tensor gives a tensor)

    def _norms(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        if not gradients:
            return {}
        norms = []
        for gradient in gradients.values():
            if self.fabric.world_size > 1:
                gradient = self.fabric.all_reduce(gradient, reduce_op="mean")
                assert isinstance(gradient, Tensor)
            norms.append(gradient.norm())
        return {n: norm for n, norm in zip(gradients, torch.stack(norms).tolist(), strict=True) if norm < float("inf")}

    @contextmanager
    def _state_restored(self) -> Iterator[None]:
        saved_buffers = [(buffer, buffer.clone()) for buffer in self.learner.buffers()]
        device = self.fabric.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
                yield
        finally:
            with torch.no_grad():
                for buffer, saved in saved_buffers:
                    buffer.copy_(saved)
