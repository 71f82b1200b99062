"""Recipe of a cache of teacher outputs: the teacher, the images, their views, and the outputs to store."""

import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.base import AugmentationOptions, DataOptions, DeviceOptions, Teacher, TeacherOptions
from uhkd.recipe.errors import format_value

STORABLE = ("logits", "embedding", "spectra")
MOST_VIEWS = 100_000
"""More than the epochs of any training: a typing error is reported before it fills the disk."""


class CacheRecipe(DataOptions, AugmentationOptions, TeacherOptions, DeviceOptions):
    """Store a teacher's outputs for augmented views of the training images, for many students, methods and seeds."""

    teacher: Teacher
    out: str = Field(description="folder of the cache; resumes an unfinished cache and repairs damaged shards")
    views: int = Field(
        default=30, ge=1, le=MOST_VIEWS, description="views per image; epoch e of a training uses view e mod views"
    )
    keep: tuple[str, ...] = Field(default=STORABLE, min_length=1, description="some of logits, embedding, spectra")
    storage: Literal["fp16", "int8"] = Field(
        default="fp16", description="number format of spectra and embedding; int8 (with scales) takes half the space"
    )
    radius: int = Field(default=1, ge=1, description="radius of the spectra, as for method uhkd")
    form: Literal["pairs", "amplitude", "log-amplitude"] = Field(default="pairs", description="as for method uhkd")
    standardise: Literal["none", "channel", "coefficient"] = Field(
        default="coefficient", description="standardisation of the spectra, as for method uhkd"
    )
    channels: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto", description="channels of the spectra, as for method uhkd; none: all channels of the teacher"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the views, as in a training without cache")
    batch_size: int = Field(default=128, ge=1, description="images per forward pass")
    jobs: int = Field(default=1, ge=1, description="parallel processes; the same command started again adds more")

    @field_validator("channels", mode="wrap")
    @classmethod
    def _check_channels(cls, value: Any, validator: Callable[[Any], Any]) -> Any:
        """Report one mistake instead of pydantic's one per member of the union."""
        with contextlib.suppress(ValidationError):
            if not isinstance(value, bool):
                return validator(value)
        raise UhkdError(f"expected a whole number >= 1, auto or none, found {format_value(value)}")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if len(set(self.keep)) < len(self.keep) or not set(self.keep) <= set(STORABLE):
            raise UhkdError(f"keep: expected some of {', '.join(STORABLE)}, each once, found {', '.join(self.keep)}")
        if "spectra" in self.keep and isinstance(self.channels, int) and self.form != "pairs":
            raise UhkdError(
                f"channels: a linear mix of channels needs form pairs, found form {self.form}; use --channels none"
            )
        return self
