"""What a training recipe may say: field names, types, bounds and defaults."""

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Schema(BaseModel):
    """Plain-data options: unknown keys refused, values checked, immutable once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        """A path object becomes its text; True and False are no numbers (pydantic would read them as 1 and 0)."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and annotation in (int, float, int | None, float | None):
            raise ValueError(f"expected a number, found {str(value).lower()}")
        return value


def _texts(value: Any) -> Any:
    """Level names as text: block numbers are written without quotes in YAML."""
    if isinstance(value, list | tuple):
        return tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
    return value


Levels = Annotated[tuple[str, ...] | None, BeforeValidator(_texts)]


# the usual peak learning rate and weight decay; lamb's are those of timm's A2 recipe (arXiv 2110.00476)
_USUAL = {"adamw": (1e-3, 0.05), "sgd": (0.05, 5e-4), "lamb": (5e-3, 0.02)}

_RANDAUGMENT = re.compile(r"rand(-(m\d+|n[1-9]\d*|p\d(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*")


class TrainRecipe(Schema):
    """What every training shares: data, length, optimiser, augmentation, machine, output."""

    data: str = Field(description="digits, cifar100[:ROOT], a folder of images, or an .npz file of arrays")
    val_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the training images held out for validation where no val folder exists",
    )
    train_limit: int | None = Field(
        default=None, ge=1, description="train on this many images only (stratified); none: all"
    )
    skip_bad_images: bool = Field(
        default=False, description="leave out image files that cannot be read, counted and named"
    )
    image_size: int | None = Field(
        default=None, ge=4, description="input size in pixels of the model that is trained; none: the model's own"
    )

    epochs: int = Field(default=30, ge=1, description="passes over the training images")
    batch_size: int = Field(default=128, ge=1, description="images per optimiser step, over all devices")
    accumulate: int = Field(
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
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="keep, validate and save an exponential moving average of the weights, of this decay a step; none: off",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="number format of the forward pass; auto: bf16 where the device is fast at it"
    )

    crop: Literal["auto", "none", "pad", "resized"] = Field(
        default="auto", description="random crop of training images; auto: pad for small images, resized for large ones"
    )
    crop_scale: float = Field(
        default=0.25, gt=0, le=1, description="smallest share of the image's area that crop resized keeps"
    )
    flip: bool | None = Field(default=None, description="mirror training images at random; none: as suits the data")
    randaugment: str | None = Field(
        default=None, description="timm's configuration of RandAugment, as in rand-m9-mstd0.5-inc1; none: off"
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest change of brightness, contrast and saturation, left out beside randaugment; 0: off",
    )
    erasing: float = Field(
        default=0.0, ge=0, le=1, description="probability that a random box of the image becomes noise"
    )
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup's Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix's Beta distribution; 0: off")

    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of weights, order and augmentation")
    workers: int | None = Field(
        default=None, ge=0, description="loader processes; none: chosen from the data and the cores"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to train")
    out: str | None = Field(default=None, description="run folder to write; none: a new one under runs/")
    resume: bool = Field(default=False, description="go on from the last checkpoint in out")
    eval_every: int = Field(default=1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="minutes between checkpoints within an epoch")
    log_every: int = Field(default=50, ge=1, description="optimiser steps between log lines")

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

    @field_validator("randaugment")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        """timm overlooks sections it does not know, so a slip of the pen would train another recipe."""
        if value is not None and not _RANDAUGMENT.fullmatch(value):
            raise ValueError(
                "expected rand followed by sections such as -m9 (magnitude), -n2 (operations), -p0.5 (chance of each), "
                f"-mstd0.5, -mmax10, -inc1, -tweights, -t3a or -t3aw, found {value!r}"
            )
        return value

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
        if self.batch_size % self.accumulate:
            problems.append(
                f"accumulate: expected a divisor of batch_size ({self.batch_size}), found {self.accumulate}"
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
            raise ValueError("\n".join(problems))
        return self

    def _further_problems(self) -> list[str]:
        """What a kind of recipe checks between its own fields, one line a problem."""
        return []


class FinetuneRecipe(TrainRecipe):
    """Train one network on labels: a teacher, or a scratch baseline."""

    model: str = Field(description="network: timm/NAME, torchvision/NAME, uhkd/NAME or a run folder")
    start: str = Field(default="random", description="first weights: random, pretrained (network) or a weights file")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the network's constructor")
    levels: Levels = Field(
        default=None, description="names of the layers whose maps are kept in diagnostics; none: chosen"
    )


class DistillRecipe(TrainRecipe):
    """Train a student network to imitate a teacher network of any other architecture."""

    teacher: str | None = Field(
        default=None, description="teacher: a run folder, timm/NAME, torchvision/NAME or uhkd/NAME; scratch needs none"
    )
    student: str = Field(description="student: timm/NAME, torchvision/NAME, uhkd/NAME or a run folder")
    method: str = Field(default="uhkd", min_length=1, description="distillation method, or several joined by +")
    settings: dict[str, Any] = Field(default={}, description="the method's own settings, as in radius=2")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="weights of the loss terms by name, as in features=10; 0 skips a term"
    )
    teacher_start: str | None = Field(
        default=None,
        description="teacher weights: pretrained or a file; none: a run folder's own, otherwise pretrained",
    )
    teacher_head: Literal["auto", "keep", "probe"] = Field(
        default="auto",
        description="teacher's classifier: its own, or a linear probe trained first; auto: probe if classes differ",
    )
    allow_weak_teacher: bool = Field(
        default=False, description="go on with a teacher that is hardly better than chance"
    )
    teacher_levels: Levels = Field(default=None, description="names of the teacher's layers to match; none: chosen")
    teacher_options: dict[str, Any] = Field(default={}, description="keyword arguments of the teacher's constructor")
    student_start: str = Field(
        default="random", description="student's first weights: random, pretrained or a weights file"
    )
    student_levels: Levels = Field(default=None, description="names of the student's layers to match; none: chosen")
    student_options: dict[str, Any] = Field(default={}, description="keyword arguments of the student's constructor")

    def _further_problems(self) -> list[str]:
        if self.teacher is None and self.method != "scratch":
            return ["teacher: required but not given (a run folder, timm/NAME, torchvision/NAME or uhkd/NAME)"]
        return []
