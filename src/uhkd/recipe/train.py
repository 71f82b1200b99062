"""What a training recipe may say: field names, types, bounds and defaults."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.balance import BalanceName, balance_settings
from uhkd.recipe.base import AugmentationOptions, DataOptions, DeviceOptions, Levels, StrictModel, TeacherOptions
from uhkd.recipe.errors import RecipeError, shown

# the usual peak learning rate and weight decay; lamb's are those of timm's A2 recipe (arXiv 2110.00476)
_USUAL = {"adamw": (1e-3, 0.05), "sgd": (0.05, 5e-4), "lamb": (5e-3, 0.02)}


class TrainRecipe(DataOptions, AugmentationOptions, DeviceOptions):
    """What every training shares: data, length, optimiser, augmentation, machine, output."""

    image_size: int | None = Field(
        default=None, ge=4, description="input size in pixels of the model that is trained; none: the model's own"
    )

    epochs: int = Field(default=30, ge=1, description="passes over the training images")
    batch_size: int = Field(default=128, ge=1, description="images per optimiser step, over all devices")
    grad_accum_steps: int = Field(
        default=1, ge=1, description="parts a batch is split into to save memory; divides batch_size"
    )
    optimizer: Literal["adamw", "sgd", "lamb"] = Field(default="adamw", description="optimiser")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate; none: 0.001 for adamw, 0.05 for sgd, 0.005 for lamb"
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="weight decay; none: 0.05 for adamw, 0.0005 for sgd, 0.02 for lamb"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(default="cosine", description="learning rate over time")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate that schedule cosine ends at")
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs of linear warm-up, fractions allowed")
    warmup_lr: float | None = Field(
        default=None,
        ge=0,
        description="learning rate of the first warm-up step; none: lr over the number of these steps",
    )
    step_epochs: tuple[int, ...] = Field(default=(), description="epochs after which schedule step lowers the rate")
    step_gamma: float = Field(default=0.1, gt=0, le=1, description="factor of the learning rate at each of step_epochs")
    label_smoothing: float = Field(default=0.1, ge=0, lt=1, description="probability mass spread over all classes")
    clip_grad: float | None = Field(
        default=5.0,
        gt=0,
        description="largest norm of the gradient, of the student and of the method's own layers each; none: unlimited",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="a loss or gradient that is NaN or infinite: stop with the last good state, or skip that step and count it "
        "(looks at each step, which makes a GPU wait)",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="keep, validate and save an exponential moving average of the weights, of this decay a step; none: off",
    )

    compile: bool = Field(
        default=False,
        description="compile student and method (torch.compile): for long trainings on a GPU, never on a CPU",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of weights, order and augmentation")
    out: str | None = Field(default=None, description="run folder to write; none: a new one under runs/")
    resume: bool = Field(default=False, description="go on from the last checkpoint in out")
    eval_every: int = Field(default=1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="minutes between checkpoints within an epoch")
    log_every: int = Field(default=50, ge=1, description="optimiser steps between log lines")
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="tell these too, each an extra (docs/watching.md); metrics.csv is always written"
    )
    thumbnails: bool = Field(
        default=True,
        description="keep up to 200 validation images of at most 96 pixels in the run folder, for the report; "
        "--no-thumbnails where nobody else may see them",
    )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: `lr`, or the optimiser's usual one."""
        return self.lr if self.lr is not None else _USUAL[self.optimizer][0]

    @property
    def decay(self) -> float:
        """The weight decay: `weight_decay`, or the optimiser's usual one."""
        return self.weight_decay if self.weight_decay is not None else _USUAL[self.optimizer][1]

    def resolved(self) -> Self:
        """The same recipe with learning rate and weight decay written out as numbers."""
        return self.model_copy(update={"lr": self.learning_rate, "weight_decay": self.decay})

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Checks between fields; all problems in one error, one a line (`build` splits them)."""
        problems = []
        if self.warmup_epochs >= self.epochs:
            problems.append(f"warmup_epochs: expected less than epochs ({self.epochs}), found {self.warmup_epochs:g}")
        if self.warmup_lr is not None and self.warmup_lr > self.learning_rate:
            problems.append(f"warmup_lr: expected at most lr ({self.learning_rate:g}), found {self.warmup_lr:g}")
        if self.min_lr >= self.learning_rate:
            problems.append(f"min_lr: expected less than lr ({self.learning_rate:g}), found {self.min_lr:g}")
        if self.min_lr and self.schedule != "cosine":
            problems.append(f"min_lr: only schedule cosine uses it, found schedule {self.schedule}")
        if self.batch_size % self.grad_accum_steps:
            problems.append(
                f"grad_accum_steps: expected a divisor of batch_size ({self.batch_size}), found {self.grad_accum_steps}"
            )
        if self.shuffle_streams > 1 and self.shuffle_shards is None and "://" not in self.data:
            problems.append(
                f"shuffle_streams: only shuffle_shards uses it, which is not given, found {self.shuffle_streams}"
            )
        if self.batch_size % self.shuffle_streams:
            problems.append(
                f"shuffle_streams: expected a divisor of batch_size ({self.batch_size}), found {self.shuffle_streams}"
            )
        if self.schedule == "step" and not self.step_epochs:
            problems.append("step_epochs: schedule step needs at least one epoch, found none")
        if self.schedule != "step" and self.step_epochs:
            problems.append(f"step_epochs: only schedule step uses it, found schedule {self.schedule}")
        rising = all(a < b for a, b in zip((0, *self.step_epochs), (*self.step_epochs, self.epochs), strict=True))
        if self.step_epochs and not rising:
            problems.append(
                f"step_epochs: expected rising numbers from 1 to {self.epochs - 1}, found {list(self.step_epochs)}"
            )
        if self.resume and self.out is None:
            problems.append("resume: needs out, the run folder to go on from")
        problems += self._further_problems()
        if problems:
            raise UhkdError("\n".join(problems))
        return self

    def _further_problems(self) -> list[str]:
        """What a kind of recipe checks between its own fields, one line a problem."""
        return []


class FinetuneRecipe(TrainRecipe):
    """Train one network on labels: a teacher, or a scratch baseline."""

    model: str = Field(description="network: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder")
    start: str = Field(default="random", description="first weights: random, pretrained (network) or a weights file")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the network's constructor")
    levels: Levels = Field(
        default=None, description="names of the layers whose maps are kept in diagnostics; none: chosen"
    )


class TeacherSpec(StrictModel):
    """One of several teachers; what it leaves out is the recipe's."""

    teacher: str = Field(min_length=1, description="a run folder, timm/NAME, torchvision/NAME or uhkd/NAME")
    weight: float = Field(
        default=1.0, gt=0, description="share of its terms in the loss, over the sum of all teachers'"
    )
    method: str | None = Field(
        default=None,
        min_length=1,
        description="distillation method, which then takes settings and weights from here alone",
    )
    settings: dict[str, Any] = Field(default={}, description="the method's own settings")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weights of the loss terms by name"
    )
    start: str | None = Field(default=None, description="see teacher_start")
    head: Literal["auto", "keep", "probe"] | None = Field(default=None, description="see teacher_head")
    levels: Levels = Field(default=None, description="see teacher_levels")
    options: dict[str, Any] | None = Field(default=None, description="see teacher_options")


