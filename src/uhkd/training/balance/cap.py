"""The balance "cap": a bound on the gradient of the feature terms."""

from collections.abc import Mapping

import torch

from uhkd.recipe.balance import CapSettings
from uhkd.training.balance.base import SMALLEST, Factors, Norms


class Cap(Factors):
    """Limit the gradient of the feature terms to `ratio` times that of the cross-entropy, both with respect to the student.

    Measured every few steps on the first images of the batch. The sum of the norms of the terms is used for their group: it
    bounds the norm of the sum.
    """

    def __init__(self, groups: Mapping[str, int], settings: CapSettings) -> None:
        super().__init__(groups, ("constant", "constant"))
        self.settings = settings

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure the gradients every `every` steps, and set the factors of the feature terms."""
        if step % self.settings.every:
            return
        measured = norms(weights)
        if "ce" not in measured:
            return
        for group in self.used_groups:
            if group % 2:  # feature terms
                features = sum(norm for name, norm in measured.items() if self.groups.get(name) == group)
                self.factor[group] = min(1.0, self.settings.ratio * measured["ce"] / max(features, SMALLEST))
        torch.maximum(self.highest, self.factor, out=self.highest)
