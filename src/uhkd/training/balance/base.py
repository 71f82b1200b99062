"""The base of all balances: the rows of the terms, schedules, and factors on the device."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.training.schedule import weights_factor

GROUPS = ("features", "logits")
SMALLEST = 1e-8  # lower limit of a loss before its logarithm, and of a divisor

Norms = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Weights of the terms -> norm of each weighted term's gradient."""


class Balance(nn.Module):
    """Schedules alone: factors that depend only on the step. Base of the balances that measure the training.

    Args:
        rows: row of each term's group, 1 + 2 * teacher index + (0 features, 1 logits), by the term's name; "ce" has row 0.
        falls: schedule of feature terms and of logit terms.
    """

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__()
        self.rows, self.falls = dict(rows), falls
        self.used_rows = sorted(set(rows.values()))
        self.size = 1 + 2 * (1 + (self.used_rows[-1] - 1) // 2)
        self._index: dict[tuple[str, ...], Tensor] = {}

    def reads_logits_of(self, teacher: int) -> bool:
        """Return whether the balance reads the logits of a teacher, by its index."""
        return False

    def scheduled(self, weights: Mapping[str, float], step: int, total: int) -> dict[str, float]:
        """Return the weights of all terms at step 0 <= step < total, by the schedules alone."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {name: w * fall[(self.rows[name] - 1) % 2] if name in self.rows else w for name, w in weights.items()}

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return the summands of the loss from the weighted terms `names`."""
        return weighted

    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Record logits (B, K) of one forward pass and its targets (B, K), without waiting for the device."""

    def update(self, images: int) -> None:
        """Process the observations of one optimiser step of `images` images in all processes together."""

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure gradients before a step, if the balance needs them. `norms` waits for the device."""

    def gates(self) -> dict[int, float]:
        """Return the current factor of each used row, without its schedule (this waits for the device)."""
        return dict.fromkeys(self.used_rows, 1.0)

    def factors(self, step: int, total: int) -> dict[str, float]:
        """Return the factor of each group at a step, schedule included, by its label."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {self.label(row): gate * fall[(row - 1) % 2] for row, gate in self.gates().items()}

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return the columns of metrics.csv at a step: factor_GROUP, the factor of each group with its schedule."""
        return {f"factor_{name}": factor for name, factor in self.factors(step, total).items()}

    def gated(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights by name, times the current factors without their schedules."""
        gates = self.gates()
        return {name: w * gates[self.rows[name]] if name in self.rows else w for name, w in weights.items()}

    def outgrown(self) -> list[int]:
        """Return the rows whose factors were 0 since the last call, and close them for good (this waits for the device)."""
        return []

    @property
    def closed_rows(self) -> list[int]:
        """The rows that were closed (this waits for the device)."""
        return []

    def label(self, row: int) -> str:
        """Return the name of a group, with the number of its teacher if there are several: "features", "2:logits"."""
        teacher, group = divmod(row - 1, 2)
        return GROUPS[group] if self.size == 3 else f"{teacher + 1}:{GROUPS[group]}"

    def _row_index(self, names: Sequence[str], device: torch.device) -> Tensor:
        """Return the row of each term, (n,), on the device; cached, as a copy to a GPU takes time in every step."""
        key = tuple(names)
        if key not in self._index or self._index[key].device != device:
            self._index[key] = torch.tensor([self.rows.get(name, 0) for name in names], device=device)
        return self._index[key]


class Factors(Balance):
    """A balance with one factor for each group on the device."""

    factor: Tensor
    highest: Tensor
    closed: Tensor

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__(rows, falls)
        self.register_buffer("factor", torch.ones(self.size))
        self.register_buffer("highest", torch.ones(self.size))  # of the factor, since the last call of `outgrown`
        self.register_buffer("closed", torch.zeros(self.size, dtype=torch.bool))

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return weighted terms times the factors of their groups."""
        return weighted * self.factor[self._row_index(names, weighted.device)]

    def gates(self) -> dict[int, float]:
        """Return the current factor of each used row."""
        values = self.factor.tolist()
        return {row: values[row] for row in self.used_rows}

    def outgrown(self) -> list[int]:
        """Return the rows whose factors were 0 in every step since the last call, and close them."""
        highest, closed = self.highest.tolist(), self.closed.tolist()
        rows = [row for row in self.used_rows if highest[row] == 0 and not closed[row]]
        if rows:
            self.closed[rows] = True
        self.highest.copy_(self.factor)
        return rows

    @property
    def closed_rows(self) -> list[int]:
        """The rows that were closed."""
        return self.closed.nonzero().flatten().tolist()
