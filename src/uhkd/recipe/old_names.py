"""Words of recipes of older versions, translated when they are read."""

from collections.abc import Mapping
from typing import Any


def modern_words(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words of a recipe under today's names: `weights_schedule` is the balance of that name.

    Raises:
        ValueError: when a word is given under both names with other values.
    """
    now = dict(words)
    if "weights_schedule" in now:
        older = now.pop("weights_schedule")
        if now.setdefault("balance", older) != older:
            raise ValueError("weights_schedule: is called balance now, and both are given; leave out weights_schedule")
    return now


def as_recorded(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words that a run recorded under today's names; a run without a balance had constant weights."""
    now = modern_words(words)
    if "student" in now and now.get("balance") is None:
        now["balance"] = "constant"
    return now
