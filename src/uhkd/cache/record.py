"""One stored record: what a teacher said about one view, as a fixed number of bytes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput

Storage = Literal["fp16", "int8"]
_STEPS = 127  # an int8 number is one of -127..127 times its block's scale


@dataclass(frozen=True)
class RecordFormat:
    """Which numbers a record holds, and how: scales (int8 only), logits, embedding, spectra shallow to deep.

    logits: K or None. embedding: D or None. spectra: (C, K) of each level, () without. storage: of spectra and embedding;
    logits are always fp16. With int8 each block (the embedding, each level) of each record has a float32 scale of its own.
    """

    logits: int | None
    embedding: int | None
    spectra: tuple[tuple[int, int], ...]
    storage: Storage = "fp16"

    @property
    def holds(self) -> tuple[str, ...]:
        """The fields of `NetworkOutput` that a record fills."""
        found = {"logits": self.logits, "embedding": self.embedding, "spectra": self.spectra}
        return tuple(name for name, there in found.items() if there)

    @property
    def _blocks(self) -> list[int]:
        """Count of numbers of the embedding and of each level."""
        return [n for n in (self.embedding, *(c * k for c, k in self.spectra)) if n]

    @property
    def size(self) -> int:
        """Bytes a record."""
        wide = 2 if self.storage == "fp16" else 1
        scales = 0 if self.storage == "fp16" else 4 * len(self._blocks)
        return scales + 2 * (self.logits or 0) + wide * sum(self._blocks)

    def encode(self, signals: NetworkOutput) -> UInt8[Tensor, "b n"]:
        """Signals of a batch as records, on the CPU.

        Raises:
            UhkdError: for numbers that are not finite, or too large for fp16.
        """
        pieces: list[Tensor] = []
        scales: list[Tensor] = []
        if self.logits:
            assert signals.logits is not None
            pieces.append(_bytes(_fp16(signals.logits, "logits")))
        for name, x in self._named_blocks(signals):
            if self.storage == "fp16":
                pieces.append(_bytes(_fp16(x, name)))
                continue
            _check_finite(x, name)
            scale = x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * _STEPS) / _STEPS
            scales.append(_bytes(scale))
            pieces.append(_bytes((x / scale).round().to(torch.int8)))
        records = torch.cat([*scales, *pieces], 1).cpu()
        assert records.shape[1] == self.size
        return records

    def decode(self, records: UInt8[Tensor, "b n"]) -> NetworkOutput:
        """Records of a batch as signals, float32, on the records' device; spectra at the size they were stored in."""
        start = 0

        def take(dtype: torch.dtype, count: int) -> Tensor:
            nonlocal start
            end = start + count * dtype.itemsize
            piece = (
                records[:, start:end].clone(memory_format=torch.contiguous_format).view(dtype)
            )  # aligned for any dtype
            start = end
            return piece.float()

        scales = take(torch.float32, len(self._blocks)) if self.storage == "int8" else None
        logits = take(torch.float16, self.logits) if self.logits else None
        dtype = torch.float16 if scales is None else torch.int8
        blocks = [take(dtype, count) for count in self._blocks]
        if scales is not None:
            blocks = [x * scales[:, i : i + 1] for i, x in enumerate(blocks)]
        embedding = blocks.pop(0) if self.embedding else None
        spectra = tuple(x.unflatten(1, shape) for x, shape in zip(blocks, self.spectra, strict=True))
        return NetworkOutput(logits=logits, spectra=spectra or None, embedding=embedding)

    def _named_blocks(self, signals: NetworkOutput) -> Iterator[tuple[str, Float[Tensor, "b n"]]]:
        """Embedding and spectra of live signals, as far as they are stored."""
        blocks = {"embedding": signals.embedding} if self.embedding else {}
        blocks |= {f"spectra of level {i}": x for i, x in enumerate(signals.spectra or ())} if self.spectra else {}
        for name, block in blocks.items():
            assert block is not None
            yield name, block.detach().float().flatten(1)

    def tolerance(self, signals: NetworkOutput) -> list[tuple[str, Float[Tensor, "b n"], Float[Tensor, "b n"]]]:
        """For each stored field of live signals: name, its numbers (B, n), and how far a stored number may lie from each."""
        found = []
        if self.logits and signals.logits is not None:
            x = signals.logits.float().cpu()
            found.append(("logits", x, _rounding(x)))
        for name, block in self._named_blocks(signals):
            x = block.cpu()
            step = x.abs().amax(1, keepdim=True) / _STEPS
            found.append((name, x, _rounding(x) if self.storage == "fp16" else (0.5 * step).expand_as(x)))
        return found


def _rounding(x: Tensor) -> Tensor:
    """Half a unit in the last place of fp16: 2^-11 of the number, and of the smallest normal one below that."""
    return x.abs().clamp_min(2.0**-14) * 2.0**-11


def _fp16(x: Tensor, name: str) -> Tensor:
    half = x.detach().to(torch.float16)
    if not half.isfinite().all():
        _check_finite(x, name)
        advice = "--keep embedding spectra leaves them out" if name == "logits" else "use --storage int8"
        raise UhkdError(f"{name} of the teacher reach {x.abs().max():.3g}, more than fp16 holds (65504); {advice}")
    return half


def _check_finite(x: Tensor, name: str) -> None:
    if not x.isfinite().all():
        bad = math.prod(x.shape) - int(x.isfinite().sum())
        raise UhkdError(f"{name} of the teacher hold {bad} NaN or infinite numbers: is the teacher sound? (try fp32)")


def _bytes(x: Tensor) -> UInt8[Tensor, "b n"]:
    return x.contiguous().view(torch.uint8)
