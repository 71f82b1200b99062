"""`watch`: where trainings stand, from another terminal, read from their folders alone."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from uhkd.arguments import WatchArguments
from uhkd.health import shares
from uhkd.recipe import build
from uhkd.runs import Pulse, RunFolder, may_live, read_mapping
from uhkd.runs.lock import OWNER
from uhkd.text import shown

SILENT = (
    600.0  # seconds without a sign of life from which a training counts as gone, if its process cannot be looked for
)
_DEEPEST = 4  # folders between a folder of runs and a run
_BARS = "▁▂▃▄▅▆▇█"
_AGE = 1e9  # seconds, and the number from which digits are left out: longer ones are mistakes
_WIDE, _NARROW = 30, 12  # letters of a curve: of one run, and in a table of many

State = dict[str, Any]


def watch(arguments: WatchArguments | None = None, **words: Any) -> list[State]:
    """Show where the trainings in a folder stand until they are over, and return their last states.

    One run: its progress, loss terms, gradient shares, accuracy and health. A folder of runs, such as a comparison: a line each, with
    those that a comparison has yet to begin. Over are runs that are finished or have failed, and those on which nobody works.
    On a terminal the picture is renewed in place; elsewhere a line comes whenever a run has moved. Nothing is locked or written.

    Returns:
        One mapping a run, by path: see `state_of`.

    Raises:
        ValueError: for a folder without runs.
    """
    asked = arguments or build(WatchArguments, words)
    place = Path(asked.run)
    console = Console(markup=False, emoji=False, highlight=False)
    states = look(place)
    if not states:
        raise ValueError(
            f"{place} is no run folder and holds none: expected one that finetune, distill or compare writes to, or a folder "
            "of such"
        )
    if asked.once:
        if console.is_terminal:
            console.print(_picture(states))
        else:
            print("\n".join(map(_block, states)), flush=True)
        return states
    if console.is_terminal:
        with Live(_picture(states), console=console, auto_refresh=False, screen=False) as live:
            before: list[State] = []
            while not _over(place, states, before):
                time.sleep(asked.every)
                before, states = states, look(place, states)
                live.update(_picture(states), refresh=True)
        return states
    told: dict[str, tuple[Any, ...]] = {}
    before = []
    while True:
        for state in states:
            if told.get(state["run"]) != _moved(state):
                told[state["run"]] = _moved(state)
                print(_line(state), flush=True)
        if _over(place, states, before):
            return states
        time.sleep(asked.every)
        before, states = states, look(place, states)


def look(place: Path, before: Sequence[State] = ()) -> list[State]:
    """The state of the run in `place`, or of all runs below it, by path, and behind them what a comparison has yet to begin.

    Those that were finished `before` are not read again.
    """
    finished = {state["run"]: state for state in before if state["state"] == "finished"}
    states = [finished.get(str(folder)) or state_of(folder) for folder in _runs(place)]
    if not _compared(place):
        return states
    for state in states:
        _tell_failure(place, state)
    begun = {state["run"] for state in states}
    return [*states, *(state for state in _planned(place) if state["run"] not in begun)]


def _compared(place: Path) -> bool:
    """Whether a folder is a comparison's; what lies in it is told by `uhkd.commands.comparing.queue.Board`."""
    return (place / "plan").is_dir() and not RunFolder(place).started()


def _planned(place: Path) -> Iterator[State]:
    """Every training that a comparison has planned, as one not begun: waiting, or failed."""
    for file in sorted((place / "plan").rglob("[!.]*.json")):
        try:
            words = read_mapping(file).get("words")
        except (OSError, ValueError):
            continue
        if isinstance(words, dict) and ("student" in words or "model" in words):  # what has neither is a cache
            run = place / file.relative_to(place / "plan").with_suffix("")
            state: State = {"run": str(run), "state": "waiting", "what": _what(words), "rows": [], "advice": ""}
            _tell_failure(place, state)
            yield state


def _tell_failure(place: Path, state: State) -> None:
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


