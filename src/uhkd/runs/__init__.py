"""The run folder: its file names, and how each file is written (atomically) and read (without executing code).

torch is imported only where tensors are written or read, so that a run can be inspected without it.
"""

from uhkd.runs.checkpoints import Checkpoint
from uhkd.runs.files import (
    check_own,
    check_place,
    drop_leftovers,
    leads_out,
    read_mapping,
    read_or_replace,
    write_atomically,
    write_tensors,
)
from uhkd.runs.folder import ELSEWHERE, RunFolder
from uhkd.runs.lock import process_may_be_alive
from uhkd.runs.machine import environment, processor
from uhkd.runs.progress_file import ProgressFile

__all__ = [
    "ELSEWHERE",
    "Checkpoint",
    "ProgressFile",
    "RunFolder",
    "check_own",
    "check_place",
    "drop_leftovers",
    "environment",
    "leads_out",
    "process_may_be_alive",
    "processor",
    "read_mapping",
    "read_or_replace",
    "write_atomically",
    "write_tensors",
]
