"""Models: from a name, a file or a module of one's own to a TappedModel that can be rebuilt."""

from uhkd.models.build import create, load_run, wrap
from uhkd.models.card import ModelCard
from uhkd.models.naming import model_names
from uhkd.models.weights import fingerprint, fingerprint_of, load_state, read_safetensors

__all__ = [
    "ModelCard",
    "create",
    "fingerprint",
    "fingerprint_of",
    "load_run",
    "load_state",
    "model_names",
    "read_safetensors",
    "wrap",
]