def state_of(folder: Path) -> State:
    """Where one run stands, as plain data.

    state: beginning, running, lost (no sign of life for long, or its process is gone), stopped, failed or finished. what: words
    of its recipe. rows: of metrics.csv, what is not finite left out. advice: what to do, or "". The rest is what `Pulse` holds, as far as it was written.
    """
    run, pulse = RunFolder(folder), Pulse.read(folder)
    state: State = {"run": str(folder), "state": "beginning", "what": "", "rows": [], "advice": ""}
    try:
        state["what"] = _what(run.read_recipe())
        state["rows"] = [{k: v for k, v in row.items() if math.isfinite(v)} for row in run.read_metrics()]
    except (OSError, ValueError) as error:
        state["advice"] = str(error)
    if pulse is not None:
        state |= pulse.model_dump() | {"age": pulse.age()}
    if run.result.is_file():
        state["state"] = "finished"
    elif pulse is not None and pulse.state in ("running", "finished"):  # a finished training still writes its network
        gone = not may_live({"process": pulse.process, "machine": pulse.machine})
        state["state"] = "lost" if gone or pulse.age() > SILENT else "running"
        why = "its process is gone" if gone else f"no sign of life for {_span(pulse.age())}"
        state["advice"] = f"{why}; {_resume(run)}" if state["state"] == "lost" else ""
    elif pulse is not None:
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
    told = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{recipe['student']} by {recipe.get('method')}{f' from {told}' if told else ''} on {data}"


def _resume(run: RunFolder) -> str:
    if any(run.checkpoints.glob("step-*")):
        return "go on with the same command and --resume"
    return "no checkpoint was written: start it again with --resume"


def _moved(state: State) -> tuple[Any, ...]:
    """What differs from look to look where somebody works."""
    return state["state"], state.get("step"), len(state["rows"])


def _over(place: Path, states: Sequence[State], before: Sequence[State]) -> bool:
    """Whether nothing more is to come: all ended, or nobody is at work and nothing has moved since the look before."""
    if all(state["state"] in ("finished", "failed") for state in states):
        return True
    still = [(s["run"], *_moved(s)) for s in states] == [(s["run"], *_moved(s)) for s in before]
    return still and not _worked_on(place) and not any(map(_at_work, states))


def _at_work(state: State) -> bool:
    """Whether a process may be at work on a run, which notes itself in the folder it holds."""
    if state["state"] in ("finished", "failed", "waiting"):
        return False
    folder = Path(state["run"])
    try:
        owner = read_mapping(folder / OWNER)
    except (OSError, ValueError):
        owner = {}
    if state["state"] == "running" or (_here(owner) and may_live(owner)):
        return True
    # by a process of another machine, or on a disk without locks: what was written lately says so
    return not _here(owner) and (bool(owner) or state["state"] == "beginning") and _lately(folder)


def _here(noted: Mapping[str, Any]) -> bool:
    """Whether a process can be looked for by its number."""
    return os.name == "posix" and noted.get("machine") == platform.node()


def _lately(folder: Path) -> bool:
    try:
        return time.time() - max(file.stat().st_mtime for file in folder.iterdir()) < SILENT
    except (OSError, ValueError):
        return False


def _worked_on(place: Path) -> bool:
    """Whether a process that gave orders to a comparison's workers may live."""
    for order in (place / "plan").glob(".order-*.json"):
        machine, _, process = order.stem.removeprefix(".order-").rpartition("-")
        if process.isdecimal() and may_live({"process": int(process), "machine": machine}):
            return True
    return False


def _span(seconds: float) -> str:
    """A length of time in its two largest units."""
    if not seconds < _AGE:
        return "over 30 years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` finite values as bars between their smallest and largest; a level line lies in the middle."""
    recent = [value / 8 for value in values if math.isfinite(value)][-width:]  # so that no span is infinite
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    if high <= low:
        return _BARS[3] * len(recent)
    return "".join(_BARS[min(7, int(8 * ((value - low) / (high - low))))] for value in recent)


def _accuracy(state: State) -> list[float]:
    return [row["val_accuracy"] for row in state["rows"] if 0 <= row.get("val_accuracy", -1) <= 1]


def _number(value: float, form: str) -> str:
    """In its form, or short where that would fill lines with digits."""
    return format(value, form) if abs(value) < _AGE else f"{value:.3g}"


def _status(state: State) -> str:
    """The state in words, and why."""
    said = state["state"]
    if said == "running" and state.get("doing") != "training":
        said = (
            "running, its result is being written" if state.get("doing") == "nothing" else f"running, {state['doing']}"
        )
    why = f": {state['why']}" if state.get("why") and said in ("stopped", "failed") else ""
    return f"{said}{why}" + (f" ({state['advice']})" if state["advice"] else "")


def _speed(state: State) -> list[str]:
    found = [f"lr {state['lr']:.2g}"] if state.get("lr") is not None else []
    if state.get("images_per_second") is not None:
        wait = state.get("data_wait")
        waiting = f", waiting for data {wait:.0%}" if wait is not None and 0 <= wait <= 1 else ""
        found.append(f"{_number(state['images_per_second'], '.0f')} img/s{waiting}")
    if state["state"] == "running" and state.get("eta_seconds") is not None:
        found.append(f"ETA {_span(max(0.0, state['eta_seconds'] - state['age']))}")
    return found


