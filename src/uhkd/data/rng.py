"""Random streams that are addressed, never advanced: equal addresses give equal numbers in any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float64, Shaped

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
_LOW = np.uint64((1 << 32) - 1)
_HALF = np.uint64(32)
_FACTORS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)  # Philox4x64: Salmon et al. 2011
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


def stream(purpose: Purpose, seed: int, first: int = 0, second: int = 0) -> np.random.Generator:
    """Return the generator at the address (purpose, seed, first, second), independent of every other address.

    Philox counts in 256 bits and draws advance the lowest word, so addresses in the upper words never overlap.
    """
    counter = np.array([0, _PURPOSES[purpose], first & _MASK, second & _MASK], dtype=np.uint64)
    key = np.array([seed & _MASK, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def streams(purpose: Purpose, seed: int, first: int, seconds: Iterable[int]) -> Iterator[np.random.Generator]:
    """Yield what `stream` returns at each of the addresses, as one generator that moves on: use it before the next is taken.

    Setting the state takes a tenth of the time of a new generator.
    """
    generator = stream(purpose, seed, first)
    state = generator.bit_generator.state
    counter = state["state"]["counter"]
    for second in seconds:
        counter[3] = int(second) & _MASK
        generator.bit_generator.state = state
        yield generator


def uniforms(purpose: Purpose, seed: int, first: int, seconds: Shaped[np.ndarray, " b"]) -> Float64[np.ndarray, "b 4"]:
    """Return the first four numbers in [0,1) that `stream(...).random` draws at each of the addresses, all at once.

    seconds: (B,) integers.
    """
    second = np.asarray(seconds).astype(np.uint64)
    # a stream's first block is that of counter 1: NumPy counts before it draws
    even = np.stack([np.full_like(second, 1), np.full_like(second, first & _MASK)])
    odd = np.stack([np.full_like(second, _PURPOSES[purpose]), second])
    even, odd = _philox(even, odd, seed & _MASK)
    draws = np.stack([even[0], odd[0], even[1], odd[1]], axis=1)
    return (draws >> np.uint64(11)) * 2.0**-53


def _philox(even: np.ndarray, odd: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Encrypt counters by Philox4x64-10 under the key (key, 0): words 0 and 2 in `even`, 1 and 3 in `odd`, each (2,B)."""
    factors_low, factors_high = _FACTORS & _LOW, _FACTORS >> _HALF
    for number in range(_ROUNDS):
        keys = np.array([[key + number * _WEYL[0] & _MASK], [number * _WEYL[1] & _MASK]], dtype=np.uint64)
        # the upper half of a 64 x 64 bit product, by 32-bit halves none of whose sums overflows
        low, high = even & _LOW, even >> _HALF
        middle = high * factors_low + (low * factors_low >> _HALF)
        upper = high * factors_high + (middle >> _HALF) + (low * factors_high + (middle & _LOW) >> _HALF)
        even, odd = upper[::-1] ^ odd ^ keys, (even * _FACTORS)[::-1]
    return even, odd
