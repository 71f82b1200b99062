"""Running means of the loss terms, kept on the device so that a training step never waits for it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from uhkd.errors import UhkdError

MAX_SKIPPED = 10  # steps in a row
ADVICE = "Try a lower lr, a smaller loss weight, precision=fp32"


class RunningMetrics:
    """Sums of the loss and its terms since the last reset, and flags for values that were not finite in the whole training.

    Only methods that say so wait for the device. `skipped` lists the steps that were skipped (see `TrainStep`), from 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss_finite = torch.ones((), dtype=torch.bool, device=device)
        self.weights_finite = torch.ones((), dtype=torch.bool, device=device)  # and gradients
        self.first = torch.full((), -1, device=device)
        self.teacher_nonfinite = torch.full((), -1, device=device)
        self.skipped: list[int] = []
        self.reset()

    def reset(self) -> None:
        """Start new means; the flags stay."""
        self.count, self.sums = 0, {}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], step: int = 0) -> None:
        """Add loss and terms (scalars) of one forward pass."""
        self.count += 1
        finite = loss.isfinite()
        self.loss_finite &= finite
        self._record(finite, step)
        for name, value in {"loss": loss, **terms}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach().float()

    def add_norm(self, norm: Tensor, step: int) -> None:
        """Record the norm of a step's gradient, which can overflow although the loss is finite."""
        finite = norm.isfinite()
        self.weights_finite &= finite
        self._record(finite, step)

    def check_teacher(self, finite: Tensor, step: int) -> None:
        """Record whether the teacher output of one forward pass was finite."""
        self.teacher_nonfinite = torch.where((self.teacher_nonfinite < 0) & ~finite, step, self.teacher_nonfinite)
        self._record(finite, step)

    def check_parameters(self, weights: Iterable[Tensor]) -> None:
        """Record whether all weights are finite, since gradient norms are not always computed."""
        self.weights_finite &= torch.stack([w.detach().isfinite().all() for w in weights]).all()

    def _record(self, finite: Tensor, step: int) -> None:
        self.first = torch.where((self.first < 0) & ~finite, step, self.first)

    def skip(self, step: int) -> None:
        """Record a skipped step."""
        self.skipped.append(step)

    def check_skipped(self, step: int, last_checkpoint: str) -> None:
        """Check that some of the last steps were not skipped.

        Raises:
            UhkdError: if MAX_SKIPPED steps in a row were skipped.
        """
        if self.skipped[-MAX_SKIPPED:] == list(range(step - MAX_SKIPPED, step)):
            raise UhkdError(
                f"{MAX_SKIPPED} steps in a row, up to step {step}, gave no finite gradient; {last_checkpoint}. {ADVICE}"
            )

    def first_nonfinite_step(self) -> int | None:
        """Return the first step with a loss or gradient that was not finite, if there was one (waits for the device)."""
        return None if (step := int(self.first)) < 0 else step

    def means(self) -> dict[str, float]:
        """Return the means since the last reset (waits for the device)."""
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def check_finite(self, step: int, last_checkpoint: str) -> None:
        """Check the flags (waits for the device).

        Raises:
            UhkdError: if a loss, a gradient, a weight or a teacher output was not finite; the message contains `last_checkpoint`.
        """
        teacher_step = int(self.teacher_nonfinite)
        if teacher_step >= 0 and teacher_step == int(self.first):  # the first non-finite value is the cause
            raise UhkdError(
                f"the teacher's output is not finite in step {teacher_step + 1} (its images are listed in nonfinite.json); "
                f"{last_checkpoint}. It is not the student's loss: try precision=fp32, leave these images out, or nonfinite=skip"
            )
        if not bool(self.loss_finite):
            terms = [k for k, v in self.sums.items() if k != "loss" and not bool(v.isfinite())]
            if int(self.first) == 0:
                raise UhkdError(
                    f"the loss is not finite in the first step ({', '.join(terms) or 'weighted sum'}), before any update: the "
                    "student gives NaN or infinite values for these images (nonfinite.json), or a loss weight is too large"
                )
            raise UhkdError(
                f"the loss stopped being finite by step {step} (terms: {', '.join(terms) or 'their weighted sum'}); "
                f"{last_checkpoint}. {ADVICE}, or nonfinite=skip"
            )
        if not bool(self.weights_finite):
            raise UhkdError(
                f"gradients or weights stopped being finite by step {step} (the loss was still finite); {last_checkpoint}. "
                f"{ADVICE}, or nonfinite=skip"
            )

    def as_dict(self) -> dict[str, float]:
        """Return count and sums as numbers that JSON stores exactly (waits for the device)."""
        return {"count": self.count, **{name: float(value) for name, value in self.sums.items()}}

    def restore(self, saved: Mapping[str, float], skipped: Iterable[int] = ()) -> None:
        """Restore what `as_dict` returned."""
        self.count, self.skipped = int(saved["count"]), list(skipped)
        self.sums = {
            k: torch.tensor(v, dtype=torch.float32, device=self.device) for k, v in saved.items() if k != "count"
        }