def _where(state: State) -> str:
    return f"step {state['step']}/{state['total']}, epoch {state['epoch']}/{state['epochs']}"


def _line(state: State) -> str:
    """One run in one plain line."""
    parts = [f"{shown(state['run'])}: {shown(_status(state))}"]
    if "step" in state:
        parts.append(_where(state))
        parts += [f"{shown(name)} {_number(value, '.3f')}" for name, value in state["terms"].items()]
    if accuracy := _accuracy(state):
        parts.append(f"val accuracy {accuracy[-1]:.2%}")
    parts += _speed(state)
    if state.get("health"):
        parts.append(f"health: {shown('; '.join(state['health']))}")
    return "  ".join(parts)


def _block(state: State) -> str:
    """One run in a few plain lines, for pipes."""
    lines = [f"{shown(state['run'])}: {shown(_status(state))}", f"  {shown(state['what'])}"]
    if "step" in state:
        lines.append(f"  {_where(state)}  {'  '.join(_speed(state))}")
        lines += [f"  {shown(name)} {value:.4g}" for name, value in state["terms"].items()]
    if accuracy := _accuracy(state):
        lines.append(f"  val accuracy {accuracy[-1]:.2%}, best {max(accuracy):.2%}")
    lines += [f"  health: {shown(sentence)}" for sentence in state.get("health", [])]
    return "\n".join(lines)


def _picture(states: Sequence[State]) -> RenderableType:
    return _panel(states[0]) if len(states) == 1 else _table(states)


_COLOURS = {"running": "green", "finished": "cyan", "lost": "yellow", "stopped": "yellow", "failed": "red"}


def _coloured(state: State) -> Text:
    return Text(shown(_status(state)), _COLOURS.get(state["state"], ""))


def _panel(state: State) -> RenderableType:
    """One run: bar, terms with curves and gradient shares, accuracy, health."""
    parts: list[RenderableType] = [Text(shown(state["what"]), "dim"), _coloured(state)]
    if "step" in state:
        bar = Table.grid(padding=(0, 1))
        done = min(state["step"], state["total"]) / state["total"]
        share = Text(f"{done:.0%}")
        bar.add_row(ProgressBar(1.0, done, width=_WIDE), share, Text(_where(state)))
        parts += [bar, Text("  ".join(_speed(state)))]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "now", "curve", "gradient"):
        table.add_column(name, no_wrap=True, justify="right" if name == "now" else "left")
    asked = shares(state["rows"][-1]) if state["rows"] else {}
    for name, value in state.get("terms", {}).items():
        part = Text(f"{'█' * round(10 * asked[name]):<10} {asked[name]:.0%}" if name in asked else "")
        table.add_row(Text(shown(name)), f"{value:.4g}", Text(sparkline(state["recent"].get(name, []), _WIDE)), part)
    if accuracy := _accuracy(state):
        best = Text(f"best {max(accuracy):.2%}", "dim")
        table.add_row("val accuracy", f"{accuracy[-1]:.2%}", Text(sparkline(accuracy, _WIDE)), best)
    if table.row_count:
        parts.append(table)
    parts += [Text(f"• {shown(sentence)}", "yellow") for sentence in state.get("health", [])]
    return Panel(Group(*parts), title=Text(shown(state["run"])), title_align="left", border_style="dim")


def _table(states: Sequence[State]) -> RenderableType:
    """Many runs, a line each, those at work first."""
    table = Table(header_style="dim")
    for name in ("run", "state", "epoch", "loss", "", "val accuracy", "ETA", "health"):
        table.add_column(name, overflow="fold" if name in ("run", "health") else "ellipsis")
    root = os.path.commonpath([state["run"] for state in states])
    order = ("running", "lost", "failed", "stopped", "beginning", "waiting", "finished")
    for state in sorted(states, key=lambda one: order.index(one["state"])):
        accuracy = _accuracy(state)
        left = state.get("eta_seconds") if state["state"] == "running" else None
        table.add_row(
            Text(shown(os.path.relpath(state["run"], root))),
            _coloured(state),
            f"{state['epoch']}/{state['epochs']}" if "epoch" in state else "",
            _number(state["terms"]["loss"], ".3f") if "loss" in state.get("terms", {}) else "",
            Text(sparkline(state.get("recent", {}).get("loss", []), _NARROW)),
            Text(f"{accuracy[-1]:.2%} {sparkline(accuracy, _NARROW)}" if accuracy else ""),
            _span(left) if left is not None else "",
            Text(shown("; ".join(state.get("health", [])))),
        )
    count = {kind: sum(state["state"] == kind for state in states) for kind in order}
    told = ", ".join(f"{number} {kind}" for kind, number in count.items() if number)
    return Group(table, Text(told, "dim"))
