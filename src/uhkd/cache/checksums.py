"""Checksums of pixels: they show whether a view is the one for which the teacher outputs were stored."""

import zlib

import numpy as np
import torch
from jaxtyping import UInt32
from torch import Tensor


def image_checksums(image: Tensor, target: Tensor | None) -> UInt32[np.ndarray, " b"]:
    """Return the CRC-32 of each view.

    Args:
        image: (B, 3, H, W), uint8, or floats in [0, 1] that were converted from uint8.
        target: (B, K) class shares, part of the checksum; or None.
    """
    pixels = (image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)).cpu().contiguous().numpy()
    starts = [0] * len(pixels) if target is None else [zlib.crc32(t.data) for t in target.cpu().contiguous().numpy()]
    return np.array([zlib.crc32(p.data, start) for p, start in zip(pixels, starts, strict=True)], np.uint32)
