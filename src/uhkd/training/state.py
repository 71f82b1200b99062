"""The tensors of a training: what a checkpoint holds of them, and how they are loaded again."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from uhkd.recipe import TrainRecipe
from uhkd.runs import Checkpoint, RunFolder
from uhkd.training.checkpoint_checks import check_facts, check_tensors, fitting_optimizer
from uhkd.training.ema import ModelEMA
from uhkd.training.learner import StudentWithLosses
from uhkd.training.teacher import TeacherSource

_OTHERS = ("ftm.", "average.")  # tensors of a checkpoint that are not of student and losses


class TrainingState:
    """Weights, averages, optimizer state and statistics of a training.

    Args:
        recipe: of the training.
        learner: student and losses.
        teacher: whose statistics of spectra are kept.
        optimizer: as Fabric wrapped it, before its first step.
        average: of the student's weights.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        learner: StudentWithLosses,
        teacher: TeacherSource | None,
        optimizer: Optimizer,
        average: ModelEMA,
    ) -> None:
        self.recipe, self.learner, self.teacher = recipe, learner, teacher
        self.optimizer, self.average = optimizer, average
        self._fresh = optimizer.state_dict()
        self._sizes = {
            number: weight.shape
            for noted, group in zip(self._fresh["param_groups"], optimizer.param_groups, strict=True)
            for number, weight in zip(noted["params"], group["params"], strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name."""
        tensors = self.learner.state_dict() | {f"average.{k}": v for k, v in self.average.tensors.items()}
        return tensors | ({} if self.teacher is None else self.teacher.state())

    def checkpoint(self, step: int, facts: dict[str, Any]) -> Checkpoint:
        """Return the checkpoint of a step."""
        return Checkpoint(step, self.tensors(), self.optimizer.state_dict(), facts)

    def read(self, folder: RunFolder, total: int, weights: Mapping[str, float]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint of a folder, if there is one; nothing is loaded yet.

        total: steps of the whole training; weights: of the terms.

        Raises:
            UhkdError: if no checkpoint there is of this training.
        """

        def check_fits(found: Checkpoint) -> None:
            check_facts(found, total, weights)
            check_tensors(found.tensors, self.tensors(), [name for name, _ in self.learner.named_parameters()])
            self._optimizer_state(found, total)

        return folder.read_checkpoint(check_fits)

    def load(self, found: Checkpoint, total: int) -> None:
        """Load a checkpoint that `read` returned."""
        self.learner.load_state_dict({k: v for k, v in found.tensors.items() if not k.startswith(_OTHERS)})
        self.average.load({k.removeprefix("average."): v for k, v in found.tensors.items()})
        self.optimizer.load_state_dict(self._optimizer_state(found, total))

    def _optimizer_state(self, found: Checkpoint, total: int) -> dict[str, Any]:
        return fitting_optimizer(found.optimizer, self._fresh, self._sizes, self.recipe, total)
