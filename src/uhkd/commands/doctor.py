"""`uhkd doctor`: what this machine offers, the usual faults of a set-up, and what to do about each."""

import traceback
from collections.abc import Callable

from rich import box
from rich.table import Table
from rich.text import Text

from uhkd.arguments import DoctorArguments
from uhkd.commands.diagnosing import MACHINE, PLACES, SOFTWARE, Diagnosis, Finding
from uhkd.telling import put, say_more, show
from uhkd.text import count, shown

_QUESTIONS: dict[str, Callable[[], Finding]] = SOFTWARE | MACHINE | PLACES
_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(arguments: DoctorArguments | None = None) -> Diagnosis:
    """Look at software, machine and places; prints a table and what to do, and returns the findings (exit code 1 with a fault).

    Nothing is fetched, and nothing is left behind.
    """
    diagnosis = Diagnosis(tuple(_ask(topic, question) for topic, question in _QUESTIONS.items()))
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in diagnosis.findings:
        state = Text(finding.state, _STYLES[finding.state])
        table.add_row(state, finding.topic, shown(finding.found))
    show(table)
    wrong = [finding for finding in diagnosis.findings if finding.state != "ok"]
    for finding in wrong:
        put(f"{finding.state}: {finding.topic}: {finding.advice}")
    faults = sum(finding.state == "fault" for finding in wrong)
    put(f"{count(faults, 'fault')}, {count(len(wrong) - faults, 'warning')}")
    return diagnosis


def _ask(topic: str, question: Callable[[], Finding]) -> Finding:
    """The finding; a report must not stop at its first trouble."""
    try:
        return question()
    except Exception as error:
        say_more(traceback.format_exc())
        why = str(error).splitlines()[0] if str(error) else "no reason given"
        advice = "this could not be found out, which is a fault by itself; uhkd doctor --verbose shows more"
        return Finding(topic, f"cannot tell: {type(error).__name__}: {why}", "warning", advice)
