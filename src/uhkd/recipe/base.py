"""Option groups that several kinds of recipe share: data, augmentation, teacher, device."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.errors import format_value
from uhkd.recipe.old_names import RECIPE_KEYS, rename_keys

_PATHS = ("out", "run", "teacher_cache", "shard_cache", "cache")  # a shell expands ~ only where it is not quoted


class StrictModel(BaseModel):
    """Immutable options of plain data; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of every option that is not required."""
        return {name: info.get_default() for name, info in cls.model_fields.items() if not info.is_required()}

    @model_validator(mode="before")
    @classmethod
    def _rename_old_keys(cls, values: Any) -> Any:
        table = {old: new for old, new in RECIPE_KEYS.items() if new in cls.model_fields}
        return rename_keys(values, table) if isinstance(values, dict) else values

    @field_validator("*", mode="before")
    @classmethod
    def _check_plain(cls, value: Any, info: Any) -> Any:
        """Convert a path to text; reject true and false as numbers (pydantic reads them as 1 and 0)."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if info.field_name in _PATHS and isinstance(value, str):
            return str(Path(value).expanduser()) if value.startswith("~") else value
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and annotation in (int, float, int | None, float | None):
            raise UhkdError(f"expected a number, found {str(value).lower()}")
        if annotation in (dict[str, Any], dict[str, dict[str, Any]]) and (part := _unserializable(value)):
            raise UhkdError(
                f"expected text, finite numbers, true, false, none, and lists and 'key: value' of these, found {part}"
            )
        return value


def _unserializable(value: Any) -> str | None:
    """Describe the first part of a value that YAML cannot write and read back unchanged."""
    if isinstance(value, Mapping):
        keys = (f"the key {format_value(key)}" for key in value if not isinstance(key, str))
        return next(keys, None) or _unserializable(list(value.values()))
    if isinstance(value, list | tuple):
        return next(filter(None, map(_unserializable, value)), None)
    plain = math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int | os.PathLike | None)
    return None if plain else f"a {type(value).__name__} ({str(value)[:80]})"


def _integers_as_text(value: Any) -> Any:
    """Convert layer names to text: YAML reads unquoted block numbers as integers."""
    if isinstance(value, list | tuple):
        return tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
    return value


Levels = Annotated[tuple[str, ...] | None, BeforeValidator(_integers_as_text)]
"""Names of layers (block numbers as text); None: selected automatically."""

