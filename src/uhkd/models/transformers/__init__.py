"""Image classifiers of transformers: a family by its configuration, a folder of save_pretrained, a hub model, or an object."""

from uhkd.models.transformers.configuration import build_family, stage_ends
from uhkd.models.transformers.folder import find, has_weights
from uhkd.models.transformers.objects import config_of, described

__all__ = ["build_family", "config_of", "described", "find", "has_weights", "stage_ends"]
