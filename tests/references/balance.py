"""Literal slow forms of the balances: one image, one group and one number at a time, in plain Python."""

import math
from collections.abc import Sequence
from typing import Any


def largest(numbers: Sequence[float]) -> int:
    """Place of the first largest number."""
    return max(range(len(numbers)), key=lambda i: (numbers[i], -i))


def uncertainty(right: float, images: int) -> float:
    """The standard error of right / images, by the variance with one right and one wrong image more."""
    ones, zeros = right + 1, images - right + 1
    return math.sqrt(ones * zeros / (ones + zeros) ** 2 / images)


class Lead:
    """Gates on the lead of one teacher over the student."""

    def __init__(self, window: int, measure: str = "accuracy", bound: float = 1.0) -> None:
        self.window, self.measure, self.bound, self.student_scale = window, measure, bound, 1.0
        self.error = 0.0  # of the bound
        self.student = self.teacher = self.images = 0.0

    def step(
        self, student: Sequence[Any], teacher: Sequence[Any], target: Sequence[Any] | None, *, counted: int = 1
    ) -> None:
        """Take in one step's logits and targets, rows of numbers."""
        kept = math.exp(-len(student) * counted / self.window)
        self.student, self.teacher, self.images = self.student * kept, self.teacher * kept, self.images * kept
        for i in range(len(student)):
            right = largest(teacher[i]) if target is None else largest(target[i])
            self.student += largest(student[i]) == right
            self.teacher += largest(teacher[i]) == right
            self.images += 1

    def validate(self, accuracy: float, margin: float, images: int | None) -> None:
        """Take in the student's accuracy on a number of held-out images."""
        training = self.student / self.images
        if images is not None:
            self.error = uncertainty(round(self.bound * images, 9), images)
            accuracy = max(0.0, accuracy - uncertainty(round(accuracy * images, 9), images))
        self.student_scale = min(1.0, margin * accuracy / training) if training else 1.0

    def lead(self) -> float:
        """max(0, 1 - a_s / a_t), or the same of odds; 1 before anything was seen."""
        if not self.images:
            return 1.0
        one, two = (
            self.student_scale * self.student / self.images,
            min(self.teacher / self.images, self.bound + self.error),
        )
        if self.measure == "odds":
            one, two = one * (1 - two), two * (1 - one)
        if two == 0:
            return 1.0 if one == 0 else 0.0
        return max(0.0, 1 - one / two)

    def factor(self, gate: float, power: float) -> float:
        """min(1, lead / gate)^power."""
        return min(1.0, self.lead() / gate) ** power


class Famo:
    """FAMO over K losses, Algorithm 1 of arXiv 2306.03792 with the next step's losses in place of a second pass."""

    def __init__(self, tasks: int, rate: float, decay: float) -> None:
        self.xi, self.rate, self.decay = [0.0] * tasks, rate, decay
        self.before: list[float] | None = None

    def shares(self) -> list[float]:
        """softmax(xi)."""
        powers = [math.exp(x) for x in self.xi]
        return [p / sum(powers) for p in powers]

    def project(self, losses: Sequence[float]) -> list[float]:
        """By what each task's gradient is multiplied: z_k / l_k over the sum of these."""
        raw = [z / loss for z, loss in zip(self.shares(), losses, strict=True)]
        return [r / sum(raw) for r in raw]

    def step(self, losses: Sequence[float]) -> None:
        """Move xi by what the logarithms fell since the step before."""
        z, now = self.shares(), [math.log(loss) for loss in losses]
        fell = [0.0] * len(z) if self.before is None else [b - n for b, n in zip(self.before, now, strict=True)]
        mean = sum(a * b for a, b in zip(z, fell, strict=True))
        for k in range(len(z)):
            self.xi[k] -= self.rate * (z[k] * (fell[k] - mean) + self.decay * self.xi[k])
        self.before = now
