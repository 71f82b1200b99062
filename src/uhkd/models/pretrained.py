"""timm's and torchvision's pretrained weights, with a quick clear answer where there is no network."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator

INSTEAD = (
    "without a network choose start=random, a weights file (start=PATH), a timm model folder (local-dir:PATH) "
    "or a run folder"
)
_PATIENCE = 5.0  # seconds


@contextlib.contextmanager
def hub_within_reach() -> Iterator[None]:
    """Inside, the hub's client does not retry for a minute if its host cannot be reached: cached files, or an error."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Whether a host answers at all, through the proxies of the environment."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()  # a refusal is an answer
    except (OSError, ValueError):
        return False
    return True


def unavailable(name: str, error: BaseException) -> ValueError:
    """The error for pretrained weights that cannot be had."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(f"pretrained weights of {name} cannot be had ({reason}); {INSTEAD}")
