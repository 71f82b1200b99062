"""The state of trainings, read from their run folders alone: nothing is locked or written."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhkd.recipe import TASK_KEYS, rename_keys
from uhkd.runs.files import read_mapping
from uhkd.runs.folder import RunFolder
from uhkd.runs.lock import owner_of, process_may_be_alive
from uhkd.runs.progress_file import ProgressFile

SILENT = (
    600.0  # seconds without a sign of life after which a training counts as lost, if its process cannot be looked for
)
LONGEST = 1e9  # seconds, and the number from which digits are left out: longer ones are mistakes
STATES = ("running", "lost", "failed", "stopped", "beginning", "waiting", "finished")
_DEEPEST = 4  # folders between a folder of runs and a run

State = dict[str, Any]


def collect_status(place: Path, before: Sequence[State] = ()) -> list[State]:
    """The state of the run in `place`, or of all runs below it, by path, and behind them what a comparison has yet to begin.

    Those that were finished `before` are not read again.
    """
    finished = {state["run"]: state for state in before if state["state"] == "finished"}
    states = [finished.get(str(folder)) or run_status(folder) for folder in _runs(place)]
    if not _compared(place):
        return states
    for state in states:
        _read_failure(place, state)
    started = {state["run"] for state in states}
    return [*states, *(state for state in _planned(place) if state["run"] not in started)]


def _compared(place: Path) -> bool:
    """Whether a folder is a comparison's; what lies in it is told by `uhkd.commands.comparing.queue.TaskStore`."""
    return (place / "plan").is_dir() and not RunFolder(place).started()


def _planned(place: Path) -> Iterator[State]:
    """Every training that a comparison has planned, as one not begun: waiting, or failed."""
    for file in sorted((place / "plan").rglob("[!.]*.json")):
        try:
            options = rename_keys(read_mapping(file), TASK_KEYS).get("options")
        except (OSError, ValueError):
            continue
        if isinstance(options, dict) and ("student" in options or "model" in options):  # what has neither is a cache
            run = place / file.relative_to(place / "plan").with_suffix("")
            state: State = {"run": str(run), "state": "waiting", "what": _what(options), "rows": [], "advice": ""}
            _read_failure(place, state)
            yield state


def _read_failure(place: Path, state: State) -> None:
    """Why a comparison gave a training up, if it did."""
    run = Path(state["run"])
    note = place / "failed" / run.relative_to(place).parent / f"{run.name}.txt"
    if state["state"] not in ("finished", "running") and note.is_file():
        with contextlib.suppress(OSError, ValueError):
            lines = note.read_text(encoding="utf-8").splitlines()
            state |= {
                "state": "failed",
                "why": lines[0] if lines else "",
                "advice": "the same comparison tries it again",
            }


def run_status(folder: Path) -> State:
    """Where one run stands, as plain data.

    state: beginning, running, lost (no sign of life for long, or its process is gone), stopped, failed or finished. what: words
    of its recipe. rows: of metrics.csv, what is not finite left out. advice: what to do, or "".
    The rest is what `ProgressFile` holds, as far as it was written.
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
    elif progress is not None and progress.state in (
        "running",
        "finished",
    ):  # a finished training still writes its network
        gone = not process_may_be_alive({"process": progress.process, "machine": progress.machine})
        state["state"] = "lost" if gone or progress.age() > SILENT else "running"
        why = "its process is gone" if gone else f"no sign of life for {span(progress.age())}"
        state["advice"] = f"{why}; {_resume(run)}" if state["state"] == "lost" else ""
    elif progress is not None:
        state["advice"] = _resume(run)
    return state


def _runs(place: Path) -> Iterator[Path]:
    """Folders in which a run began, `place` itself or below it; what lies in a run is not looked at."""
    if RunFolder(place).started():
        yield place
        return
    for here, below, files in os.walk(place):
        depth = len(Path(here).relative_to(place).parts)
        if "recipe.yaml" in files and "cache.json" not in files:
            yield Path(here)
        below[:] = [] if "recipe.yaml" in files or depth >= _DEEPEST else sorted(below)


def _what(recipe: Mapping[str, Any]) -> str:
    """The recipe in a few words."""
    data = recipe.get("data")
    if "student" not in recipe:
        return f"{recipe.get('model')} on {data}"
    teacher = recipe.get("teachers") or recipe.get("teacher") or recipe.get("teacher_cache")
    each = teacher if isinstance(teacher, list | tuple) else [teacher] if teacher else []
    names = [str(one.get("teacher") if isinstance(one, Mapping) else one) for one in each]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{recipe['student']} by {recipe.get('method')}{f' from {text}' if text else ''} on {data}"


def _resume(run: RunFolder) -> str:
    if any(run.checkpoints.glob("step-*")):
        return "go on with the same command and --resume"
    return "no checkpoint was written: start it again with --resume"


def run_progressed(state: State) -> tuple[Any, ...]:
    """What differs from look to look where somebody works."""
    return state["state"], state.get("step"), len(state["rows"])


def all_done(place: Path, states: Sequence[State], before: Sequence[State]) -> bool:
    """Whether nothing more is to come: all ended, or nobody is at work and nothing has moved since the look before."""
    if all(state["state"] in ("finished", "failed") for state in states):
        return True
    still = [(s["run"], *run_progressed(s)) for s in states] == [(s["run"], *run_progressed(s)) for s in before]
    return still and not _worked_on(place) and not any(map(_at_work, states))


def _at_work(state: State) -> bool:
    """Whether a process may be at work on a run, which notes itself in the folder it holds."""
    if state["state"] in ("running", "finished", "failed", "waiting"):
        return state["state"] == "running"
    owner, folder = owner_of(Path(state["run"])), Path(state["run"])
    if os.name == "posix" and owner.get("machine") == platform.node():
        return process_may_be_alive(owner)
    # of another machine, or on a disk without locks: every write replaces a file, which changes the folder
    try:
        return (bool(owner) or state["state"] == "beginning") and time.time() - folder.stat().st_mtime < SILENT
    except OSError:
        return False


def _worked_on(place: Path) -> bool:
    """Whether a process that gave orders to a comparison's workers may live."""
    for order in (place / "plan").glob(".order-*.json"):
        machine, _, process = order.stem.removeprefix(".order-").rpartition("-")
        if process.isdecimal() and process_may_be_alive({"process": int(process), "machine": machine}):
            return True
    return False


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if not seconds < LONGEST:
        return "over 30 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
