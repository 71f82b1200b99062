"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "step", "constant"]


def lr_factor(
    step: int,
    total: int,
    *,
    schedule: Schedule = "cosine",
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    first: float | None = None,
    floor: float = 0.0,
) -> float:
    """Factor on the base learning rate for step 0 <= step < total.

    Linear warm-up over `warmup` steps (the first step gets 1/warmup and the last one 1; or `first`, and 1 comes just after
    them), then half a cosine from 1 down to `floor` just after the last step, or `gamma` at each milestone passed, or 1.

    timm's scripts set the rate once an epoch instead, and their cosine of epoch t out of T starts at t = 0, with warm-up
    in place of its first epochs: after W of them they go on at (1 + cos(pi W / T)) / 2, ours at 1.
    """
    if step < warmup:
        return (step + 1) / warmup if first is None else first + (1 - first) * step / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return gamma ** sum(step >= m for m in milestones)
    return floor + (1 - floor) * ((1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2)


def weights_factor(step: int, total: int, schedule: str) -> float:
    """What the weights of a method's terms are multiplied by at a step, 1 to 0: "constant" (1), "linear" or "cosine"."""
    if schedule == "linear":
        return 1 - step / total
    return (1 + math.cos(math.pi * step / total)) / 2 if schedule == "cosine" else 1.0