Teacher = Annotated[
    str, Field(description="teacher: a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME")
]
Student = Annotated[
    str, Field(description="student: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Field(description="device to compute on; auto: cuda if available, otherwise cpu; mps (Apple's GPU) is untested"),
]

WEIGHTS_KEY = "copy in a weights file with several, such as model_ema (nested: a.b); none: the weights themselves"


def _one_or_two_sides(value: Any) -> Any:
    """Convert text, one side or (height, width) to whole numbers; two equal sides become one.

    Raises:
        UhkdError: other than one or two whole numbers of 4 or more.
    """
    sides = value if isinstance(value, list | tuple) else [value]
    if [str(side).lower() for side in sides] in (["none"], ["null"]):
        return None
    numbers = [int(str(side)) if str(side).isdecimal() else 0 for side in sides]
    if len(numbers) not in (1, 2) or min(numbers) < 4:
        raise UhkdError(f"expected one side, or height and width, of 4 or more pixels, found {format_value(value)}")
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


ImageSize = Annotated[int | tuple[int, int] | None, BeforeValidator(_one_or_two_sides)]
"""One side, or (height, width), in pixels; None: the default of a network."""

Resize = Literal["crop", "squash", "pad"]
"""How an image gets the shape of a network's input."""

_RANDAUGMENT = re.compile(r"rand(-(m\d+|n[1-9]\d*|p\d(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*")


class SourceOptions(StrictModel):
    """Parts of `data` (folders in an image folder, columns of a table), and whether to skip unreadable files."""

    train_dir: str | None = Field(
        default=None,
        description="folder of training images, below data or absolute; none: by its name (train, training), else data itself",
    )
    val_dir: str | None = Field(
        default=None,
        description="folder of validation images, as train_dir; none: by its name (val, valid, validation, dev), if any",
    )
    test_dir: str | None = Field(
        default=None,
        description="folder of test images, as train_dir; none: by its name (test, testing, eval, evaluation), if any",
    )
    image_column: str | None = Field(
        default=None, description="column of images in a table or hfds/NAME; none: found by usual names and types"
    )
    label_column: str | None = Field(
        default=None, description="column of labels in a table or hfds/NAME; none: found by usual names and types"
    )
    skip_bad_images: bool = Field(default=False, description="skip unreadable image files; they are counted and listed")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        """Reject parts of data that is not given: those of a run's own data are recorded."""
        given = [name for name in SourceOptions.model_fields if isinstance(getattr(self, name), str)]
        if given and getattr(self, "data", None) is None:
            raise UhkdError("\n".join(f"{name}: needs data, and none is given (--data)" for name in given))
        return self


class DataOptions(SourceOptions):
    """Images and labels."""

    data: str = Field(
        description="digits, cifar100[:ROOT], a folder of images, tar shards, an .npz file, a table (.csv, .tsv, .parquet), "
        "hfds/NAME or torch/NAME"
    )
    val_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the training images held out for validation if the data has no validation split; none: a tenth, "
        "at least 100 images but at most a fifth",
    )
    train_limit: int | None = Field(default=None, ge=1, description="training images, stratified by class; none: all")
    unlabelled: bool = Field(default=False, description="ignore labels; a folder may then have any subfolders")
    resize: Resize = Field(
        default="crop",
        description="how images get the shape of the network's input, also in eval, predict and export: crop (largest centred "
        "part), squash (whole image, stretched) or pad (whole image, with borders)",
    )
    shuffle_shards: int | None = Field(
        default=None,
        ge=1,
        description="number of tar shards shuffled together, so that few are read at a time; none: all, or 8 if remote",
    )
    shuffle_streams: int = Field(
        default=1,
        ge=1,
        description="parts of an epoch that shuffle_shards reads in parallel; set to the number of processes, each process reads "
        "only its own shards",
    )
    shard_cache: str | None = Field(default=None, description="folder for downloaded shards; none: in the user's cache")
    shard_cache_gb: float = Field(default=100.0, gt=0, description="maximum size of shard_cache, in GB")


class AugmentationOptions(StrictModel):
    """Augmentation of training images."""

    crop: Literal["auto", "none", "pad", "resized"] = Field(
        default="auto", description="random crop of training images; auto: pad for small images, resized for large ones"
    )
    crop_scale: float = Field(default=0.25, gt=0, le=1, description="minimum share of the image area for crop resized")
    flip: bool | None = Field(default=None, description="mirror training images at random; none: depends on the data")
    randaugment: str | None = Field(default=None, description="RandAugment, such as rand-m9-mstd0.5-inc1; none: off")
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest change of brightness, contrast and saturation, not used with randaugment other than -t3a; 0: off",
    )
    erasing: float = Field(default=0.0, ge=0, le=1, description="probability that a random box becomes noise")
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup's Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix's Beta distribution; 0: off")

    @field_validator("randaugment")
    @classmethod
    def _check_randaugment(cls, value: str | None) -> str | None:
        """Reject unknown sections: timm ignores them, so a typing error would train another recipe."""
        if value is not None and not _RANDAUGMENT.fullmatch(value):
            raise UhkdError(
                "expected rand followed by sections such as -m9 (magnitude), -n2 (operations), -p0.5 (chance of each), "
                f"-mstd0.5, -mmax10, -inc1, -tweights, -t3a or -t3aw, found {value!r}"
            )
        return value


class TeacherOptions(StrictModel):
    """Weights, classifier and layers of the teacher."""

    teacher_start: str | None = Field(
        default=None,
        description="teacher's weights: pretrained or a weights file; none: those of the run folder, otherwise pretrained",
    )
    teacher_weights_key: str | None = Field(default=None, description=WEIGHTS_KEY)
    teacher_head: Literal["auto", "keep", "probe"] = Field(
        default="auto",
        description="teacher's classifier: keep it, or train a linear probe first; auto: probe if the classes differ",
    )
    allow_weak_teacher: bool = Field(default=False, description="accept a teacher hardly better than chance")
    teacher_levels: Levels = Field(default=None, description="names of teacher layers to match; none: automatic")
    teacher_options: dict[str, Any] = Field(default={}, description="keyword arguments of the teacher's constructor")


class DeviceOptions(StrictModel):
    """Device, precision and loader processes."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="number format of the forward pass; auto: bf16 if the device computes it natively"
    )
    workers: int | None = Field(default=None, ge=0, description="loader processes; none: by data and number of cores")
    device: Device = "auto"
    deterministic: bool = Field(
        default=False,
        description="use only bitwise repeatable operations on a GPU (slower), so that a resumed run equals an uninterrupted "
        "one; always so on a CPU",
    )
