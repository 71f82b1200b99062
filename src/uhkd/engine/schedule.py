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
) -> float:
    """Factor on the base learning rate for step 0 <= step < total.

    Linear warm-up over `warmup` steps (the first step gets 1/warmup), then half a cosine from 1 down to 0 just after the
    last step, or `gamma` at each milestone passed, or 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return gamma ** sum(step >= m for m in milestones)
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
