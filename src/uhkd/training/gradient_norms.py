"""Norms of the gradient of each weighted loss term, to compare how much each term changes the student."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from uhkd.data import Batch
from uhkd.training.side_step import SideStep

PROBE_IMAGES = 32


class GradientNorms:
    """Computes norms of each weighted term's gradient with respect to the student's weights, on the first images of a batch.

    With respect to the weights, because terms on logits and on feature maps have comparable gradients only there. Costs one
    forward pass of up to 32 images and one backward pass per term, without effect on the training (`SideStep`). With fewer than
    two terms nothing is computed.

    log_line: prints one warning if a term cannot be differentiated separately; no norms are computed from then on.
    """

    def __init__(self, side_step: SideStep, log_line: Callable[[str], None]) -> None:
        self.side_step, self.learner, self.fabric = side_step, side_step.learner, side_step.fabric
        self.log_line, self.enabled = log_line, True

    def __call__(self, batch: Batch, step: int, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the norm of each term that has a weight above 0 and a gradient; identical in all processes."""
        if not self.enabled or sum(weight > 0 for weight in weights.values()) < 2:
            return {}
        with self.side_step.restored(step):
            gradients, error = {}, None
            try:
                terms = self.side_step.terms(batch, PROBE_IMAGES)
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
