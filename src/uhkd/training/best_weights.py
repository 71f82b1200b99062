"""The weights of the best validation (keep=best), and the end of a training that no longer improves (patience)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from uhkd.console import log_info
from uhkd.errors import UhkdError
from uhkd.recipe import TrainRecipe
from uhkd.training.ema import copy_tensors
from uhkd.training.signals import ProcessGroupSync

# validation metrics to compare, the first that is measured, and whether larger is better
_SCORES = {"val_accuracy": 1, "val_agreement": 1, "val_feature_error": -1, "val_cka": 1}
Row = Mapping[str, float]


class BestWeights:
    """Follows the validations of a training.

    With keep=best, `tensors` has a copy of the student's weights at the best one (equal ones: the first), by the student's names;
    before the first validation, of the initial weights. `stopped`: whether `patience` validations were no better than an earlier.

    Args:
        student: the trained network.
        recipe: with keep and patience.
    """

    def __init__(self, student: nn.Module, recipe: TrainRecipe) -> None:
        self.student, self.patience, self.keep = student, recipe.patience, recipe.keep == "best"
        self.epochs = recipe.epochs
        self.tensors: dict[str, Tensor] = {}
        if self.keep:
            self.tensors = {name: value.clone() for name, value in student.state_dict().items()}
        self.stopped = False

    def validated(self, rows: Sequence[Row], processes: ProcessGroupSync | None = None) -> bool:
        """Compare a validation with earlier ones; return whether to record its predictions (its weights may be the final ones).

        rows: of all validations, this one last, by the weights that the student has now. processes: follow the first, because
        batch statistics differ between processes.

        Raises:
            UhkdError: if the training measures nothing that can be compared.
        """
        if not self.keep and self.patience is None:
            return False
        flags = self._compare(rows)
        improved, self.stopped = map(bool, processes.all_of(flags)[0]) if processes is not None else flags
        if improved and self.keep:
            copy_tensors(self.student.state_dict(), self.tensors)
        if self.stopped:
            best = rows[best_row(rows)]
            log_info(
                f"stopped after epoch {rows[-1]['epoch']:.0f} of {self.epochs}: patience {self.patience}, no improvement of "
                f"{score_name(rows).replace('_', ' ')} since epoch {best['epoch']:.0f}"
            )
        return self.stopped if not self.keep else improved

    def restore(self, rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> None:
        """Continue after the validations `rows`, with the tensors of a checkpoint (other names are ignored)."""
        copy_tensors(tensors, self.tensors)
        self.stopped = self.patience is not None and bool(rows) and self._compare(rows)[1]

    def _compare(self, rows: Sequence[Row]) -> tuple[bool, bool]:
        """Return whether the last row is the best, and whether patience is at its end."""
        since = len(rows) - 1 - best_row(rows)
        return since == 0, self.patience is not None and since >= self.patience

    def choose(self, rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, Any]]:
        """Give the student the weights to use; return their row of metrics, and facts for result.json."""
        facts: dict[str, Any] = {}
        if self.stopped:
            facts["stopped_early"] = {"epoch": int(rows[-1]["epoch"]), "of": self.epochs}
        if not self.keep:
            return rows[-1], facts
        copy_tensors(self.tensors, self.student.state_dict())
        best = rows[best_row(rows)]
        by = score_name(rows)
        return best, facts | {"best_epoch": {"epoch": int(best["epoch"]), "of": len(rows), "by": by, "last": rows[-1]}}


def score_name(rows: Sequence[Row]) -> str:
    """Return the name of the metric that validations are compared by.

    Raises:
        UhkdError: if there is none.
    """
    name = next((name for name in _SCORES if name in rows[-1]), None)
    if name is None:
        raise UhkdError(
            "keep=best and patience compare validations, and this training measures none: expected labels, probe_data or a "
            "teacher network; leave the two out"
        )
    return name


def best_row(rows: Sequence[Row]) -> int:
    """Return the position of the best validation, the first of equal ones.

    Raises:
        UhkdError: as `score_name`.
    """
    name = score_name(rows)
    scores = [_SCORES[name] * row.get(name, math.nan) for row in rows]
    return max(range(len(rows)), key=lambda i: scores[i] if math.isfinite(scores[i]) else -math.inf)
