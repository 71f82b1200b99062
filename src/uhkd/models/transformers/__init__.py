"""Image classifiers of transformers: a family by its configuration, a folder of save_pretrained, a hub model, or an object.

Configurations and processors are read as plain JSON and checked here. Auto classes are not used: they accept fields that fetch
kernels or other libraries' backbones.
"""

from uhkd.models.transformers.configuration import build_family, config_of, stage_ends
from uhkd.models.transformers.folder import find, has_safetensors
from uhkd.models.transformers.processor import preprocessing_of_module

__all__ = ["build_family", "config_of", "find", "has_safetensors", "preprocessing_of_module", "stage_ends"]
