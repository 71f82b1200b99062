"""Names of transformers' families that classify images; the package is imported only where they are asked for."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from functools import cache

from uhkd.errors import UhkdError

PREFIX = "transformers/"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# they take other things than plain images (pixel tokens, patches of any number), need other packages, or are timm's
_OTHERS = {"dinat", "imagegpt", "perceiver", "shieldgemma2", "siglip2", "timm_wrapper"}


def check_available(name: str) -> None:
    """See that the package is there.

    Raises:
        UhkdError: when it is not.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UhkdError(f'{name} needs the package transformers: pip install "uhkd[transformers]"')


@contextlib.contextmanager
def quiet_torchao() -> Iterator[None]:
    """Inside, torch does not warn of the way in which torchao, which transformers imports too, registers its own types."""
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
    """Names of the families that classify images; none without the package."""
    if importlib.util.find_spec("transformers") is None:
        return ()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return tuple(sorted(set(NAMES) - _OTHERS))


def is_hub_name(name: str) -> bool:
    """Whether a name looks like OWNER/MODEL."""
    return _HUB_NAME.fullmatch(name) is not None
