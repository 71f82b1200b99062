"""The base of all balances: groups of terms, schedules, and factors on the device."""

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
        groups: number of the group of each term, 1 + 2 * teacher index + (0 features, 1 logits), by the term's name. The
            cross-entropy "ce" is group 0 and not in the mapping.
        falls: schedule of feature terms and of logit terms.
    """

    def __init__(self, groups: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__()
        self.groups, self.falls = dict(groups), falls
        self.used_groups = sorted(set(groups.values()))
        self.size = 1 + 2 * (1 + (self.used_groups[-1] - 1) // 2)
        self._index: dict[tuple[str, ...], Tensor] = {}

    def reads_logits_of(self, teacher: int) -> bool:
        """Return whether the balance reads the logits of a teacher, by its index."""
        return False

    def scheduled(self, weights: Mapping[str, float], step: int, total: int) -> dict[str, float]:
        """Return the weights of all terms at step 0 <= step < total, by the schedules alone."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {
            name: w * fall[(self.groups[name] - 1) % 2] if name in self.groups else w for name, w in weights.items()
        }

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return the summands of the loss from the weighted terms `names`."""
        return weighted

    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Record logits (B, K) of one forward pass and its targets (B, K), without waiting for the device."""

    def update(self, images: int) -> None:
        """Process the observations of one optimiser step of `images` images in all processes together."""

    def validated(self, accuracy: float, images: int | None = None) -> None:
        """Process the student's accuracy, 0..1, on a number of held-out images, after a validation."""

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure gradients before a step, if the balance needs them. `norms` waits for the device."""

    def group_factors(self) -> dict[int, float]:
        """Return the current factor of each group, without its schedule (this waits for the device)."""
        return dict.fromkeys(self.used_groups, 1.0)

    def factors(self, step: int, total: int) -> dict[str, float]:
        """Return the factor of each group at a step, schedule included, by its label."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        factors = self.group_factors()
        return {self.label(group): factors[group] * fall[(group - 1) % 2] for group in self.used_groups}

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return the columns of metrics.csv at a step: factor_GROUP, the factor of each group with its schedule."""
        return {f"factor_{name}": factor for name, factor in self.factors(step, total).items()}

    def with_factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights by name, times the current factors without their schedules."""
        factors = self.group_factors()
        return {name: weight * factors.get(self.groups.get(name, 0), 1.0) for name, weight in weights.items()}

    def close_zero_groups(self) -> list[int]:
        """Return the groups whose factors were 0 since the last call, and close them for good (this waits for the device)."""
        return []

    @property
    def closed_groups(self) -> list[int]:
        """The groups that were closed (this waits for the device)."""
        return []

    def label(self, group: int) -> str:
        """Return the name of a group, with the number of its teacher if there are several: "features", "2:logits"."""
        teacher, kind = divmod(group - 1, 2)
        return GROUPS[kind] if self.size == 3 else f"{teacher + 1}:{GROUPS[kind]}"

    def _group_index(self, names: Sequence[str], device: torch.device) -> Tensor:
        """Return the group of each term as a tensor (n,), on the device; cached, as a copy to a GPU takes time in every step."""
        key = tuple(names)
        if key not in self._index or self._index[key].device != device:
            self._index[key] = torch.tensor([self.groups.get(name, 0) for name in names], device=device)
        return self._index[key]


class Factors(Balance):
    """A balance with one factor for each group on the device."""

    factor: Tensor
    highest: Tensor
    closed: Tensor

    def __init__(self, groups: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__(groups, falls)
        self.register_buffer("factor", torch.ones(self.size))
        self.register_buffer(
            "highest", torch.ones(self.size)
        )  # of the factor, since the last call of `close_zero_groups`
        self.register_buffer("closed", torch.zeros(self.size, dtype=torch.bool))

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return weighted terms times the factors of their groups."""
        return weighted * self.factor[self._group_index(names, weighted.device)]

    def group_factors(self) -> dict[int, float]:
        """Return the current factor of each group."""
        values = self.factor.tolist()
        return {group: values[group] for group in self.used_groups}

    def close_zero_groups(self) -> list[int]:
        """Return the groups whose factors were 0 in every step since the last call, and close them."""
        highest, closed = self.highest.tolist(), self.closed.tolist()
        groups = [group for group in self.used_groups if highest[group] == 0 and not closed[group]]
        if groups:
            self.closed[groups] = True
        self.highest.copy_(self.factor)
        return groups

    @property
    def closed_groups(self) -> list[int]:
        """The groups that were closed."""
        return self.closed.nonzero().flatten().tolist()
