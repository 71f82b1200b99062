"""Models: from a name, a file or a module of one's own to a TappedModel that can be rebuilt."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.models.build import brings_weights, create, load_run, save, wrap
    from uhkd.models.card import ModelCard
    from uhkd.models.names import model_names
    from uhkd.models.preprocessing import own_input, own_size
    from uhkd.models.weights import fingerprint, fingerprint_of, load_state, read_safetensors

__all__ = [
    "ModelCard",
    "brings_weights",
    "create",
    "fingerprint",
    "fingerprint_of",
    "load_run",
    "load_state",
    "model_names",
    "own_input",
    "own_size",
    "read_safetensors",
    "save",
    "wrap",
]

import_on_use(
    __name__,
    {
        "uhkd.models.build": ("brings_weights", "create", "load_run", "save", "wrap"),
        "uhkd.models.card": ("ModelCard",),
        "uhkd.models.preprocessing": ("own_input", "own_size"),
        "uhkd.models.names": ("model_names",),
        "uhkd.models.weights": ("fingerprint", "fingerprint_of", "load_state", "read_safetensors"),
    },
)
