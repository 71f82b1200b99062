"""What a training or evaluation step receives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """A batch of images that no network has normalised yet (a named tuple: Fabric and DDP look inside those).

    image: (B,3,H,W) in [0,1]. target: (B,K), rows sum to 1 (mixed by mixup or cutmix, never smoothed), or None.
    label: (B,) class of the un-mixed image, or None without labels. index: (B,) positions in the data source.
    record: (B,n) bytes that were stored for each image's view, or None.
    """

    image: Float[Tensor, "b 3 h w"]
    target: Float[Tensor, "b k"] | None
    label: Int[Tensor, " b"] | None
    index: Int[Tensor, " b"]
    record: UInt8[Tensor, "b n"] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            image=move(self.image),
            target=None if self.target is None else move(self.target),
            label=None if self.label is None else move(self.label),
            index=move(self.index),
            record=None if self.record is None else move(self.record),
        )
