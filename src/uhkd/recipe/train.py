"""Recipes of trainings: options, types, bounds and defaults."""

import math
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.balance import BalanceName, balance_settings
from uhkd.recipe.base import (
    WEIGHTS_KEY,
    AugmentationOptions,
    DataOptions,
    DeviceOptions,
    ImageSize,
    Levels,
    StrictModel,
    Student,
    TeacherOptions,
)
from uhkd.recipe.errors import RecipeError, format_value
from uhkd.recipe.own_data import OwnDataOptions

# default peak learning rate and weight decay; those of lamb are from timm's A2 recipe (arXiv 2110.00476)
_DEFAULTS = {"adamw": (1e-3, 0.05), "sgd": (0.05, 5e-4), "lamb": (5e-3, 0.02)}
if TYPE_CHECKING:  # numbers wherever a recipe is used: uhkd.training.defaults replaces None once the data is open
    ChosenInt = int
    ChosenFloat = float
else:
    ChosenInt = int | None
    ChosenFloat = float | None
_OPEN: Any = None
_LossWeights = dict[str, Annotated[float, Field(ge=0)]]


class TrainRecipe(DataOptions, AugmentationOptions, OwnDataOptions, DeviceOptions):
    """Options of every training: data, augmentation, optimiser, schedule, device, output."""

    image_size: ImageSize = Field(
        default=None,
        description="input size in pixels, one side or height and width; none: the model's default, but for "
        "uhkd/NAME from random weights that of larger images, at most 64 and the teacher's",
    )

    epochs: ChosenInt = Field(
        default=_OPEN, ge=1, description="passes over the training images; none: chosen from their number, 30 to 160"
    )
    batch_size: ChosenInt = Field(
        default=_OPEN,
        ge=1,
        description="images per optimiser step, over all devices; none: chosen from the number of images, 16 to 128",
    )
    grad_accum_steps: int = Field(default=1, ge=1, description="parts of a batch, to save memory; divides batch_size")
    optimizer: Literal["adamw", "sgd", "lamb"] = Field(default="adamw", description="optimiser")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate; none: adamw 0.001, sgd 0.05, lamb 0.005"
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="weight decay; none: adamw 0.05, sgd 0.0005, lamb 0.02"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(default="cosine", description="learning rate schedule")
    min_lr: float = Field(default=0.0, ge=0, description="final learning rate of schedule cosine")
    warmup_epochs: ChosenFloat = Field(
        default=_OPEN, ge=0, description="epochs of linear warm-up, fractions allowed; none: 0"
    )
    warmup_lr: float | None = Field(
        default=None, ge=0, description="learning rate of the first step; none: lr / warm-up steps"
    )
    step_epochs: tuple[int, ...] = Field(default=(), description="epochs after which schedule step lowers lr")
    step_gamma: float = Field(default=0.1, gt=0, le=1, description="factor of the learning rate at step_epochs")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="probability mass spread over all classes")
    clip_grad: float | None = Field(
        default=5.0,
        gt=0,
        description="maximum gradient norm, of the student and of the method's own layers separately; none: unlimited",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="on a NaN or infinite loss or gradient: stop with the last good state, or skip the step and count it (checks "
        "every step, which slows down a GPU)",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay per step of an exponential moving average of the weights, which is validated and saved; none: off",
    )

    compile: bool = Field(
        default=False,
        description="compile student and method with torch.compile; pays off in long trainings on a GPU, not on a CPU",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of weights, order of images and augmentation")
    out: str | None = Field(default=None, description="run folder to write; none: a new folder in runs")
    resume: bool = Field(default=False, description="resume from the last checkpoint in out")
    eval_every: int = Field(default=1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="minutes between checkpoints within an epoch")
    log_every: int = Field(default=50, ge=1, description="optimiser steps between log lines")
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="loggers to use in addition to metrics.csv, each an extra (docs/watching.md)"
    )
    thumbnails: bool = Field(
        default=True,
        description="save up to 200 validation images of at most 96 pixels in the run folder, for the report; "
        "--no-thumbnails for confidential images",
    )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: `lr`, or the optimiser's default."""
        return self.lr if self.lr is not None else _DEFAULTS[self.optimizer][0]

    @property
    def effective_weight_decay(self) -> float:
        """The weight decay: `weight_decay`, or the optimiser's default."""
        return self.weight_decay if self.weight_decay is not None else _DEFAULTS[self.optimizer][1]

    def resolved(self) -> Self:
        """Return the same recipe with numbers for `lr` and `weight_decay`."""
        return self.model_copy(update={"lr": self.learning_rate, "weight_decay": self.effective_weight_decay})

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if problems := [*self._conflicts()]:
            raise UhkdError("\n".join(problems))  # `build` splits the lines
        return self

    def _conflicts(self) -> Iterator[str]:
        """Yield one line per rule between options that is broken."""
        # numbers left open break no rule; they are checked again once they are chosen
        epochs, warmup, batch = self.epochs or math.inf, self.warmup_epochs or 0, self.batch_size or 0
        rate, schedule = self.learning_rate, self.schedule
        steps, streams = self.step_epochs, self.shuffle_streams
        if warmup >= epochs:
            yield f"warmup_epochs: expected less than epochs ({epochs}), found {warmup:g}"
        if self.warmup_lr is not None and self.warmup_lr > rate:
            yield f"warmup_lr: expected at most lr ({rate:g}), found {self.warmup_lr:g}"
        if self.min_lr >= rate:
            yield f"min_lr: expected less than lr ({rate:g}), found {self.min_lr:g}"
        if self.min_lr and schedule != "cosine":
            yield f"min_lr: only schedule cosine uses it, found schedule {schedule}"
        if batch % self.grad_accum_steps:
            yield f"grad_accum_steps: expected a divisor of batch_size ({batch}), found {self.grad_accum_steps}"
        if streams > 1 and self.shuffle_shards is None and "://" not in self.data:
            yield f"shuffle_streams={streams} has no effect without shuffle_shards"
        if batch % streams:
            yield f"shuffle_streams: expected a divisor of batch_size ({batch}), found {streams}"
        if schedule == "step" and not steps:
            yield "step_epochs: schedule step needs at least one epoch, found none"
        if schedule != "step" and steps:
            yield f"step_epochs: only schedule step uses it, found schedule {schedule}"
        if steps and any(a >= b for a, b in pairwise((0, *steps, epochs))):
            span = f"from 1 to {epochs - 1}" if self.epochs else "of at least 1"
            yield f"step_epochs: expected increasing numbers {span}, found {list(steps)}"
        if self.resume and self.out is None:
            yield "resume: needs out, the run folder to resume"
        yield from self._own_data_conflicts()