def _one_or_more(value: Any) -> Any:
    """One teacher as its word alone, however it is written."""
    items = value if isinstance(value, list | tuple) else () if value is None else [value]
    names = tuple(str(name) for name in items if isinstance(name, str | os.PathLike) and str(name))
    if len(names) < len(items):
        raise UhkdError(f"expected the name of a teacher, or a list of names, found {shown(value)}")
    return names if len(names) > 1 else names[0] if names and names[0].lower() not in ("none", "null") else None


class DistillRecipe(TrainRecipe, TeacherOptions):
    """Train a student network to imitate a teacher network of any other architecture."""

    teacher: Annotated[str | tuple[str, ...] | None, BeforeValidator(_one_or_more)] = Field(
        default=None,
        description="teacher: a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME, or several, which all "
        "teach by the same words and count alike; scratch needs none",
    )
    teachers: tuple[TeacherSpec, ...] = Field(
        default=(),
        description="in place of teacher: several with words of their own, as in '{teacher: A, method: kd, weight: 2}'; also: "
        "settings, weights, start, head, levels, options",
    )
    student: str = Field(
        description="student: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder"
    )
    method: str = Field(default="uhkd", min_length=1, description="distillation method, or several joined by +")
    settings: dict[str, Any] = Field(default={}, description="the method's own settings, as in radius=2")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weights of the loss terms by name, as in features=10; 0 skips a term"
    )
    balance: BalanceName | None = Field(
        default=None,
        description="how much the teacher's terms count over the training (docs/balance.md): constant; linear or cosine, falling "
        "from 1 to 0; lead, while the teacher is ahead of the student; cap, by their gradient; famo; none: the method's own",
    )
    balance_settings: dict[str, Any] = Field(
        default={}, description="settings of the balance, as in features_gate=0.1; needs balance"
    )
    teacher_cache: str | None = Field(
        default=None,
        description="folder of stored signals (uhkd cache), used in place of the teacher; epochs show its views in turn, and "
        "words on views that are not given are the cache's",
    )
    teacher_views: int | None = Field(
        default=None, ge=1, description="views of teacher_cache to use; none: all that it holds"
    )
    probe_data: str | None = Field(
        default=None,
        description="labelled images by which a training without labels is judged: a probe fits on the frozen embeddings of "
        "their training part and is measured on their validation part; none: likeness to the teacher alone",
    )
    probe: Literal["knn", "linear"] = Field(
        default="knn", description="k nearest neighbours (20, by cosine), or logistic regression; for probe_data"
    )
    student_start: str = Field(
        default="random", description="student's first weights: random, pretrained or a weights file"
    )
    student_levels: Levels = Field(default=None, description="names of the student's layers to match; none: chosen")
    student_options: dict[str, Any] = Field(default={}, description="keyword arguments of the student's constructor")

    def teacher_recipes(self) -> tuple[tuple[Self, float], ...]:
        """The recipe as each teacher sees it, with one `teacher` and its own words, and its share; itself where none is named."""
        items = self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)
        each = self.teachers or tuple(TeacherSpec(teacher=name) for name in items if name is not None)
        if not each:  # scratch, or stored signals
            return ((self, 1.0),)
        total = sum(one.weight for one in each)
        return tuple((self._seen_by(one), one.weight / total) for one in each)

    def _seen_by(self, one: TeacherSpec) -> Self:
        own = one.method is not None
        update = {"teacher": one.teacher, "teachers": (), "method": one.method or self.method}
        update |= {"settings": one.settings if own else self.settings | one.settings}
        update |= {"weights": one.weights if own else self.weights | one.weights}
        options = {"start": one.start, "head": one.head, "levels": one.levels, "options": one.options}
        return self.model_copy(update=update | {f"teacher_{k}": v for k, v in options.items() if v is not None})

    def _further_problems(self) -> list[str]:
        if self.balance is None:
            if self.balance_settings:
                return ["balance_settings: belong to a balance, and none is named (--balance)"]
        else:
            try:
                balance_settings(self.balance, self.balance_settings)
            except RecipeError as error:
                return error.problems
        count = len(self.teachers) or (len(self.teacher) if isinstance(self.teacher, tuple) else 1)
        if self.teachers and self.teacher is not None:
            return ["teachers: stands in place of teacher, and both are given; leave one out"]
        if with_ce := [number for number, one in enumerate(self.teachers) if "ce" in one.weights]:
            return [
                f"teachers.{with_ce[0]}.weights.ce: the labels' term is the student's, whatever the teacher; "
                "set it in the recipe's weights"
            ]
        if self.teacher_cache is not None and (count > 1 or self.teachers):
            return ["teacher_cache: holds the signals of one teacher, and several are given; leave it out"]
        if count > 1 and not self.teachers and self.teacher_levels is not None:
            return [
                "teacher_levels: names layers of one teacher, and several are given; say levels of each in teachers"
            ]
        if self.teacher_views is not None and self.teacher_cache is None:
            return ["teacher_views: counts the views of teacher_cache, which is not given"]
        if self.teacher is None and not self.teachers and self.teacher_cache is None and self.method != "scratch":
            return [
                "teacher: required but not given (a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME; "
                "or teachers, several; or teacher_cache, its stored signals)"
            ]
        return []
