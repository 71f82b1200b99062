"""Old names in recipes, results, caches and comparisons of earlier versions, translated when a file is read."""

from collections.abc import Mapping
from typing import Any

from uhkd.errors import UhkdError

MANIFEST_KEYS = {"layout": "record_format", "words": "teacher_options"}
"""Old and current keys of cache.json."""
TASK_KEYS = {"words": "options"}
"""Old and current keys of plan/NAME.json in the folder of a comparison."""
RESULT_KEYS = {"verb": "command"}
"""Old and current keys of result.json."""
RECIPE_KEYS = {
    "accumulate": "grad_accum_steps",
    "changes": "overrides",
    "lanes": "shuffle_streams",
    "part": "split",
    "shards_at_a_time": "shuffle_shards",
    "teacher_changes": "teacher_overrides",
    "top": "topk",
    "weight": "share",
    "weights_schedule": "balance",
}


def rename_keys(content: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a file's content with current names; `table` maps old names to current ones.

    Raises:
        UhkdError: if both names of a key are present with different values.
    """
    current = dict(content)
    for old, new in table.items():
        if old in current:
            value = current.pop(old)
            if current.setdefault(new, value) != value:
                raise UhkdError(f"{old}: is now called {new}, and both are given; remove {old}")
    return current


def as_recorded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with current names and, for a distillation without balance, its constant weights."""
    current = rename_keys(fields, RECIPE_KEYS)
    if isinstance(teachers := current.get("teachers"), list):
        current["teachers"] = [rename_keys(item, RECIPE_KEYS) if isinstance(item, dict) else item for item in teachers]
    if "student" in current and current.get("balance") is None:
        current["balance"] = "constant"
    return current
