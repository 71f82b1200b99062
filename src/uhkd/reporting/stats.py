"""Paired differences over seeds and their interpretation."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import t


@dataclass(frozen=True)
class PairedDifference:
    """A paired difference in percentage points: its mean and half the width of its 95 % interval.

    The interval is Student's t over seeds; half is None for one seed.
    """

    mean: float
    half: float | None
    seeds: int

    @property
    def conclusion(self) -> str:
        """What the difference shows; with fewer than three seeds, nothing."""
        if self.half is None or self.seeds < 3:
            return "too few seeds to tell"
        if self.half == 0:
            return "the same for every seed"
        return "a difference" if abs(self.mean) > self.half else "no difference shown"


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> PairedDifference | None:
    """Return the paired difference over the seeds that both have, or None where they share none."""
    points = [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if len(points) < 2:
        return PairedDifference(points[0], None, 1) if points else None
    error = statistics.stdev(points) / len(points) ** 0.5
    return PairedDifference(statistics.fmean(points), error * float(t.ppf(0.975, len(points) - 1)), len(points))
