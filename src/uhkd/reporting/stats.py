"""Paired differences over seeds, and what may be said of them."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import t


@dataclass(frozen=True)
class PairedDifference:
    """A paired difference in points: mean and half the width of its 95 % interval (Student's t over seeds; None: one seed)."""

    mean: float
    half: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """What may be said of it: fewer than three seeds say nothing."""
        if self.half is None or self.seeds < 3:
            return "too few seeds to tell"
        if self.half == 0:
            return "the same for every seed"
        return "a difference" if abs(self.mean) > self.half else "no difference shown"


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedDifference | None:
    """The paired difference over the seeds that both have; None where they share none."""
    found = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not found:
        return None
    if len(found) == 1:
        return PairedDifference(found[0], None, 1)
    error = statistics.stdev(found) / len(found) ** 0.5
    return PairedDifference(statistics.fmean(found), error * float(t.ppf(0.975, len(found) - 1)), len(found))
