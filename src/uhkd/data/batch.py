"""The batch of a training or evaluation step."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """A batch of images, not normalised yet (a named tuple, because Fabric and DDP traverse those).

    Attributes:
        image: (B,3,H,W) in [0,1]; uint8 until `Loader` converts it.
        target: (B,K), rows sum to 1 (mixed by mixup or cutmix, never smoothed); None without labels.
        label: (B,) class of the unmixed image; None without labels.
        index: (B,) positions in the data source.
        record: (B,n) bytes cached for each image's view, or None.
    """

    image: Float[Tensor, "b 3 h w"]
    target: Float[Tensor, "b k"] | None
    label: Int[Tensor, " b"] | None
    index: Int[Tensor, " b"]
    record: UInt8[Tensor, "b n"] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return Batch._make(None if field is None else field.to(device, non_blocking=True) for field in self)
