"""Recipe of a comparison: pairs, methods, seeds, and the number of settings to tune per method."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.base import StrictModel


class CompareRecipe(StrictModel):
    """Train pairs x methods x seeds, in parallel and resumable, and write one table."""

    pairs: tuple[str, ...] = Field(min_length=1, description="distill recipes: packaged names, files or run folders")
    methods: tuple[str, ...] = Field(
        default=("scratch", "kd", "uhkd"), min_length=1, description="methods, combinations by +, or names of variants"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default={},
        description="methods with other options, for example r2={method: uhkd, settings: {radius: 2}}; not tuned by --tune",
    )
    teachers: tuple[str, ...] = Field(
        default=(),
        description="one for all pairs, or one per pair: a finetune recipe to train once, a run folder or a network; none: the "
        "recipes' teachers",
    )
    seeds: int = Field(default=3, ge=1, description="number of seeds (0, 1, ...); differences are paired by seed")
    data: str | None = Field(default=None, description="data to use instead of the recipes' data")
    overrides: dict[str, Any] = Field(default={}, description="changed options of every student, for example epochs=10")
    teacher_overrides: dict[str, Any] = Field(default={}, description="changed options of every teacher")
    split: Literal["val", "test"] = Field(
        default="val",
        description="split of the final table: held-out (val), or test, which is read once, after all choices are made",
    )
    tune: int = Field(default=0, ge=0, description="settings to try per method on the held-out split; 0: defaults")
    cache: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: store teacher outputs once if two or more trainings of a seed use them; never: each training runs "
        "the teacher",
    )
    cost: bool = Field(default=False, description="measure time, memory and FLOPs of a step instead of training")
    rounds: int = Field(default=20, ge=2, description="interleaved rounds of measurements with --cost")
    jobs: int = Field(
        default=1,
        ge=1,
        description="parallel processes (with --cost: for memory only); the same command started again adds more",
    )
    title: str | None = Field(default=None, description="heading of the table")
    out: str = Field(default="runs/compare", description="folder of the comparison; resumes an unfinished comparison")

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        problems = []
        if len(self.teachers) not in (0, 1, len(self.pairs)):
            problems.append(
                f"teachers: expected one, or one for each of {len(self.pairs)} pairs, found {len(self.teachers)}"
            )
        if len(set(self.methods)) < len(self.methods):
            problems.append(f"methods: expected each once, found {', '.join(self.methods)}")
        reserved = {"method", "seed", "out", "resume", "teacher", "data"}
        for field, fixed in (("overrides", reserved), ("teacher_overrides", reserved - {"seed"})):
            wrong = sorted(fixed & set(getattr(self, field)))
            problems += [f"{field}: {name} cannot be overridden; the comparison sets it" for name in wrong]
        for name, options in self.variants.items():
            wrong = sorted((reserved - {"method"}) & set(options))
            problems += [f"variants: {name} cannot set {option}; the comparison sets it" for option in wrong]
            if not isinstance(options.get("method"), str):
                problems.append(f"variants: {name} needs 'method: NAME', found {sorted(options)}")
        if problems:
            raise UhkdError("\n".join(problems))
        return self
