"""The run folder: every file name, how each is written (atomically) and read. Nothing read here can execute code."""

from uhkd.runs.checkpoints import Checkpoint
from uhkd.runs.files import check_own, check_place, drop_leftovers, read_mapping, write_atomically, write_tensors
from uhkd.runs.folder import RunFolder
from uhkd.runs.machine import environment

__all__ = [
    "Checkpoint",
    "RunFolder",
    "check_own",
    "check_place",
    "drop_leftovers",
    "environment",
    "read_mapping",
    "write_atomically",
    "write_tensors",
]
