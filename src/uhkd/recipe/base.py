"""Groups of words that several kinds of recipe share: which images, which views of them, which teacher."""

import math
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.errors import shown
from uhkd.recipe.old_names import RECIPE_KEYS, rename_keys


class StrictModel(BaseModel):
    """Plain-data options: unknown keys refused, values checked, immutable once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What each word means where it is not said; words that must be said are left out."""
        return {name: info.get_default() for name, info in cls.model_fields.items() if not info.is_required()}

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, values: Any) -> Any:
        """Accept the option names of older versions."""
        table = {old: new for old, new in RECIPE_KEYS.items() if new in cls.model_fields}
        return rename_keys(values, table) if isinstance(values, dict) else values

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        """A path object becomes its text; True and False are no numbers (pydantic would read them as 1 and 0)."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and annotation in (int, float, int | None, float | None):
            raise UhkdError(f"expected a number, found {str(value).lower()}")
        if annotation in (dict[str, Any], dict[str, dict[str, Any]]) and (odd := _odd(value)):
            raise UhkdError(
                f"expected text, finite numbers, true, false, none, and lists and 'key: value' of these, found {odd}"
            )
        return value


def _odd(value: Any) -> str | None:
    """What in a value could not be written down and read again as it is, in words."""
    if isinstance(value, Mapping):
        keys = (f"the key {shown(key)}" for key in value if not isinstance(key, str))
        return next(keys, None) or next(filter(None, map(_odd, value.values())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, map(_odd, value)), None)
    finite = not isinstance(value, float) or math.isfinite(value)
    return (
        None
        if isinstance(value, str | int | float | os.PathLike | None) and finite
        else f"a {type(value).__name__} ({str(value)[:80]})"
    )


def _texts(value: Any) -> Any:
    """Level names as text: block numbers are written without quotes in YAML."""
    if isinstance(value, list | tuple):
        return tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
    return value


Levels = Annotated[tuple[str, ...] | None, BeforeValidator(_texts)]
"""Names of layers, block numbers among them, as text; None: chosen."""


_RANDAUGMENT = re.compile(r"rand(-(m\d+|n[1-9]\d*|p\d(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*")


class DataOptions(StrictModel):
    """Which images."""

    data: str = Field(
        description="digits, cifar100[:ROOT], a folder of images, tar shards, an .npz file, hfds/NAME or torch/NAME"
    )
    val_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the training images held out for validation where no val folder exists",
    )
    train_limit: int | None = Field(
        default=None, ge=1, description="train on this many images only (stratified); none: all"
    )
    unlabelled: bool = Field(
        default=False, description="leave labels aside; in a folder, images may then lie in any folders, at any depth"
    )
    skip_bad_images: bool = Field(
        default=False, description="leave out image files that cannot be read, counted and named"
    )
    shuffle_shards: int | None = Field(
        default=None,
        ge=1,
        description="tar shards whose images are shuffled together, so that few are read at a time; none: all, or 8 from afar",
    )
    shuffle_streams: int = Field(
        default=1,
        ge=1,
        description="parts of an epoch that shuffle_shards reads in parallel; the number of processes gives each its own shards",
    )
    shard_cache: str | None = Field(
        default=None, description="folder for shards fetched from elsewhere; none: the user's cache folder"
    )
    shard_cache_gb: float = Field(default=100.0, gt=0, description="how much of them is kept, in GB")


class AugmentationOptions(StrictModel):
    """How training images are varied."""

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

    @field_validator("randaugment")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        """timm overlooks sections it does not know, so a slip of the pen would train another recipe."""
        if value is not None and not _RANDAUGMENT.fullmatch(value):
            raise UhkdError(
                "expected rand followed by sections such as -m9 (magnitude), -n2 (operations), -p0.5 (chance of each), "
                f"-mstd0.5, -mmax10, -inc1, -tweights, -t3a or -t3aw, found {value!r}"
            )
        return value


class TeacherOptions(StrictModel):
    """The teacher beside its name."""

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


class DeviceOptions(StrictModel):
    """What the work runs on."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="number format of the forward pass; auto: bf16 where the device is fast at it"
    )
    workers: int | None = Field(
        default=None, ge=0, description="loader processes; none: chosen from the data and the cores"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to compute")
    deterministic: bool = Field(
        default=False,
        description="on a GPU, use only operations that repeat to the bit, so that a resumed run equals an undisturbed one "
        "(slower); on a CPU that is always so",
    )
