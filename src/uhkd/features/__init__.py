"""Feature extraction: logits, feature maps of several depths and the embedding of any vision network."""

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
