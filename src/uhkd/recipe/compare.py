"""What a comparison may say: pairs, methods, seeds, and how many settings each method may try."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.base import StrictModel


class CompareRecipe(StrictModel):
    """Pairs x methods x seeds in one harness: run side by side, gone on with after a kill, told in one table."""

    pairs: tuple[str, ...] = Field(
        min_length=1, description="recipes of distill, one a pair: packaged names, YAML files or run folders"
    )
    methods: tuple[str, ...] = Field(
        default=("scratch", "kd", "uhkd"), min_length=1, description="methods, lists joined by +, or names of variants"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default={},
        description="methods with words of their own, as in r2={method: uhkd, settings: {radius: 2}}; --tune leaves them as "
        "they are",
    )
    teachers: tuple[str, ...] = Field(
        default=(),
        description="one for all pairs, or one a pair: a recipe of finetune to train once, a run folder, or a network; "
        "none: what the recipes name",
    )
    seeds: int = Field(default=3, ge=1, description="repetitions with seeds 0, 1, ...; differences are paired by seed")
    data: str | None = Field(default=None, description="data in place of the recipes'")
    overrides: dict[str, Any] = Field(
        default={}, description="fields changed in every student's recipe, as in epochs=10"
    )
    teacher_overrides: dict[str, Any] = Field(default={}, description="fields changed in every teacher's recipe")
    split: Literal["val", "test"] = Field(
        default="val",
        description="images of the final table: the held-out part, or the test part (read once, when all choices are made)",
    )
    tune: int = Field(
        default=0,
        ge=0,
        description="settings each method tries first on the held-out part; 0: its defaults as they are",
    )
    cache: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: teacher signals that two or more trainings of a seed read are stored once; never: each training "
        "runs its teacher",
    )
    cost: bool = Field(default=False, description="measure time, memory and FLOPs of a step instead of training")
    rounds: int = Field(default=20, ge=2, description="interleaved rounds of --cost")
    jobs: int = Field(
        default=1,
        ge=1,
        description="processes at work (with --cost: those that measure memory); more may join by the same command",
    )
    title: str | None = Field(default=None, description="heading of the table")
    out: str = Field(default="runs/compare", description="folder of the comparison; an unfinished one is gone on with")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = []
        if len(self.teachers) not in (0, 1, len(self.pairs)):
            problems.append(
                f"teachers: expected one, or one for each of {len(self.pairs)} pairs, found {len(self.teachers)}"
            )
        if len(set(self.methods)) < len(self.methods):
            problems.append(f"methods: expected each once, found {', '.join(self.methods)}")
        reserved = {"method", "seed", "out", "resume", "teacher", "data"}
        taken = sorted((reserved & set(self.overrides)) | ((reserved - {"seed"}) & set(self.teacher_overrides)))
        problems += [f"overrides: {name} has a field of its own in a comparison" for name in taken]
        problems += [
            f"variants: {name} may not say {option}: a comparison's cells share it"
            for name, options in self.variants.items()
            for option in sorted((reserved - {"method"}) & set(options))
        ]
        problems += [
            f"variants: {name} needs 'method: NAME', found {sorted(options)}"
            for name, options in self.variants.items()
            if not isinstance(options.get("method"), str)
        ]
        if problems:
            raise UhkdError("\n".join(problems))
        return self
