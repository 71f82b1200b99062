"""One record of a cache: the teacher's outputs for one view as a fixed number of bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput

Storage = Literal["fp16", "int8"]
_STEPS = 127  # an int8 number is -127..127 times the scale of its block


@dataclass(frozen=True)
class RecordFormat:
    """Fields of a record in order of storage: scales (int8 only), logits, embedding, spectra from shallow to deep.

    logits: K or None. embedding: D or None. spectra: (C, K) of each level, or (). storage: of embedding and spectra; logits are
    always fp16. With int8 each block (the embedding, each level) of each record has its float32 scale.
    """

    logits: int | None
    embedding: int | None
    spectra: tuple[tuple[int, int], ...]
    storage: Storage = "fp16"

    @property
    def holds(self) -> tuple[str, ...]:
        """The stored fields of `NetworkOutput`."""
        return tuple(name for name in ("logits", "embedding", "spectra") if getattr(self, name))

    @property
    def _blocks(self) -> list[int]:
        """Counts of numbers of the embedding and of each level."""
        return [n for n in (self.embedding, *(c * k for c, k in self.spectra)) if n]

    @property
    def size(self) -> int:
        """Bytes per record."""
        blocks = self._blocks
        return 2 * (self.logits or 0) + (2 * sum(blocks) if self.storage == "fp16" else sum(blocks) + 4 * len(blocks))

    def encode(self, outputs: NetworkOutput) -> UInt8[Tensor, "b n"]:
        """Convert the outputs of a batch to records on the CPU.

        Raises:
            UhkdError: a number is not finite, or too large for fp16.
        """
        pieces: list[Tensor] = []
        scales: list[Tensor] = []
        if self.logits:
            assert outputs.logits is not None
            pieces.append(_bytes(_fp16(outputs.logits, "logits")))
        for name, x in self._named_blocks(outputs):
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
        """Convert records to float32 outputs on the same device; spectra keep the size in which they were stored."""
        start = 0

        def take(dtype: torch.dtype, count: int) -> Tensor:
            nonlocal start
            end = start + count * dtype.itemsize
            piece = records[:, start:end].clone(memory_format=torch.contiguous_format)  # aligned for any dtype
            start = end
            return piece.view(dtype).float()

        scales = take(torch.float32, len(self._blocks)) if self.storage == "int8" else None
        logits = take(torch.float16, self.logits) if self.logits else None
        dtype = torch.float16 if scales is None else torch.int8
        blocks = [take(dtype, count) for count in self._blocks]
        if scales is not None:
            blocks = [x * scales[:, i : i + 1] for i, x in enumerate(blocks)]
        embedding = blocks.pop(0) if self.embedding else None
        spectra = tuple(x.unflatten(1, shape) for x, shape in zip(blocks, self.spectra, strict=True))
        return NetworkOutput(logits=logits, spectra=spectra or None, embedding=embedding)

    def _named_blocks(self, outputs: NetworkOutput) -> Iterator[tuple[str, Float[Tensor, "b n"]]]:
        """Yield name and numbers of each stored block: the embedding, then the spectra."""
        blocks = {"embedding": outputs.embedding} if self.embedding else {}
        blocks |= {f"spectra of level {i}": x for i, x in enumerate(outputs.spectra or (), 1)} if self.spectra else {}
        for name, block in blocks.items():
            assert block is not None
            yield name, block.detach().float().flatten(1)

    def tolerance(self, outputs: NetworkOutput) -> list[tuple[str, Float[Tensor, "b n"], Float[Tensor, "b n"]]]:
        """Return for each stored block its name, its numbers (B, n), and the largest error of storage of each number."""
        blocks = []
        if self.logits and outputs.logits is not None:
            x = outputs.logits.float().cpu()
            blocks.append(("logits", x, _rounding(x)))
        for name, block in self._named_blocks(outputs):
            x = block.cpu()
            step = x.abs().amax(1, keepdim=True) / _STEPS
            blocks.append((name, x, _rounding(x) if self.storage == "fp16" else (0.5 * step).expand_as(x)))
        return blocks


def _rounding(x: Tensor) -> Tensor:
    """Return half a unit in the last place of fp16: 2^-11 of each number, or of the smallest normal number if larger."""
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
        bad = x.numel() - int(x.isfinite().sum())
        raise UhkdError(
            f"{name} of the teacher hold {bad} NaN or infinite numbers; check its weights, or try --precision fp32"
        )


def _bytes(x: Tensor) -> UInt8[Tensor, "b n"]:
    return x.contiguous().view(torch.uint8)
