"""Which epoch the weights and the metrics of a run come from."""

from collections.abc import Mapping
from typing import Any

OPTIMISTIC = "optimistic: chosen on these images"


def best_epoch(result: Mapping[str, Any]) -> str | None:
    """Return text on the best epoch that a run kept; None for the last epoch. result: content of result.json."""
    best = result.get("best_epoch")
    if not isinstance(best, Mapping):
        return None
    return f"epoch {best.get('epoch')}, best of {best.get('of')} validated epochs by the held-out part ({OPTIMISTIC})"
