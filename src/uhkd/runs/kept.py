"""Which epoch the weights and the metrics of a run come from."""

from collections.abc import Mapping
from typing import Any

OPTIMISTIC = "optimistic: chosen on these images"


def kept_epoch(result: Mapping[str, Any]) -> str | None:
    """Return text on the best epoch that a run kept; None for the last epoch. result: content of result.json."""
    kept = result.get("kept")
    if not isinstance(kept, Mapping):
        return None
    return f"epoch {kept.get('epoch')}, best of {kept.get('of')} validated epochs by the held-out part ({OPTIMISTIC})"
