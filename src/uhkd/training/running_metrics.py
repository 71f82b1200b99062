"""Running means of the loss terms, kept on the device so that a training step never waits for it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from uhkd.errors import UhkdError

PATIENCE = 10  # steps in a row that may be skipped
ADVICE = "Try a lower lr, a smaller loss weight, precision=fp32"


class RunningMetrics:
    """Sums of loss and terms since the last reset, and whether all that was seen of loss, gradient, weights, teacher was finite.

    `skipped` lists the steps that were left out for what they were.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.first = torch.full((), -1, device=device)
        self.teacher_nonfinite = torch.full((), -1, device=device)
        self.skipped: list[int] = []
        self.reset()

    def reset(self) -> None:
        """Start the next stretch (finiteness is remembered for the whole run)."""
        self.count, self.sums = 0, {}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], step: int = 0) -> None:
        """Note one forward pass of a step; no synchronisation with the device."""
        self.count += 1
        good = loss.isfinite()
        self.finite &= good
        self._note(good, step)
        for name, value in {"loss": loss, **terms}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach().float()

    def add_norm(self, norm: Tensor, step: int) -> None:
        """Note the norm of a step's gradient, which may overflow under a finite loss; no synchronisation either."""
        good = norm.isfinite()
        self.finite &= good
        self._note(good, step)

    def check_teacher(self, good: Tensor, step: int) -> None:
        """Note whether all that a teacher said to one forward pass was finite; no synchronisation either."""
        self.teacher_nonfinite = torch.where((self.teacher_nonfinite < 0) & ~good, step, self.teacher_nonfinite)
        self._note(good, step)

    def skip(self, step: int) -> None:
        """Note that a step was left out."""
        self.skipped.append(step)

    def check_skipped(self, step: int, last_checkpoint: str) -> None:
        """See that not all of the last steps were left out.

        Raises:
            UhkdError: when PATIENCE steps in a row were.
        """
        if self.skipped[-PATIENCE:] == list(range(step - PATIENCE, step)):
            raise UhkdError(
                f"{PATIENCE} steps in a row, up to step {step}, gave no finite gradient; {last_checkpoint}. {ADVICE}"
            )

    def check_parameters(self, weights: Iterable[Tensor]) -> None:
        """Note whether all weights are finite: the last resort where gradients were not looked at."""
        self.finite &= torch.stack([w.detach().isfinite().all() for w in weights]).all()

    def _note(self, good: Tensor, step: int) -> None:
        self.first = torch.where((self.first < 0) & ~good, step, self.first)

    def first_nonfinite_step(self) -> int | None:
        """Number of the first step whose loss or gradient was not finite, if it was seen (this waits for the device)."""
        return None if (step := int(self.first)) < 0 else step

    def means(self) -> dict[str, float]:
        """Mean of each since the last reset."""
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def check_finite(self, step: int, last_checkpoint: str) -> None:
        """Read the flag (this waits for the device).

        Raises:
            UhkdError: if a loss, a weight or a teacher output is NaN or infinite. The message ends with `last_checkpoint`.
        """
        step_of_teacher = int(self.teacher_nonfinite)
        if step_of_teacher >= 0 and step_of_teacher == int(self.first):  # the first non-finite value is the cause
            raise UhkdError(
                f"the teacher's output is not finite in step {step_of_teacher + 1}, whose images are in nonfinite.json; "
                f"{last_checkpoint}. It is not the student's loss: try precision=fp32, leave these images out, or nonfinite=skip"
            )
        if not bool(self.finite):
            bad = [k for k, v in self.sums.items() if k != "loss" and not bool(v.isfinite())]
            raise UhkdError(
                f"the loss stopped being finite by step {step} (terms: {', '.join(bad) or 'their weighted sum'}); "
                f"{last_checkpoint}. {ADVICE}, or nonfinite=skip"
            )
        if not bool(self.finite):
            raise UhkdError(
                f"gradients or weights stopped being finite by step {step} (the loss was still finite); {last_checkpoint}. "
                f"{ADVICE}, or nonfinite=skip"
            )

    def as_dict(self) -> dict[str, float]:
        """Sums and count as numbers that JSON keeps exactly."""
        return {"count": self.count, **{name: float(value) for name, value in self.sums.items()}}

    def restore(self, saved: Mapping[str, float], skipped: Iterable[int] = ()) -> None:
        """Take over what `as_dict` gave."""
        self.count, self.skipped = int(saved["count"]), list(skipped)
        self.sums = {
            k: torch.tensor(v, dtype=torch.float32, device=self.device) for k, v in saved.items() if k != "count"
        }
