"""Workers at work on a comparison, and what a person sees meanwhile."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from subprocess import Popen

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from uhkd.commands.comparing.plan import Plan, Task
from uhkd.commands.comparing.queue import TaskStore, workers_of
from uhkd.commands.comparing.serving import is_complete
from uhkd.console import escape, is_interactive, log_info
from uhkd.errors import UhkdError

_LOOK = 0.5  # seconds between two looks at the folder
_ENDS = {-9: " (killed: often for want of memory; fewer --jobs, or a smaller batch with --overrides batch_size=N)"}


def states(plan: Plan, store: TaskStore) -> Counter[str]:
    """How many trainings are waiting, begun, done, failed."""
    return Counter(store.state(task) for task in plan.tasks)


def run(plan: Plan, store: TaskStore, jobs: int) -> None:
    """Workers at work, and the table as it fills (a line a training where there is no terminal), until nothing is left to do.

    Raises:
        UhkdError: when the workers ended before the work did.
    """
    if _finished(states(plan, store)):
        return
    console = Console(stderr=True, markup=False, emoji=False)
    live = Live(console=console, auto_refresh=False, transient=True) if is_interactive() else None
    reported: set[str] = {task.name for task in plan.tasks if store.state(task) in ("done", "failed")}
    caches = {task.name for task in plan.caches if store.state(task) in ("done", "failed")}
    began, already = time.monotonic(), len(reported)
    with workers_of(plan, store.out, jobs) as start, live or contextlib.nullcontext():
        workers = [start() for _ in range(jobs)]
        while any(worker.poll() is None for worker in workers):
            time.sleep(_LOOK)
            workers = [_replaced(worker, store, start) for worker in workers]
            for task in plan.tasks:
                if task.name not in reported and (message := _end_message(store, task)):
                    reported.add(task.name)
                    if live is None:
                        log_info(f"[{len(reported)}/{len(plan.tasks)}] {message}")
            for task in plan.caches:
                if task.name not in caches and (message := _end_message(store, task)):
                    caches.add(task.name)
                    if live is None:
                        log_info(message)
            if live is not None:
                live.update(_live_table(plan, store, began, len(reported) - already), refresh=True)
    if not _finished(states(plan, store)):
        codes = ", ".join(str(worker.returncode) for worker in workers)
        raise UhkdError(
            f"the workers ended (exit codes {codes}) before the comparison was done; the same command goes on with it"
        )


def _replaced(worker: Popen[str], store: TaskStore, start: Callable[[], Popen[str]]) -> Popen[str]:
    """A worker that died over a task is replaced, and the task counts as failed: it would take the next one down too."""
    if worker.poll() in (None, 0):
        return worker
    lost = store.held_by(worker.pid)
    for name in lost:
        store.fail(name, f"its process ended with code {worker.returncode}{_ENDS.get(worker.returncode, '')}")
    return start() if lost else worker


def _finished(count: Mapping[str, int]) -> bool:
    return not (count.get("waiting", 0) + count.get("begun", 0))


def _end_message(store: TaskStore, task: Task) -> str | None:
    """A line about a task that came to an end."""
    state, why = store.state(task), store.failure(task.name)
    if task.serves and state == "failed" and why:
        return f"{task.name}: not made, its trainings run with the teacher: {why.splitlines()[0]}"
    if task.serves:
        return f"{task.name}: the teacher's signals are stored" if is_complete(store.out / task.name) else None
    if state == "done":
        return f"{task.name}: {store.accuracy(task):.2%}"
    return f"{task.name}: failed: {why.splitlines()[0]}" if state == "failed" and why else None


def _live_table(plan: Plan, store: TaskStore, began: float, done: int) -> Group:
    """Mean accuracy and count of finished seeds for every pair and method, and how long the rest may take."""
    tasks = {task.name: task for task in plan.tasks}
    pairs = list(plan.teachers)
    table = Table("method", *map(escape, pairs))
    for method in dict.fromkeys(cell.method for cell in plan.cells.values()):
        row = []
        for pair in pairs:
            names = [n for n, cell in plan.cells.items() if (cell.pair, cell.method) == (pair, method)]
            finished = [store.accuracy(tasks[n]) for n in names if store.state(tasks[n]) == "done"]
            running = sum(store.state(tasks[n]) == "begun" for n in names)
            mean = f"{100 * sum(finished) / len(finished):.2f} " if finished else ""
            row.append(f"{mean}({len(finished)}/{len(names)}{', running' if running else ''})")
        table.add_row(method, *row)
    count = states(plan, store)
    left = count["waiting"] + count["begun"]
    elapsed = time.monotonic() - began
    eta = f", about {elapsed / done * left / 60:.0f} min left" if done else ""
    making = [cache.name for cache in plan.caches if store.state(cache) == "begun"]
    stored = f", storing the teacher's signals: {', '.join(map(escape, making))}" if making else ""
    return Group(table, f"{count['done']} done, {count['failed']} failed, {left} to go{eta}{stored}")
