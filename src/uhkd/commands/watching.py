"""`watch`: the state of trainings, from another terminal, read from their run folders alone."""

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
from uhkd.reporting.health import gradient_shares
from uhkd.runs.status import LONGEST, STATES, State, all_done, collect_status, run_progressed, span

_BARS = "▁▂▃▄▅▆▇█"
_WIDE, _NARROW = 30, 8  # characters of a curve: of one run, and of many
_COLOURS = {"running": "green", "finished": "cyan", "lost": "yellow", "stopped": "yellow", "failed": "red"}


def watch(arguments: WatchArguments | None = None, **options: Any) -> list[State]:
    """Show the state of the trainings in a folder until they are over, and return their last states.

    A row each; of one run also its loss terms. Over are runs that are finished or have failed, and those on which no process
    works. On a terminal the table is renewed in place; elsewhere a line comes whenever a run has moved. Nothing is locked or
    written.

    Returns:
        One mapping a run, by path: see `state_of`.

    Raises:
        UhkdError: for a folder without runs.
    """
    arguments = arguments or build(WatchArguments, options)
    place = Path(arguments.run)
    console = Console(markup=False, emoji=False, highlight=False)
    states = collect_status(place)
    if not states:
        raise UhkdError(
            f"{place} is no run folder and holds none: expected one that finetune, distill or compare writes to, or a folder "
            "of such"
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
            if all_done(place, states, before):
                return states
            time.sleep(arguments.every)
            before, states = states, collect_status(place, states)


def table(states: Sequence[State]) -> tuple[Table, Text]:
    """A row a run, those at work first; of a single run a row for each loss term too. And below it: why, what to do, health."""
    several = len(states) > 1
    drawn = Table(box=box.SIMPLE, header_style="dim", pad_edge=False)
    for name in ("run", "state", "epoch", "loss", "", *(("val accuracy", "ETA") if several else ())):
        drawn.add_column(name, no_wrap=name != "run", overflow="fold", min_width=8 if name == "run" else None)
    root = os.path.commonpath([state["run"] for state in states]) if several else Path(states[0]["run"]).parent
    notes = []
    for state in sorted(states, key=lambda one: STATES.index(one["state"])):
        name, (status, why) = os.path.relpath(state["run"], root), _status(state)
        notes += [f"{name}: {note}" for note in (why, *state.get("health", [])) if note]
        accuracy, terms, recent = _accuracy(state), state.get("terms", {}), state.get("recent", {})
        done = (
            f"{state['epoch']}/{state['epochs']} {min(1, state['step'] / state['total']):.0%}"
            if "step" in state
            else ""
        )
        loss = _number(terms["loss"]) if "loss" in terms else ""
        row = [Text(escape(name)), Text(escape(status), _COLOURS.get(state["state"], "")), done, loss]
        if several:
            score = f"{accuracy[-1]:.2%} {sparkline(accuracy, _NARROW)}" if accuracy else ""
            drawn.add_row(*row, sparkline(recent.get("loss", []), _NARROW), score, _eta(state))
            continue
        drawn.add_row(*row, sparkline(recent.get("loss", []), _WIDE))
        parts = gradient_shares(state["rows"][-1]) if state["rows"] else {}
        for term in (term for term in terms if term != "loss"):
            share = f"{parts[term]:.0%} of gradient" if term in parts else ""
            drawn.add_row(
                Text(f"  {escape(term)}"),
                share,
                "",
                _number(terms[term]),
                sparkline(recent.get(term, []), _WIDE),
            )
        if accuracy:
            best = f"best {max(accuracy):.2%}"
            drawn.add_row("  val accuracy", best, "", f"{accuracy[-1]:.2%}", sparkline(accuracy, _WIDE))
        notes = [state["what"], "  ".join(_progress(state)), *notes]
    if several:
        counts = {kind: sum(state["state"] == kind for state in states) for kind in STATES}
        notes.append(", ".join(f"{number} {kind}" for kind, number in counts.items() if number))
    return drawn, Text("\n".join(escape(note) for note in notes if note))


def line(state: State) -> str:
    """One run in one plain line."""
    parts = [f"{state['run']}: {': '.join(filter(None, _status(state)))}", *_progress(state)]
    parts += [f"{name} {_number(value)}" for name, value in state.get("terms", {}).items()]
    if accuracy := _accuracy(state):
        parts.append(f"val accuracy {accuracy[-1]:.2%}")
    if state.get("health"):
        parts.append(f"health: {'; '.join(state['health'])}")
    return escape("  ".join(parts))


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` finite values as bars between their smallest and largest; a level line lies in the middle."""
    recent = [value / 8 for value in values if math.isfinite(value)][-width:]  # so that no span is infinite
    low, high = min(recent, default=0.0), max(recent, default=0.0)
    if high <= low:
        return _BARS[3] * len(recent)
    return "".join(_BARS[min(7, int(8 * ((value - low) / (high - low))))] for value in recent)


def _progress(state: State) -> list[str]:
    """Step, learning rate, speed and time left, as far as they are known."""
    found = (
        [f"step {state['step']}/{state['total']}, epoch {state['epoch']}/{state['epochs']}"] if "step" in state else []
    )
    if state.get("lr") is not None:
        found.append(f"lr {state['lr']:.2g}")
    if state.get("images_per_second") is not None:
        wait = state.get("data_wait")
        waiting = f", waiting for data {wait:.0%}" if wait is not None and 0 <= wait <= 1 else ""
        found.append(f"{_number(state['images_per_second'])} img/s{waiting}")
    return [*found, f"ETA {_eta(state)}"] if _eta(state) else found


def _eta(state: State) -> str:
    if state["state"] != "running" or state.get("eta_seconds") is None:
        return ""
    return span(max(0.0, state["eta_seconds"] - state["age"]))


def _accuracy(state: State) -> list[float]:
    return [row["val_accuracy"] for row in state["rows"] if 0 <= row.get("val_accuracy", -1) <= 1]


def _number(value: float) -> str:
    """Four digits, or more where they are whole; short where that would fill lines with them."""
    return f"{value:.4g}" if abs(value) < 1e3 or abs(value) >= LONGEST else f"{value:.0f}"


def _status(state: State) -> tuple[str, str]:
    """The state in words; and why, and what to do."""
    status = state["state"]
    if status == "running" and state.get("doing") != "training":
        status += ", writing its result" if state.get("doing") == "nothing" else f", {state['doing']}"
    why = state.get("why", "") if state["state"] in ("stopped", "failed") else ""
    return status, "; ".join(filter(None, [why, state["advice"]]))
