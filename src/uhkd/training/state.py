"""Tensors of a training: what a checkpoint stores and how it is loaded."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from uhkd.recipe import TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.training.best_weights import BestWeights
from uhkd.training.checkpoint_checks import check_facts, check_optimizer, check_tensors
from uhkd.training.ema import ModelEMA
from uhkd.training.learner import StudentWithLosses
from uhkd.training.teacher import TeacherSource

_OTHERS = ("ftm.", "average.", "best.")  # prefixes of tensors that are not in the learner's state


class TrainingState:
    """Weights, averages, optimizer state and spectral statistics of a training.

    Args:
        recipe: of the training.
        learner: student and losses.
        teacher: its spectral statistics are part of a checkpoint.
        optimizer: as wrapped by Fabric, before its first step.
        average: moving average of the student's weights.
        best: weights of the best validation.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        learner: StudentWithLosses,
        teacher: TeacherSource | None,
        optimizer: Optimizer,
        average: ModelEMA,
        best: BestWeights,
    ) -> None:
        self.recipe, self.learner, self.teacher = recipe, learner, teacher
        self.optimizer, self.average, self.best = optimizer, average, best
        self._initial = optimizer.state_dict()
        self._shapes = {
            number: weight.shape
            for saved, group in zip(self._initial["param_groups"], optimizer.param_groups, strict=True)
            for number, weight in zip(saved["params"], group["params"], strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name."""
        tensors = self.learner.state_dict() | {f"average.{k}": v for k, v in self.average.tensors.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.tensors.items()}
        return tensors | ({} if self.teacher is None else self.teacher.state())

    def checkpoint(self, step: int, facts: dict[str, Any]) -> Checkpoint:
        """Return the checkpoint of a step."""
        return Checkpoint(step, self.tensors(), self.optimizer.state_dict(), facts)

    def read(self, folder: RunFolder, total: int, weights: Mapping[str, float]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint of a run folder, or None without checkpoints; nothing is loaded yet.

        total: steps of the whole training. weights: of the loss terms.

        Raises:
            UhkdError: if the folder has checkpoints and none of them fits this training.
        """

        def check(checkpoint: Checkpoint) -> None:
            check_facts(checkpoint, total, weights)
            check_tensors(checkpoint.tensors, self.tensors(), [name for name, _ in self.learner.named_parameters()])
            self._optimizer_state(checkpoint, total)

        return folder.read_checkpoint(check)

    def load(self, checkpoint: Checkpoint, total: int) -> None:
        """Load a checkpoint that `read` returned."""
        tensors = checkpoint.tensors
        self.learner.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(_OTHERS)})
        self.average.load({k.removeprefix("average."): v for k, v in tensors.items()})
        saved = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        self.best.restore(checkpoint.facts["rows"], saved)
        self.optimizer.load_state_dict(self._optimizer_state(checkpoint, total))

    def _optimizer_state(self, checkpoint: Checkpoint, total: int) -> dict[str, Any]:
        return check_optimizer(checkpoint.optimizer, self._initial, self._shapes, self.recipe, total)
