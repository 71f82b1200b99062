"""Taps: any vision network as a source of signals (logits, maps of several depths, embedding)."""

from uhkd.features.extractor import IMAGENET_MEAN, IMAGENET_STD, ImpossibleSize, TappedModel
from uhkd.features.outputs import FIELDS, Shapes, SideShapes, Signals

__all__ = [
    "FIELDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImpossibleSize",
    "Shapes",
    "SideShapes",
    "Signals",
    "TappedModel",
]
