"""What storing a teacher's signals may say: the teacher, the images, their views, and what is kept of each."""

import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.base import AugmentationOptions, DataOptions, DeviceOptions, TeacherOptions
from uhkd.recipe.errors import shown

STORABLE = ("logits", "embedding", "spectra")
MOST_VIEWS = 100_000
"""Nobody trains for more epochs, and a slip of the pen is told before the disk is full."""


class CacheRecipe(DataOptions, AugmentationOptions, TeacherOptions, DeviceOptions):
    """Store what a teacher says about views of the training images, once, for many students, methods and seeds."""

    teacher: str = Field(
        description="teacher: a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME"
    )
    out: str = Field(description="folder of the cache; an unfinished one is gone on with, damaged parts are made anew")
    views: int = Field(
        default=30,
        ge=1,
        le=MOST_VIEWS,
        description="views of every image; epoch e of a training shows view e mod views",
    )
    keep: tuple[str, ...] = Field(
        default=STORABLE, min_length=1, description="what is stored of each view, of logits, embedding, spectra"
    )
    storage: Literal["fp16", "int8"] = Field(
        default="fp16", description="numbers of spectra and embedding; int8 (with scales) takes half the room"
    )
    radius: int = Field(default=1, ge=1, description="of the spectra, as of method uhkd")
    form: Literal["pairs", "amplitude", "log-amplitude"] = Field(
        default="pairs", description="of the spectra, as of method uhkd"
    )
    standardise: Literal["none", "channel", "coefficient"] = Field(
        default="coefficient", description="of the spectra, as of method uhkd"
    )
    channels: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto", description="of the spectra, as of method uhkd; none: all channels of the teacher"
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="of the views; a training by the same seed sees the same ones without a cache",
    )
    batch_size: int = Field(default=128, ge=1, description="images per forward pass")
    jobs: int = Field(default=1, ge=1, description="processes at work; more may join by the same command")

    @field_validator("channels", mode="wrap")
    @classmethod
    def _drop_duplicates(cls, value: Any, validator: Callable[[Any], Any]) -> Any:
        """pydantic would tell a mistake once for each kind of value that it might have been."""
        with contextlib.suppress(ValidationError):
            if not isinstance(value, bool):
                return validator(value)
        raise UhkdError(f"expected a whole number from 1 on, auto or none, found {shown(value)}")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.keep)) < len(self.keep) or not set(self.keep) <= set(STORABLE):
            raise UhkdError(f"keep: expected some of {', '.join(STORABLE)}, each once, found {', '.join(self.keep)}")
        if "spectra" in self.keep and isinstance(self.channels, int) and self.form != "pairs":
            raise UhkdError(
                f"channels: mixes channels linearly and fits form pairs, found form {self.form}; say --channels none"
            )
        return self
