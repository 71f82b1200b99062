"""One training step of a recipe, built as `distill` builds it, to be taken again and again without learning anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from uhkd.data import Batch, Data, train_loader
from uhkd.methods import Distiller, check, default_balance
from uhkd.methods import build as build_method
from uhkd.models import create
from uhkd.recipe import DistillRecipe, build
from uhkd.runs import RunFolder
from uhkd.stored import Stored
from uhkd.taps import Shapes, TappedModel
from uhkd.training import Learner, StoredTeacher, Teacher, calibrate, make_balance
from uhkd.training.ema import Average
from uhkd.training.optimizer import make_optimizer
from uhkd.training.running_metrics import Totals
from uhkd.training.setup import choose_augmentation, choose_device, fit_batch, make_fabric, open_recipe_data
from uhkd.training.step import Stepper

Made = TypeVar("Made")


@dataclass
class Step:
    """What one recipe's training does between two batches; the learning rate is 0, so every step meets the same weights."""

    recipe: DistillRecipe
    data: Data
    learner: Learner
    teacher: Teacher | StoredTeacher | None
    batches: Sequence[Batch]
    fabric: Fabric

    def __post_init__(self) -> None:
        recipe = self.recipe
        optimizer = make_optimizer(self.learner, recipe)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # random weights that learned at the full rate might overflow, and time other numbers
        model, optimizer = self.fabric.setup(self.learner, optimizer)
        model.train()
        average, totals = Average(self.learner.student, recipe.ema_decay), Totals(self.fabric.device)
        weights, balance = self.learner.weights(float(recipe.weights.get("ce", 1.0))), self.learner.balance
        self.weights = weights if balance is None else balance.scheduled(weights, 0, 1)
        self.take = Stepper(recipe, self.learner, self.teacher, self.fabric, model, optimizer, average, totals)

    def __call__(self, number: int) -> None:
        """Step `number` of the training, from a loaded batch to new weights, as `uhkd.training.train` takes it."""
        batch = self.batches[number % len(self.batches)]
        if isinstance(self.teacher, StoredTeacher):  # what the loader does beside making the views
            batch = batch._replace(record=torch.from_numpy(self.teacher.stored.shards.read(0, batch.index.numpy())))
        self.take(batch, number, self.weights)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images as loaded."""
        height, width = self.batches[0].image.shape[-2:]
        return height, width

    @property
    def extra_parameters(self) -> int:
        """Parameters of the method, trained and thrown away."""
        return sum(p.numel() for p in self.learner.distillers.parameters())


class Workshop:
    """Builds steps; what the methods of a pair can share (images, loaded batches, the frozen teacher) is made once.

    Args:
        untrained: recipes of finetune by the folder that will hold the teacher; used while the folder is not there.
        batches: different batches loaded beforehand and used in turn.
    """

    def __init__(self, untrained: Mapping[str, Mapping[str, Any]], batches: int) -> None:
        self.untrained, self.batches = untrained, batches
        self._made: dict[str, Any] = {}

    def step(self, words: Mapping[str, Any]) -> Step:
        """A step by a recipe of distill, networks with random weights (a run folder with its own).

        Raises:
            ValueError: for networks, data or a method that cannot work together.
        """
        recipe = build(DistillRecipe, words)
        check(recipe.method, recipe.settings, recipe.weights)
        device, precision = choose_device(recipe)
        chosen = recipe.data, recipe.val_fraction, recipe.train_limit, recipe.skip_bad_images
        data = self._once(("data", *chosen), lambda: open_recipe_data(recipe))
        recipe = fit_batch(recipe, data).resolved().model_copy(update={"precision": precision, "device": device})
        fabric, classes = make_fabric(device, precision), len(data.classes)
        torch.manual_seed(recipe.seed)
        student = create(
            recipe.student,
            num_classes=classes,
            image_size=recipe.image_size,
            options=recipe.student_options,
            levels=recipe.student_levels or 4,
        ).to(fabric.device)
        stored = Stored(recipe.teacher_cache) if recipe.teacher_cache is not None else None
        live = recipe.method != "scratch" and stored is None
        teacher = self._teacher(recipe, classes, fabric.device) if live else None
        shapes = Shapes(
            student.shapes, stored.manifest.shapes if stored else teacher and teacher.shapes, classes, len(data.train)
        )
        torch.manual_seed(recipe.seed + 1)
        distillers = build_method(recipe.method, shapes, recipe.settings, recipe.weights).to(fabric.device)
        name = recipe.balance or default_balance(recipe.method)
        known = shapes.teacher is not None and shapes.teacher.logits == classes
        balance = make_balance(name, recipe.balance_settings, distillers, led=[known])
        learner = Learner(student, distillers, recipe.label_smoothing, balance and balance.to(fabric.device))
        learner.to(memory_format=torch.channels_last)
        batches = self._load(recipe, data, [student] if teacher is None else [student, teacher])
        targets = [d.needs.target for d in distillers.values() if isinstance(d, Distiller) and d.needs.target]
        sealed = None
        if stored is not None:
            sealed = StoredTeacher(stored, next(iter(targets), None))
        elif teacher is not None:
            sealed = Teacher(teacher, next(iter(targets), None), fabric.autocast)
            if sealed.ftm is not None:
                calibrate(sealed, batches[:1], fabric.device, recipe.batch_size)
        return Step(recipe, data, learner, sealed, batches, fabric)

    def _teacher(self, recipe: DistillRecipe, classes: int, device: torch.device) -> TappedModel:
        assert isinstance(recipe.teacher, str), "the recipe checks that a method other than scratch has a teacher"
        name, levels = recipe.teacher, recipe.teacher_levels or 4
        words: dict[str, Any] = {"name": name, "num_classes": None, "options": recipe.teacher_options}
        if name in self.untrained and not RunFolder(name).exists():
            own = self.untrained[name]
            options = {**own.get("options", {}), **recipe.teacher_options}
            words = {
                "name": own["model"],
                "num_classes": classes,
                "options": options,
                "image_size": own.get("image_size"),
            }
            levels = recipe.teacher_levels or own.get("levels") or 4
        probed = recipe.teacher_head == "probe"

        def make() -> TappedModel:
            network = create(**words, levels=levels).to(device)
            if probed or network.shapes.logits != classes:
                if network.shapes.embedding is None:
                    raise ValueError(
                        f"teacher {name}: its head does not fit {classes} classes, and it has no embedding"
                    )
                network.set_probe(nn.Linear(network.shapes.embedding, classes).to(device))
            return network

        return self._once(("teacher", words, levels, probed, device), make)

    def _load(self, recipe: DistillRecipe, data: Data, networks: Sequence[TappedModel]) -> list[Batch]:
        augmentation = choose_augmentation(recipe, data, networks)

        def make() -> list[Batch]:
            loader = train_loader(
                data.train,
                augmentation,
                seed=recipe.seed,
                batch_size=recipe.batch_size,
                epochs=recipe.epochs,
                num_classes=len(data.classes),
            )
            return list(islice(loader, self.batches))

        return self._once(("batches", data.fingerprint, augmentation, recipe.seed, recipe.batch_size), make)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        if (name := repr(key)) not in self._made:
            self._made[name] = make()
        return self._made[name]