class FinetuneRecipe(TrainRecipe):
    """Train one network on labels: a teacher or a baseline from scratch."""

    model: str = Field(description="network: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder")
    start: str | None = Field(
        default=None,
        description="initial weights: random, pretrained or a weights file; none: pretrained if the network's library has some",
    )
    weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the network's constructor")
    levels: Levels = Field(default=None, description="names of layers for diagnostics; none: automatic")


class TeacherSpec(StrictModel):
    """One of several teachers. Options that are not given are those of the recipe."""

    teacher: str = Field(min_length=1, description="a run folder, timm/NAME, torchvision/NAME or uhkd/NAME")
    share: float = Field(default=1.0, gt=0, description="share of the loss, relative to the sum over all teachers")
    method: str | None = Field(
        default=None,
        min_length=1,
        description="distillation method; if given, the recipe's settings and weights are not used",
    )
    settings: dict[str, Any] = Field(default={}, description="settings of the method")
    weights: _LossWeights = Field(default={}, description="weights of loss terms by name")
    start: str | None = Field(default=None, description="see teacher_start")
    weights_key: str | None = Field(default=None, description="see teacher_weights_key")
    head: Literal["auto", "keep", "probe"] | None = Field(default=None, description="see teacher_head")
    levels: Levels = Field(default=None, description="see teacher_levels")
    options: dict[str, Any] | None = Field(default=None, description="see teacher_options")


def _one_or_more(value: Any) -> Any:
    """Convert a list of one name to the name, an empty list and the text "none" to None."""
    items = value if isinstance(value, list | tuple) else () if value is None else [value]
    names = tuple(str(name) for name in items if isinstance(name, str | os.PathLike) and str(name))
    if len(names) < len(items):
        raise UhkdError(f"expected the name of a teacher, or a list of names, found {format_value(value)}")
    return names if len(names) > 1 else names[0] if names and names[0].lower() not in ("none", "null") else None


