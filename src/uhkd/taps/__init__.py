"""Taps: any vision network as a source of signals (logits, maps of several depths, embedding)."""

from uhkd.taps.signals import FIELDS, Shapes, SideShapes, Signals
from uhkd.taps.tapped import IMAGENET_MEAN, IMAGENET_STD, ImpossibleSize, TappedModel

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
