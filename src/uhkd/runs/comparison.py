"""Reads the folder of a comparison, and finds run folders below a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uhkd.errors import UhkdError
from uhkd.recipe import TASK_KEYS, rename_keys
from uhkd.runs.files import read_mapping
from uhkd.runs.lock import process_may_be_alive

RECIPE_FILE = "compare.yaml"
TUNING = "tune"  # folder of the settings tried, which are runs
TASK_FILES = ("plan", "locks", "logs", "failed", "chosen")
CACHES = "caches"
_MAX_DEPTH = 6  # folders between a given one and a run; a comparison's runs are three below it


class ComparisonFolder:
    """The folder of a comparison, whose state is its files.

    NAME/ is the run folder of a task (or its cache), plan/NAME.json its options, locks/NAME.lock and locks/NAME.pid its worker,
    logs/NAME.txt its output, failed/NAME.txt the reason of a failure; chosen/PAIR/METHOD.json is the setting chosen by tuning.
    compare.yaml is the recipe, plan/.order-MACHINE-PROCESS.json the order of a process that controls workers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, kind: str, name: str, suffix: str = ".txt") -> Path:
        """Return the path of a file of a task; kind: one of `TASK_FILES`."""
        return self.path / kind / f"{name}{suffix}"

    def planned(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and options of every planned training, sorted by path; files that cannot be read are left out."""
        plan = self.path / "plan"
        for file in sorted(plan.rglob("[!.]*.json")):
            try:
                options = rename_keys(read_mapping(file), TASK_KEYS).get("options")
            except (OSError, UhkdError):
                continue
            if isinstance(options, dict) and ("student" in options or "model" in options):  # otherwise it is a cache
                yield file.relative_to(plan).with_suffix("").as_posix(), options

    def failure(self, name: str) -> str | None:
        """Return the reason why the comparison has given up a task, or None."""
        try:
            return self.file("failed", name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def may_be_controlled(self) -> bool:
        """Return whether a process that controls the workers may be running."""
        for order in (self.path / "plan").glob(".order-*.json"):
            machine, _, process = order.stem.removeprefix(".order-").rpartition("-")
            if process.isdecimal() and process_may_be_alive({"process": int(process), "machine": machine}):
                return True
        return False


def find_runs(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Yield the run folders in `folder`, including itself, sorted by path.

    Links, hidden folders, caches and run folders are not searched. on_error: called for each folder that cannot be read.
    """
    for path, subfolders, files in os.walk(folder, onerror=on_error):
        is_run = "recipe.yaml" in files
        if is_run and "cache.json" not in files:
            yield Path(path)
        if is_run or len(Path(path).relative_to(folder).parts) >= _MAX_DEPTH:
            subfolders.clear()
        ignored = (*TASK_FILES, CACHES) if RECIPE_FILE in files else ()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in ignored)


def is_tuning(run: Path, folder: Path) -> bool:
    """Return whether a run below `folder` is a setting tried by a comparison in `folder` or below it."""
    names = run.relative_to(folder).parts
    return any(name == TUNING and folder.joinpath(*names[:i], RECIPE_FILE).is_file() for i, name in enumerate(names))
