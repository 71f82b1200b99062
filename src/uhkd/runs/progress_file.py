"""Progress of a training for other processes: one small file, written often and read without locks."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uhkd.errors import UhkdError
from uhkd.runs.files import read_mapping, write_atomically

NAME = "progress.json"
_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class ProgressFile(BaseModel):
    """Content of progress.json.

    doing: training or validating. step, total, epoch, epochs: counted from 1. terms: means of the loss and each unweighted term
    since the previous log line. recent: the latest of these means, oldest first. data_wait: share of time spent waiting for data,
    0 to 1. seconds: training time so far. eta_seconds: None before the first step. health: sentences after the last validation.
    why: the error or signal that ended the training. process, machine, time: of this write (seconds since 1970).
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
        """Replace the file atomically, without waiting for the disk because the next write comes soon."""
        write_atomically(folder / NAME, json.dumps(_rounded(self.model_dump())) + "\n", durable=False)

    @classmethod
    def read(cls, folder: Path) -> "ProgressFile | None":
        """Return the progress of the run in `folder`; None if the file is missing or invalid."""
        try:
            return cls.model_validate(read_mapping(folder / NAME))
        except (OSError, UhkdError, ValidationError):
            return None

    def age(self) -> float:
        """Return the seconds since the write, by the clocks of both machines."""
        return max(0.0, time.time() - self.time)


def _rounded(value: Any) -> Any:
    """Round floats to six digits, except large ones such as times."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) and abs(value) < 1e6 else value
