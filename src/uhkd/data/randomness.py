"""Random streams that are addressed, never advanced: equal addresses give equal numbers in any process."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["order", "geometry", "mix", "split", "subset", "randaugment", "jitter", "erasing"]
_PURPOSES: dict[Purpose, int] = {  # a number once given stays: it is part of what a recipe means
    "order": 1,
    "geometry": 2,
    "mix": 3,
    "split": 4,
    "subset": 5,
    "randaugment": 6,
    "jitter": 7,
    "erasing": 8,
}
_MASK = (1 << 64) - 1


def stream(purpose: Purpose, seed: int, first: int = 0, second: int = 0) -> np.random.Generator:
    """Return the generator at the address (purpose, seed, first, second), independent of every other address.

    Philox counts in 256 bits and draws advance the lowest word, so addresses in the upper words never overlap.
    """
    counter = np.array([0, _PURPOSES[purpose], first & _MASK, second & _MASK], dtype=np.uint64)
    key = np.array([seed & _MASK, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))
