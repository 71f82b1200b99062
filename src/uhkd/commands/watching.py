"""`watch`: where trainings stand, from another terminal, read from their folders alone."""

import os
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
from uhkd.runs import Pulse, RunFolder, may_live
from uhkd.text import shown

SILENT = (
    600.0  # seconds without a sign of life from which a training counts as gone, if its process cannot be looked for
)
_DEEPEST = 4  # folders between a folder of runs and a run
_BARS = "▁▂▃▄▅▆▇█"
_WIDE, _NARROW = 30, 12  # letters of a curve: of one run, and in a table of many

State = dict[str, Any]


def watch(arguments: WatchArguments | None = None, **words: Any) -> list[State]:
    """Show where the trainings in a folder stand until they are finished or have failed, and return their last states.

    One run: its progress, loss terms, gradient shares, accuracy and health. A folder of runs, such as a comparison: a line each.
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
            while not _over(states):
                time.sleep(asked.every)
                states = look(place, states)
                live.update(_picture(states), refresh=True)
        return states
    told: dict[str, tuple[Any, ...]] = {}
    while True:
        for state in states:
            moved = state["state"], state.get("step"), len(state["rows"])
            if told.get(state["run"]) != moved:
                told[state["run"]] = moved
                print(_line(state), flush=True)
        if _over(states):
            return states
        time.sleep(asked.every)
        states = look(place, states)


def look(place: Path, before: Sequence[State] = ()) -> list[State]:
    """The state of the run in `place`, or of all runs below it, by path; those that were finished `before` are not read again."""
    finished = {state["run"]: state for state in before if state["state"] == "finished"}
    return [finished.get(str(folder)) or state_of(folder) for folder in _runs(place)]


def state_of(folder: Path) -> State:
    """Where one run stands, as plain data.

    state: beginning, running, lost (no sign of life for long, or its process is gone), stopped, failed or finished. what: words
    of its recipe. rows: of metrics.csv. advice: what to do, or "". The rest is what `Pulse` holds, as far as it was written.
    """
    run, pulse = RunFolder(folder), Pulse.read(folder)
    state: State = {"run": str(folder), "state": "beginning", "what": "", "rows": [], "advice": ""}
    try:
        state["what"] = _what(run.read_recipe())
        state["rows"] = run.read_metrics()
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
    teacher = recipe.get("teacher") or recipe.get("teacher_cache")
    return f"{recipe['student']} by {recipe.get('method')}{f' from {teacher}' if teacher else ''} on {data}"


def _resume(run: RunFolder) -> str:
    if any(run.checkpoints.glob("step-*")):
        return "go on with the same command and --resume"
    return "no checkpoint was written: start it again with --resume"


def _over(states: Sequence[State]) -> bool:
    return all(state["state"] in ("finished", "failed") for state in states)


def _span(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars between their smallest and largest; a level line lies in the middle."""
    recent = list(values)[-width:]
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    if high <= low:
        return _BARS[3] * len(recent)
    return "".join(_BARS[min(7, int(8 * (value - low) / (high - low)))] for value in recent)


def _accuracy(state: State) -> list[float]:
    return [row["val_accuracy"] for row in state["rows"] if "val_accuracy" in row]


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
        found.append(f"{state['images_per_second']:.0f} img/s, waiting for data {state['data_wait']:.0%}")
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
        parts += [f"{shown(name)} {value:.3f}" for name, value in state["terms"].items()]
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
        share = Text(f"{state['step'] / state['total']:.0%}")
        bar.add_row(ProgressBar(state["total"], state["step"], width=_WIDE), share, Text(_where(state)))
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
    order = ("running", "lost", "failed", "stopped", "beginning", "finished")
    for state in sorted(states, key=lambda one: order.index(one["state"])):
        accuracy = _accuracy(state)
        left = state.get("eta_seconds") if state["state"] == "running" else None
        table.add_row(
            Text(shown(os.path.relpath(state["run"], root))),
            _coloured(state),
            f"{state['epoch']}/{state['epochs']}" if "epoch" in state else "",
            f"{state['terms']['loss']:.3f}" if "loss" in state.get("terms", {}) else "",
            Text(sparkline(state.get("recent", {}).get("loss", []), _NARROW)),
            Text(f"{accuracy[-1]:.2%} {sparkline(accuracy, _NARROW)}" if accuracy else ""),
            _span(left) if left is not None else "",
            Text(shown("; ".join(state.get("health", [])))),
        )
    count = {kind: sum(state["state"] == kind for state in states) for kind in order}
    told = ", ".join(f"{number} {kind}" for kind, number in count.items() if number)
    return Group(table, Text(told, "dim"))
