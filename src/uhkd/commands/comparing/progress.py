"""Worker processes of a comparison, and the display of their progress."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from subprocess import Popen

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from uhkd.commands.comparing.plan import Plan, Task
from uhkd.commands.comparing.shared_cache import is_complete
from uhkd.commands.comparing.task_store import TaskStore, workers_of
from uhkd.console import escape, is_interactive, log_info
from uhkd.errors import UhkdError

_POLL_SECONDS = 0.5
_EXIT_HINTS = {
    -9: " (killed, often because memory was insufficient; use fewer --jobs, or a smaller batch with --overrides batch_size=N)"
}


def states(plan: Plan, store: TaskStore) -> Counter[str]:
    """Count the trainings by state."""
    return Counter(store.state(task) for task in plan.tasks)


def run(plan: Plan, store: TaskStore, jobs: int) -> None:
    """Run workers until all tasks have ended; show the growing table, or one line per training without a terminal.

    Raises:
        UhkdError: the workers ended before the tasks.
    """
    if _finished(states(plan, store)):
        return
    console = Console(stderr=True, markup=False, emoji=False)
    live = Live(console=console, auto_refresh=False, transient=True) if is_interactive() else None
    reported = {task.name for task in (*plan.tasks, *plan.caches) if store.state(task) in ("done", "failed")}
    trainings = [task.name for task in plan.tasks]
    began, already = time.monotonic(), len(reported.intersection(trainings))
    with workers_of(plan, store.path, jobs) as start, live or contextlib.nullcontext():
        workers = [start() for _ in range(jobs)]
        while any(worker.poll() is None for worker in workers):
            time.sleep(_POLL_SECONDS)
            workers = [_replace_failed(worker, store, start) for worker in workers]
            for task in (*plan.tasks, *plan.caches):
                if task.name in reported or not (message := _end_message(store, task)):
                    continue
                reported.add(task.name)
                if live is None:
                    ended = len(reported.intersection(trainings))
                    log_info(message if task.serves else f"[{ended}/{len(trainings)}] {message}")
            if live is not None:
                ended = len(reported.intersection(trainings))
                live.update(_live_table(plan, store, began, ended - already), refresh=True)
    if not _finished(states(plan, store)):
        codes = ", ".join(str(worker.returncode) for worker in workers)
        raise UhkdError(
            f"the workers ended (exit codes {codes}) before the comparison was complete; the same command resumes it"
        )


def _replace_failed(worker: Popen[str], store: TaskStore, start: Callable[[], Popen[str]]) -> Popen[str]:
    """Replace a worker whose process failed; its tasks are marked as failed, because they would end the next worker too."""
    if worker.poll() in (None, 0):
        return worker
    lost = store.tasks_of(worker.pid)
    for name in lost:
        store.fail(name, f"its process ended with code {worker.returncode}{_EXIT_HINTS.get(worker.returncode, '')}")
    return start() if lost else worker


def _finished(count: Mapping[str, int]) -> bool:
    return not (count.get("waiting", 0) + count.get("begun", 0))


def _end_message(store: TaskStore, task: Task) -> str | None:
    """Return a line about a task that has ended, else None."""
    state, why = store.state(task), store.failure(task.name)
    if task.serves and state == "failed" and why:
        return f"{task.name}: failed, its trainings run with the live teacher: {why.splitlines()[0]}"
    if task.serves:
        return f"{task.name}: the teacher outputs are stored" if is_complete(store.path / task.name) else None
    if state == "done":
        return f"{task.name}: {store.accuracy(task):.2%}"
    return f"{task.name}: failed: {why.splitlines()[0]}" if state == "failed" and why else None


def _live_table(plan: Plan, store: TaskStore, began: float, done: int) -> Group:
    """Return mean accuracy and number of finished seeds by method and pair, and an estimate of the remaining time."""
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
    active = [cache.name for cache in plan.caches if store.state(cache) == "begun"]
    stored = f", storing teacher outputs: {', '.join(map(escape, active))}" if active else ""
    return Group(table, f"{count['done']} done, {count['failed']} failed, {left} to go{eta}{stored}")
