"""One training step of a recipe as in `distill`, repeatable because the learning rate is 0."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

from uhkd.data import Batch, BatchPlan, Columns, train_loader
from uhkd.features import FeatureExtractor
from uhkd.models import create
from uhkd.recipe import DistillRecipe, build
from uhkd.runs import RunFolder
from uhkd.training import CachedTeacher, calibrate
from uhkd.training.ema import ModelEMA
from uhkd.training.fit import count_parameters
from uhkd.training.inputs import open_recipe_data
from uhkd.training.machine import choose_device
from uhkd.training.optimizer import make_optimizer
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.setup import Setup, prepare
from uhkd.training.step import TrainStep

T = TypeVar("T")


@dataclass
class BenchmarkStep:
    """Training step of one recipe with learning rate 0, so that all steps have the same weights."""

    setup: Setup
    batches: Sequence[Batch]

    def __post_init__(self) -> None:
        setup, learner = self.setup, self.setup.learner
        optimizer = make_optimizer(learner, setup.recipe)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # training of random weights at the full rate could overflow, and so change the time
        model, optimizer = setup.fabric.setup(learner, optimizer)
        model.train()
        average, totals = ModelEMA(learner.student, setup.recipe.ema_decay), RunningMetrics(setup.fabric.device)
        weights, balance = learner.weights(setup.ce_weight), learner.balance
        self.weights = weights if balance is None else balance.scheduled(weights, 0, 1)
        self.take = TrainStep(setup.recipe, learner, setup.teacher, setup.fabric, model, optimizer, average, totals)

    def __call__(self, number: int) -> None:
        """Run step `number` from a loaded batch to new weights, as `uhkd.training.trainer.Trainer` does."""
        batch = self.batches[number % len(self.batches)]
        if isinstance(self.setup.teacher, CachedTeacher):  # read by the loader in a training
            records = self.setup.teacher.stored.shards.read(0, batch.index.numpy())
            batch = batch._replace(record=torch.from_numpy(records))
        self.take(batch, number, self.weights)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the loaded images."""
        height, width = self.batches[0].image.shape[-2:]
        return height, width

    @property
    def extra_parameters(self) -> int:
        """Number of trained parameters of the method, which are discarded after training."""
        return count_parameters(self.setup.learner.distillers)


class StepFactory:
    """Builder of steps; images, loaded batches and the frozen teacher are created once and shared by the methods of a pair.

    Args:
        untrained: recipes of finetune by folder of a teacher, used while that folder does not exist.
        batches: number of different batches, loaded before and used in turn.
    """

    def __init__(self, untrained: Mapping[str, Mapping[str, Any]], batches: int) -> None:
        self.untrained, self.batches = untrained, batches
        self._shared: dict[str, Any] = {}

    def step(self, fields: Mapping[str, Any]) -> BenchmarkStep:
        """Return a step of a recipe of distill; networks have random weights, except those of run folders.

        Raises:
            UhkdError: networks, data and method cannot work together.
        """
        recipe = build(DistillRecipe, {k: v for k, v in fields.items() if k not in ("out", "resume")})
        key = ("data", Columns.of(recipe), recipe.val_fraction, recipe.train_limit, recipe.skip_bad_images)
        data = self._once(key, lambda: open_recipe_data(recipe))
        live = recipe.method != "scratch" and recipe.teacher_cache is None
        teacher = self._teacher(recipe, len(data.classes)) if live else None
        setup = prepare(recipe, teacher=teacher, data=data, dry_run=True)
        batches = self._load(setup)
        for live_teacher in setup.live_teachers:
            if live_teacher.ftm is not None:
                calibrate(live_teacher, batches[:1], setup.fabric.device, setup.recipe.batch_size)
        return BenchmarkStep(setup, batches)

    def _teacher(self, recipe: DistillRecipe, classes: int) -> FeatureExtractor:
        name, levels = recipe.teacher, recipe.teacher_levels
        assert isinstance(name, str), "a pair has one teacher"
        fields: dict[str, Any] = {"name": name, "num_classes": None, "options": recipe.teacher_options}
        if name in self.untrained and not RunFolder(name).has_model():
            finetune = self.untrained[name]
            options = {**finetune.get("options", {}), **recipe.teacher_options}
            fields = {"name": finetune["model"], "num_classes": classes, "options": options}
            fields["image_size"] = finetune.get("image_size")
            levels = recipe.teacher_levels or finetune.get("levels")
        device = choose_device(recipe)[0]
        probed = recipe.teacher_head == "probe"
        return self._once(("teacher", fields, levels, probed), lambda: create(**fields, levels=levels).to(device))

    def _load(self, setup: Setup) -> list[Batch]:
        recipe, data = setup.recipe, setup.data

        def make() -> list[Batch]:
            loader = train_loader(
                data.train,
                setup.augmentation,
                BatchPlan(recipe.seed, recipe.batch_size, recipe.epochs),
                num_classes=len(data.classes),
            )
            return list(islice(loader, self.batches))

        return self._once(("batches", data.fingerprint, setup.augmentation, recipe.seed, recipe.batch_size), make)

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if (name := repr(key)) not in self._shared:
            self._shared[name] = make()
        return self._shared[name]
