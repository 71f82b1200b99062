"""`watch`: where trainings stand, from another terminal, read from their folders alone."""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from uhkd.arguments import WatchArguments
from uhkd.commands.standing import LONGEST, State, look, moved, over, span
from uhkd.health import shares
from uhkd.recipe import build
from uhkd.text import shown

_BARS = "▁▂▃▄▅▆▇█"
_WIDE, _NARROW = 30, 12  # letters of a curve: of one run, and in a table of many


def watch(arguments: WatchArguments | None = None, **words: Any) -> list[State]:
    """Show where the trainings in a folder stand until they are over, and return their last states.

    One run: its progress, loss terms, gradient shares, accuracy and health. A folder of runs, such as a comparison: a line
    each, those that it has yet to begin among them. Over are runs that are finished or have failed, and those on which nobody
    works.
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
            while not over(place, states, before):
                time.sleep(asked.every)
                before, states = states, look(place, states)
                live.update(_picture(states), refresh=True)
        return states
    told: dict[str, tuple[Any, ...]] = {}
    before = []
    while True:
        for state in states:
            if told.get(state["run"]) != moved(state):
                told[state["run"]] = moved(state)
                print(_line(state), flush=True)
        if over(place, states, before):
            return states
        time.sleep(asked.every)
        before, states = states, look(place, states)


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
    return format(value, form) if abs(value) < LONGEST else f"{value:.3g}"


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
        found.append(f"ETA {span(max(0.0, state['eta_seconds'] - state['age']))}")
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
            span(left) if left is not None else "",
            Text(shown("; ".join(state.get("health", [])))),
        )
    count = {kind: sum(state["state"] == kind for state in states) for kind in order}
    told = ", ".join(f"{number} {kind}" for kind, number in count.items() if number)
    return Group(table, Text(told, "dim"))
