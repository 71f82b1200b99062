"""Running means of the loss terms, kept on the device so that a training step never waits for it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Totals:
    """Sums of loss and terms since the last reset, and whether every loss (and weight, when looked at) was finite."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.sound = torch.ones((), dtype=torch.bool, device=device)
        self.reset()

    def reset(self) -> None:
        """Start the next stretch (finiteness is remembered for the whole run)."""
        self.count, self.sums = 0, {}

    def add(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Note one forward pass; no synchronisation with the device."""
        self.count += 1
        self.finite &= loss.isfinite()
        for name, value in {"loss": loss, **terms}.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach().float()

    def look_at(self, weights: Iterable[Tensor]) -> None:
        """Note whether all weights are finite: a gradient may overflow under a finite loss."""
        self.sound &= torch.stack([w.detach().isfinite().all() for w in weights]).all()

    def means(self) -> dict[str, float]:
        """Mean of each since the last reset."""
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def check_finite(self, step: int, kept: str) -> None:
        """Read the flag (this waits for the device).

        Raises:
            ValueError: when some loss or weight was NaN or infinite; `kept` says what is left to go on from.
        """
        advice = "Try a lower lr, a smaller loss weight, or precision=fp32"
        if not bool(self.finite):
            bad = [k for k, v in self.sums.items() if k != "loss" and not bool(v.isfinite())]
            raise ValueError(
                f"the loss stopped being finite by step {step} (terms: {', '.join(bad) or 'their weighted sum'}); {kept}. "
                f"{advice}"
            )
        if not bool(self.sound):
            raise ValueError(
                f"weights stopped being finite by step {step} (the loss was still finite); {kept}. {advice}"
            )

    def as_dict(self) -> dict[str, float]:
        """Sums and count as numbers that JSON keeps exactly."""
        return {"count": self.count, **{name: float(value) for name, value in self.sums.items()}}

    def restore(self, saved: Mapping[str, float]) -> None:
        """Take over what `as_dict` gave."""
        self.count = int(saved["count"])
        self.sums = {
            k: torch.tensor(v, dtype=torch.float32, device=self.device) for k, v in saved.items() if k != "count"
        }
