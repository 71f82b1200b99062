"""What all balances share: places of the terms, schedules, factors on the device."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.training.schedule import weights_factor

GROUPS = ("features", "logits")
SMALLEST = 1e-8  # of a loss whose logarithm is taken, and of a count that is divided by

Norms = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Weights of the terms -> norm of each weighted term's gradient."""


class Balance(nn.Module):
    """Schedules alone: factors that are known before the training. Base of the balances that look at the training.

    Args:
        rows: place of each term's group, 1 + 2 * teacher + (0 features, 1 logits), by the term's full name; "ce" has place 0.
        falls: schedule of feature terms and of logit terms.
    """

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__()
        self.rows, self.falls = dict(rows), falls
        self.size = 1 + 2 * (1 + max((row - 1) // 2 for row in rows.values()))
        self._index: dict[tuple[str, ...], Tensor] = {}

    def reads_logits_of(self, teacher: int) -> bool:
        """Whether it reads the logits of a teacher, counted from 0."""
        return False

    def scheduled(self, weights: Mapping[str, float], step: int, total: int) -> dict[str, float]:
        """Return the weights of all terms at step 0 <= step < total, by the schedules alone."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {name: w * fall[(self.rows[name] - 1) % 2] if name in self.rows else w for name, w in weights.items()}

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return the summands of the loss from the weighted terms `names`."""
        return weighted

    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Note logits (B, K) of one forward pass and its targets (B, K); nothing waits for the device."""

    def update(self, images: int) -> None:
        """Fold in what was noted since the last update: one optimiser step of `images` images in all processes together."""

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure before a step what a balance needs beside its losses. `norms` waits for the device."""

    def gates(self) -> dict[int, float]:
        """Return the current factor of each place that has a term, without its schedule (this waits for the device)."""
        return dict.fromkeys(sorted(set(self.rows.values())), 1.0)

    def factors(self, step: int, total: int) -> dict[str, float]:
        """Return the whole factor of each group at a step, by its label."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {self.label(row): gate * fall[(row - 1) % 2] for row, gate in self.gates().items()}

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return what a row of metrics.csv says of the balance at a step: factor_GROUP, the whole factor of each group."""
        return {f"factor_{name}": factor for name, factor in self.factors(step, total).items()}

    def gated(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights by name, times the current factors without their schedules."""
        gates = self.gates()
        return {name: w * gates[self.rows[name]] if name in self.rows else w for name, w in weights.items()}

    def outgrown(self) -> list[int]:
        """Return the places whose factors were 0 since the last call, closed for good (this waits for the device)."""
        return []

    @property
    def closed_rows(self) -> list[int]:
        """Places that were closed (this waits for the device)."""
        return []

    def label(self, row: int) -> str:
        """Return the name of a group, with the number of its teacher among several: "features", "2:logits"."""
        teacher, group = divmod(row - 1, 2)
        return GROUPS[group] if self.size == 3 else f"{teacher + 1}:{GROUPS[group]}"

    def _of(self, names: Sequence[str], device: torch.device) -> Tensor:
        key = tuple(names)
        if key not in self._index or self._index[key].device != device:
            self._index[key] = torch.tensor([self.rows.get(name, 0) for name in names], device=device)
        return self._index[key]


class Factors(Balance):
    """A balance with one factor a group on the device."""

    factor: Tensor
    highest: Tensor
    closed: Tensor

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__(rows, falls)
        self.register_buffer("factor", torch.ones(self.size))
        self.register_buffer("highest", torch.ones(self.size))
        self.register_buffer("closed", torch.zeros(self.size, dtype=torch.bool))

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return weighted terms times the factors of their groups."""
        return weighted * self.factor[self._of(names, weighted.device)]

    def gates(self) -> dict[int, float]:
        """Return the current factor of each place that has a term."""
        values = self.factor.tolist()
        return {row: values[row] for row in sorted(set(self.rows.values()))}

    def outgrown(self) -> list[int]:
        """Return the places whose factors were 0 in every step since the last call, now closed."""
        rows = sorted(set(self.rows.values()))
        found = [
            row
            for row, high, closed in zip(rows, self.highest[rows].tolist(), self.closed[rows].tolist(), strict=True)
            if high == 0 and not closed
        ]
        if found:
            self.closed[found] = True
        self.highest.copy_(self.factor)
        return found

    @property
    def closed_rows(self) -> list[int]:
        """Places that were closed."""
        return self.closed.nonzero().flatten().tolist()
