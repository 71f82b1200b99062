"""Models: build a `FeatureExtractor` from a name, a file or a custom module, and rebuild it from its run folder."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.models.build import create, has_weights, load_run, save, wrap_module
    from uhkd.models.config import ModelConfig
    from uhkd.models.names import model_names, offers_pretrained
    from uhkd.models.preprocessing import native_preprocessing, native_size_of
    from uhkd.models.weights import fingerprint, fingerprint_of
    from uhkd.models.weights_file import load_state, read_safetensors

__all__ = [
    "ModelConfig",
    "create",
    "fingerprint",
    "fingerprint_of",
    "has_weights",
    "load_run",
    "load_state",
    "model_names",
    "native_preprocessing",
    "native_size_of",
    "offers_pretrained",
    "read_safetensors",
    "save",
    "wrap_module",
]

import_on_use(__name__)
