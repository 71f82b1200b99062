"""Taps: any vision network as a source of signals (logits, maps of several depths, embedding)."""

from uhkd.features.extractor import IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, UnsupportedImageSize
from uhkd.features.outputs import FIELDS, NetworkOutput, OutputShapes, PairShapes

__all__ = [
    "FIELDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FeatureExtractor",
    "NetworkOutput",
    "OutputShapes",
    "PairShapes",
    "UnsupportedImageSize",
]