class DistillRecipe(TrainRecipe, TeacherOptions):
    """Train a student network with a teacher network of any other architecture."""

    teacher: Annotated[str | tuple[str, ...] | None, BeforeValidator(_one_or_more)] = Field(
        default=None,
        description="teacher: a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME; several share all "
        "options and have equal weights; not needed by method scratch",
    )
    teachers: tuple[TeacherSpec, ...] = Field(
        default=(),
        description="teachers with different options, instead of teacher: '{teacher: A, method: kd, share: 2}'; other keys: "
        "settings, weights, start, weights_key, head, levels, options",
    )
    student: Student
    method: str = Field(default="uhkd", min_length=1, description="distillation method, or several joined by +")
    settings: dict[str, Any] = Field(default={}, description="settings of the method, for example radius=2")
    weights: _LossWeights = Field(default={}, description="weights of loss terms, such as features=10; 0 skips a term")
    balance: BalanceName | None = Field(
        default=None,
        description="weight of the teacher's loss terms over the training (docs/balance.md): constant; linear or cosine, from 1 "
        "to 0; lead, while the teacher is ahead of the student; cap, by gradient norm; famo; none: the method's default",
    )
    balance_settings: dict[str, Any] = Field(default={}, description="settings of balance, such as features_gate=0.1")
    teacher_cache: str | None = Field(
        default=None,
        description="folder of stored teacher outputs (uhkd cache) to use instead of the teacher; epochs use its views in turn, "
        "and its augmentation replaces options that are not given",
    )
    teacher_views: int | None = Field(default=None, ge=1, description="views of teacher_cache to use; none: all")
    probe_data: str | None = Field(
        default=None,
        description="labelled images to evaluate a training without labels: a probe on the frozen embeddings is fitted to their "
        "training split and measured on their validation split; none: only agreement with the teacher",
    )
    probe: Literal["knn", "linear"] = Field(
        default="knn", description="probe for probe_data: k nearest neighbours (20, cosine) or logistic regression"
    )
    student_start: str = Field(default="random", description="initial weights: random, pretrained or a weights file")
    student_weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    student_levels: Levels = Field(default=None, description="names of student layers to match; none: automatic")
    student_options: dict[str, Any] = Field(default={}, description="keyword arguments of the student's constructor")

    def teacher_recipes(self) -> tuple[tuple[Self, float], ...]:
        """Return (recipe with one `teacher` and its options, share of the loss) per teacher; itself without a teacher."""
        names = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        specs = self.teachers or tuple(TeacherSpec(teacher=name) for name in names if name is not None)
        if not specs:  # method scratch, or a cache
            return ((self, 1.0),)
        total = sum(spec.share for spec in specs)
        return tuple((self._with_teacher(spec), spec.share / total) for spec in specs)

    def _with_teacher(self, spec: TeacherSpec) -> Self:
        update: dict[str, Any] = {"teacher": spec.teacher, "teachers": ()}
        if spec.method is not None:
            update |= {"method": spec.method, "settings": spec.settings, "weights": spec.weights}
        else:
            update |= {"settings": self.settings | spec.settings, "weights": self.weights | spec.weights}
        options = {name: getattr(spec, name) for name in ("start", "weights_key", "head", "levels", "options")}
        return self.model_copy(update=update | {f"teacher_{k}": v for k, v in options.items() if v is not None})

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.balance is not None:
            try:
                balance_settings(self.balance, self.balance_settings)
            except RecipeError as error:
                yield from error.problems
        elif self.balance_settings:
            yield "balance_settings: need a balance, and none is given (--balance)"
        if self.teachers and self.teacher is not None:
            yield "teachers: replaces teacher, and both are given; remove one"
        for number, spec in enumerate(self.teachers):
            if "ce" in spec.weights:
                yield f"teachers.{number}.weights.ce: the cross-entropy belongs to no teacher; set it in the recipe's weights"
        if self.teacher_cache is not None and (self.teachers or isinstance(self.teacher, tuple)):
            yield "teacher_cache: contains the outputs of one teacher, and several are given; remove it"
        if isinstance(self.teacher, tuple) and not self.teachers and self.teacher_levels is not None:
            yield "teacher_levels: names layers of one teacher, and several are given; set levels of each in teachers"
        if self.teacher_views is not None and self.teacher_cache is None:
            yield "teacher_views: needs teacher_cache, which is not given"
        if self.teacher is None and not self.teachers and self.teacher_cache is None and self.method != "scratch":
            yield (
                "teacher: required but not given (a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME; "
                "for several use teachers, for stored outputs teacher_cache)"
            )
