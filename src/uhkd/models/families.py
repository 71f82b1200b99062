"""Image classification families of transformers by name; the package is imported only when it is needed."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from functools import cache

from uhkd.errors import UhkdError

PREFIX = "transformers/"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# excluded: inputs other than plain images (pixel tokens, any number of patches), need of other packages, or a wrapper of timm
_EXCLUDED = {"dinat", "imagegpt", "perceiver", "shieldgemma2", "siglip2", "timm_wrapper"}


def check_available(name: str) -> None:
    """Raise UhkdError if transformers is not installed; `name` is the model that needs it."""
    if importlib.util.find_spec("transformers") is None:
        raise UhkdError(f'{name} needs the package transformers: pip install "uhkd[transformers]"')


@contextlib.contextmanager
def quiet_torchao() -> Iterator[None]:
    """Hide torch's warning about how torchao (also imported by transformers) registers its types."""
    logger = logging.getLogger("torch.utils._pytree")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
@quiet_torchao()
def families() -> tuple[str, ...]:
    """Return the names of the supported families; empty if transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return ()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return tuple(sorted(set(NAMES) - _EXCLUDED))


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form OWNER/MODEL."""
    return _HUB_NAME.fullmatch(name) is not None
