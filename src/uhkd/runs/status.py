"""The state of trainings, read from their run folders; nothing is locked or written."""

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uhkd.console import join
from uhkd.errors import UhkdError
from uhkd.runs.comparison import ComparisonFolder, find_runs
from uhkd.runs.folder import RunFolder
from uhkd.runs.lock import owner_of, process_may_be_alive
from uhkd.runs.progress_file import ProgressFile

SILENT = 600.0  # seconds without a write until a training counts as lost, if its process cannot be checked
LONGEST = 1e9  # seconds; longer times are errors
STATES = ("running", "lost", "failed", "stopped", "beginning", "waiting", "finished")

State = dict[str, Any]


def collect_status(folder: Path, before: Sequence[State] = ()) -> list[State]:
    """Return the state of the run in `folder` or of all runs below it, sorted by path, then of planned runs of a comparison.

    before: states of an earlier call; finished runs among them are not read again.
    """
    finished = {state["run"]: state for state in before if state["state"] == "finished"}
    if RunFolder(folder).started():
        return [finished.get(str(folder)) or run_status(folder)]
    states = {str(path): finished.get(str(path)) or run_status(path) for path in find_runs(folder)}
    comparison = ComparisonFolder(folder)
    for name, options in comparison.planned():
        run = str(folder / name)
        states.setdefault(run, _state(run, "waiting", _what(options)))
    for run, state in states.items():
        why = comparison.failure(Path(run).relative_to(folder).as_posix())
        if why is not None and state["state"] not in ("finished", "running"):
            why = next(iter(why.splitlines()), "")
            state |= {"state": "failed", "why": why, "advice": "the same comparison tries it again"}
    return [*states.values()]


def _state(run: str, state: str, what: str = "") -> State:
    return {"run": run, "state": state, "what": what, "rows": [], "advice": ""}


def run_status(folder: Path) -> State:
    """Return the state of one run as plain data.

    state: beginning, running, lost (no write for a long time, or its process has ended), stopped, failed or finished. what:
    short text on its recipe. rows: of metrics.csv, finite numbers only. advice: what to do, or "".
    Further keys are "age" (seconds) and the fields of `ProgressFile`, if progress.json exists.
    """
    run, progress = RunFolder(folder), ProgressFile.read(folder)
    state = _state(str(folder), "beginning")
    try:
        state["what"] = _what(run.read_recipe())
        state["rows"] = [{k: v for k, v in row.items() if math.isfinite(v)} for row in run.read_metrics()]
    except (OSError, UhkdError) as error:
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
    return still and not ComparisonFolder(folder).may_be_controlled() and not any(map(_has_process, states))


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


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if not seconds < LONGEST:
        return "over 30 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
