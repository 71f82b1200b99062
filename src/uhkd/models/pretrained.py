"""Access to pretrained weights on a hub, with a quick and clear error without an internet connection."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator

from uhkd.errors import UhkdError

_TIMEOUT = 5.0  # seconds


@contextlib.contextmanager
def hub_within_reach() -> Iterator[None]:
    """Set huggingface_hub offline if its host does not answer: it then uses cached files or fails at once, without retries."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Return whether a host answers, through the proxies set in the environment."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()  # an error status is an answer too
    except (OSError, ValueError):
        return False
    return True


def unavailable(name: str, reason: str) -> UhkdError:
    """Return the error for pretrained weights that do not exist or cannot be loaded."""
    return UhkdError(
        f"pretrained weights of {name} are not available ({reason}); without an internet connection, use start=random, a "
        "weights file (start=PATH), a timm model folder (local-dir:PATH) or a run folder"
    )
