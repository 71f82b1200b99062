"""`watch`: display the state of trainings, read from their run folders."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uhkd.console import escape, print_table
from uhkd.errors import UhkdError
from uhkd.recipe import build
from uhkd.recipe.arguments import WatchArguments
from uhkd.recipe.near_paths import check_folder
from uhkd.reporting.health import gradient_shares
from uhkd.runs.status import LONGEST, STATES, State, all_done, collect_status, run_progressed, span

_BARS = "▁▂▃▄▅▆▇█"
_WIDE, _NARROW = 30, 8  # characters of a sparkline: for one run, and for several
_COLOURS = {"running": "green", "finished": "cyan", "lost": "yellow", "stopped": "yellow", "failed": "red"}


def watch(arguments: WatchArguments | None = None, **options: Any) -> list[State]:
    """Display the state of the trainings in a folder until all have ended, and return their last states.

    A run has ended if it has finished or failed, or if no process works on it. One row per run; for a single run also its loss
    terms. On a terminal the table is updated in place; otherwise a line is printed whenever a run has progressed. Nothing is
    locked or written.

    Returns:
        One mapping per run, sorted by path: see `uhkd.runs.status.run_status`.

    Raises:
        UhkdError: for a folder without runs.
    """
    arguments = arguments or build(WatchArguments, options)
    folder = Path(arguments.run)
    console = Console(markup=False, emoji=False, highlight=False)
    check_folder(folder)
    states = collect_status(folder)
    if not states:
        raise UhkdError(
            f"{folder} is no run folder and contains none: expected a folder that finetune, distill or compare wrote, or one "
            "that contains such folders"
        )
    if arguments.once:
        print_table(*table(states))
        return states
    last_shown: dict[str, tuple[Any, ...]] = {}
    before: list[State] = []
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            if live is not None:
                live.update(Group(*table(states)), refresh=True)
            for state in states if live is None else ():
                if last_shown.get(state["run"]) != run_progressed(state):
                    last_shown[state["run"]] = run_progressed(state)
                    print(line(state), flush=True)
            if all_done(folder, states, before):
                return states
            time.sleep(arguments.every)
            before, states = states, collect_status(folder, states)


def table(states: Sequence[State]) -> tuple[Table, Text]:
    """Return a table of the runs, running ones first (a single run has a row per loss term), and notes to print below it.

    The notes are errors, what to do, and health messages.
    """
    several = len(states) > 1
    rows = Table(box=box.SIMPLE, header_style="dim", pad_edge=False)
    for name in ("run", "state", "epoch", "loss", "", *(("val accuracy", "ETA") if several else ())):
        rows.add_column(name, no_wrap=name != "run", overflow="fold", min_width=8 if name == "run" else None)
    root = os.path.commonpath([state["run"] for state in states]) if several else Path(states[0]["run"]).parent
    notes = []
    for state in sorted(states, key=lambda state: STATES.index(state["state"])):
        name, (status, error) = os.path.relpath(state["run"], root), _status(state)
        notes += [f"{name}: {note}" for note in (error, *state.get("health", [])) if note]
        accuracy, terms, recent = _accuracy(state), state.get("terms", {}), state.get("recent", {})
        done = ""
        if "step" in state:
            done = f"{state['epoch']}/{state['epochs']} {min(1, state['step'] / state['total']):.0%}"
        loss = _number(terms["loss"]) if "loss" in terms else ""
        row = [Text(escape(name)), Text(escape(status), _COLOURS.get(state["state"], "")), done, loss]
        if several:
            score = f"{accuracy[-1]:.2%} {sparkline(accuracy, _NARROW)}" if accuracy else ""
            rows.add_row(*row, sparkline(recent.get("loss", []), _NARROW), score, _eta(state))
            continue
        rows.add_row(*row, sparkline(recent.get("loss", []), _WIDE))
        parts = gradient_shares(state["rows"][-1]) if state["rows"] else {}
        for term in (term for term in terms if term != "loss"):
            share = f"{parts[term]:.0%} of gradient" if term in parts else ""
            curve = sparkline(recent.get(term, []), _WIDE)
            rows.add_row(Text(f"  {escape(term)}"), share, "", _number(terms[term]), curve)
        if accuracy:
            best = f"best {max(accuracy):.2%}"
            rows.add_row("  val accuracy", best, "", f"{accuracy[-1]:.2%}", sparkline(accuracy, _WIDE))
        notes = [state["what"], "  ".join(_progress(state)), *notes]
    if several:
        counts = {kind: sum(state["state"] == kind for state in states) for kind in STATES}
        notes.append(", ".join(f"{number} {kind}" for kind, number in counts.items() if number))
    return rows, Text("\n".join(escape(note) for note in notes if note))


def line(state: State) -> str:
    """Return the state of a run as one line."""
    parts = [f"{state['run']}: {': '.join(filter(None, _status(state)))}", *_progress(state)]
    parts += [f"{name} {_number(value)}" for name, value in state.get("terms", {}).items()]
    if accuracy := _accuracy(state):
        parts.append(f"val accuracy {accuracy[-1]:.2%}")
    if state.get("health"):
        parts.append(f"health: {'; '.join(state['health'])}")
    return escape("  ".join(parts))


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last `width` finite values as bars scaled to their range; constant values are drawn at half height."""
    recent = [value / 8 for value in values if math.isfinite(value)][-width:]  # prevents overflow of the range
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    if high <= low:
        return _BARS[3] * len(recent)
    return "".join(_BARS[min(7, int(8 * ((value - low) / (high - low))))] for value in recent)


def _progress(state: State) -> list[str]:
    """Return step, learning rate, speed and remaining time, as far as they are recorded."""
    parts = []
    if "step" in state:
        parts.append(f"step {state['step']}/{state['total']}, epoch {state['epoch']}/{state['epochs']}")
    if state.get("lr") is not None:
        parts.append(f"lr {state['lr']:.2g}")
    if state.get("images_per_second") is not None:
        wait = state.get("data_wait")
        waiting = f", waiting for data {wait:.0%}" if wait is not None and 0 <= wait <= 1 else ""
        parts.append(f"{_number(state['images_per_second'])} img/s{waiting}")
    return [*parts, f"ETA {eta}"] if (eta := _eta(state)) else parts


def _eta(state: State) -> str:
    if state["state"] != "running" or state.get("eta_seconds") is None:
        return ""
    return span(max(0.0, state["eta_seconds"] - state["age"]))


def _accuracy(state: State) -> list[float]:
    return [row["val_accuracy"] for row in state["rows"] if 0 <= row.get("val_accuracy", -1) <= 1]


def _number(value: float) -> str:
    """Return a number with four digits, integers in full up to `LONGEST`."""
    return f"{value:.4g}" if abs(value) < 1e3 or abs(value) >= LONGEST else f"{value:.0f}"


def _status(state: State) -> tuple[str, str]:
    """Return the state with the current activity; and the error with what to do."""
    status = state["state"]
    if status == "running" and state.get("doing") != "training":
        status += ", writing its result" if state.get("doing") == "nothing" else f", {state['doing']}"
    error = state.get("why", "") if state["state"] in ("stopped", "failed") else ""
    return status, "; ".join(filter(None, [error, state["advice"]]))
