"""Where a training stands, for whoever looks from outside: one small file, written often and read without locks."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uhkd.runs.files import read_mapping, write_atomically

NAME = "progress.json"
_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class ProgressFile(BaseModel):
    """progress.json: one state of a training.

    state: how it goes, or how it ended. doing: training, validating or saving. step, total, epoch, epochs: counted from 1.
    terms: mean of the loss and each raw term over the steps since the log line before. recent: the last of those means, oldest
    first. lr; images_per_second; data_wait (share of the time, 0..1); seconds (training time so far); eta_seconds (None before
    the first step). health: sentences after the last validation. why: what ended it. process, machine, time: who wrote
    this, and when (seconds since 1970).
    """

    model_config = ConfigDict(extra="ignore")

    state: Literal["running", "stopped", "failed", "finished"]
    doing: str = "training"
    step: _Count
    total: Annotated[int, Field(ge=1)]
    epoch: _Count
    epochs: Annotated[int, Field(ge=1)]
    terms: dict[str, _Number] = {}
    recent: dict[str, list[_Number]] = {}
    lr: _Number | None = None
    images_per_second: _Number | None = None
    data_wait: _Number | None = None
    seconds: _Number = 0.0
    eta_seconds: _Number | None = None
    health: list[str] = []
    why: str = ""
    process: int
    machine: str
    time: _Number

    def write(self, folder: Path) -> None:
        """Replace the file, whole but not waiting for the disk: the next comes soon."""
        text = json.dumps({k: _short(v) for k, v in self.model_dump().items()})
        write_atomically(folder / NAME, text + "\n", durable=False)

    @classmethod
    def read(cls, folder: Path) -> "ProgressFile | None":
        """The state of the run in `folder`; None when none was written, or not by us."""
        try:
            return cls.model_validate(read_mapping(folder / NAME))
        except (OSError, ValueError, ValidationError):
            return None

    def age(self) -> float:
        """Seconds since it was written, by the clocks of both machines."""
        return max(0.0, time.time() - self.time)


def _short(value: Any) -> Any:
    """Floats of six digits, which is more than anyone sees; step counts and times stay whole."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) and abs(value) < 1e6 else value
