"""The balance that bounds the gradient of the feature terms."""

from collections.abc import Mapping

import torch

from uhkd.recipe.balance import CapSettings
from uhkd.training.balance.base import SMALLEST, Factors, Norms


class Cap(Factors):
    """A bound on the feature terms: their gradient is at most `ratio` times the cross-entropy's, both by the student's weights.

    Measured every few steps on the first images of the batch, where a term's own norm stands for its group's: the sum of the
    norms bounds the norm of the sum.

    Raises:
        UhkdError: where there is no cross-entropy to compare with.
    """

    def __init__(self, rows: Mapping[str, int], settings: CapSettings) -> None:
        super().__init__(rows, ("constant", "constant"))
        self.settings = settings

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure the gradients, if it is time, and set the factors of the feature terms."""
        if step % self.settings.every:
            return
        found = norms(weights)
        if "ce" not in found:
            return
        for row in {row for row in self.rows.values() if row % 2}:
            features = sum(norm for name, norm in found.items() if self.rows.get(name) == row)
            self.factor[row] = min(1.0, self.settings.ratio * found["ce"] / max(features, SMALLEST))
        torch.maximum(self.highest, self.factor, out=self.highest)
