"""The state of trainings, read from their run folders; nothing is locked or written."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhkd.console import join
from uhkd.recipe import TASK_KEYS, rename_keys
from uhkd.runs.files import read_mapping
from uhkd.runs.folder import RunFolder
from uhkd.runs.lock import owner_of, process_may_be_alive
from uhkd.runs.progress_file import ProgressFile

SILENT = 600.0  # seconds without a write until a training counts as lost, if its process cannot be checked
LONGEST = 1e9  # seconds; longer times are errors
STATES = ("running", "lost", "failed", "stopped", "beginning", "waiting", "finished")
_MAX_DEPTH = 4  # folders between the given folder and a run

State = dict[str, Any]


def collect_status(folder: Path, before: Sequence[State] = ()) -> list[State]:
    """Return the state of the run in `folder` or of all runs below it, sorted by path, then of planned runs of a comparison.

    before: states of an earlier call; finished runs among them are not read again.
    """
    finished = {state["run"]: state for state in before if state["state"] == "finished"}
    states = [finished.get(str(path)) or run_status(path) for path in _runs(folder)]
    # a comparison; `uhkd.commands.comparing.task_store.TaskStore` describes its files
    if not (folder / "plan").is_dir() or RunFolder(folder).started():
        return states
    for state in states:
        _read_failure(folder, state)
    started = {state["run"] for state in states}
    return [*states, *(state for state in _planned(folder) if state["run"] not in started)]


def _planned(folder: Path) -> Iterator[State]:
    """Yield every training that a comparison has planned, as waiting or failed."""
    for file in sorted((folder / "plan").rglob("[!.]*.json")):
        try:
            options = rename_keys(read_mapping(file), TASK_KEYS).get("options")
        except (OSError, ValueError):
            continue
        if isinstance(options, dict) and ("student" in options or "model" in options):  # otherwise it is a cache
            run = folder / file.relative_to(folder / "plan").with_suffix("")
            state: State = {"run": str(run), "state": "waiting", "what": _what(options), "rows": [], "advice": ""}
            _read_failure(folder, state)
            yield state


def _read_failure(folder: Path, state: State) -> None:
    """Set the state to failed if the comparison in `folder` has given up the training."""
    run = Path(state["run"])
    file = folder / "failed" / run.relative_to(folder).parent / f"{run.name}.txt"
    if state["state"] not in ("finished", "running") and file.is_file():
        with contextlib.suppress(OSError, ValueError):
            why = next(iter(file.read_text(encoding="utf-8").splitlines()), "")
            state |= {"state": "failed", "why": why, "advice": "the same comparison tries it again"}


def run_status(folder: Path) -> State:
    """Return the state of one run as plain data.

    state: beginning, running, lost (no write for a long time, or its process has ended), stopped, failed or finished. what:
    short text on its recipe. rows: of metrics.csv, finite numbers only. advice: what to do, or "".
    Further keys are "age" (seconds) and the fields of `ProgressFile`, if progress.json exists.
    """
    run, progress = RunFolder(folder), ProgressFile.read(folder)
    state: State = {"run": str(folder), "state": "beginning", "what": "", "rows": [], "advice": ""}
    try:
        state["what"] = _what(run.read_recipe())
        state["rows"] = [{k: v for k, v in row.items() if math.isfinite(v)} for row in run.read_metrics()]
    except (OSError, ValueError) as error:
        state["advice"] = str(error)
    if progress is not None:
        state |= progress.model_dump() | {"age": progress.age()}
    if run.result.is_file():
        state["state"] = "finished"
    elif progress is not None and progress.state in ("running", "finished"):  # "finished": its network is being written
        gone = not process_may_be_alive({"process": progress.process, "machine": progress.machine})
        state["state"] = "running"
        if gone or progress.age() > SILENT:
            why = "its process has ended" if gone else f"no progress for {span(progress.age())}"
            state |= {"state": "lost", "advice": f"{why}; {_resume_advice(run)}"}
    elif progress is not None:
        state["advice"] = _resume_advice(run)
    return state


def _runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders in `folder`, or `folder` itself; run folders are not searched."""
    if RunFolder(folder).started():
        yield folder
        return
    for path, subfolders, files in os.walk(folder):
        depth = len(Path(path).relative_to(folder).parts)
        if "recipe.yaml" in files and "cache.json" not in files:
            yield Path(path)
        subfolders[:] = [] if "recipe.yaml" in files or depth >= _MAX_DEPTH else sorted(subfolders)


def _what(recipe: Mapping[str, Any]) -> str:
    """Return a short text on a recipe."""
    data = recipe.get("data")
    if "student" not in recipe:
        return f"{recipe.get('model')} on {data}"
    teachers = recipe.get("teachers") or recipe.get("teacher") or recipe.get("teacher_cache") or []
    teachers = teachers if isinstance(teachers, list | tuple) else [teachers]
    names = [str(teacher.get("teacher") if isinstance(teacher, Mapping) else teacher) for teacher in teachers]
    source = f" from {join(names)}" if names else ""
    return f"{recipe['student']} by {recipe.get('method')}{source} on {data}"


def _resume_advice(run: RunFolder) -> str:
    if any(run.checkpoints.glob("step-*")):
        return "resume with the same command and --resume"
    return "no checkpoint was written: start it again with --resume"


def run_progressed(state: State) -> tuple[Any, ...]:
    """Return values that change while a process works on the run."""
    return state["state"], state.get("step"), len(state["rows"])


def all_done(folder: Path, states: Sequence[State], before: Sequence[State]) -> bool:
    """Return whether all runs have ended, or no process works on them and nothing changed since `before`."""
    if all(state["state"] in ("finished", "failed") for state in states):
        return True
    still = [(s["run"], *run_progressed(s)) for s in states] == [(s["run"], *run_progressed(s)) for s in before]
    return still and not _has_comparison_process(folder) and not any(map(_has_process, states))


def _has_process(state: State) -> bool:
    """Return whether a process may be working on a run; it records itself in the folder that it locks."""
    if state["state"] in ("running", "finished", "failed", "waiting"):
        return state["state"] == "running"
    owner, folder = owner_of(Path(state["run"])), Path(state["run"])
    if os.name == "posix" and owner.get("machine") == platform.node():
        return process_may_be_alive(owner)
    # another machine, or a disk without locks: every write replaces a file, which changes the mtime of the folder
    try:
        return (bool(owner) or state["state"] == "beginning") and time.time() - folder.stat().st_mtime < SILENT
    except OSError:
        return False


def _has_comparison_process(folder: Path) -> bool:
    """Return whether a process that controls the workers of a comparison may be running."""
    for order in (folder / "plan").glob(".order-*.json"):
        machine, _, process = order.stem.removeprefix(".order-").rpartition("-")
        if process.isdecimal() and process_may_be_alive({"process": int(process), "machine": machine}):
            return True
    return False


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if not seconds < LONGEST:
        return "over 30 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
