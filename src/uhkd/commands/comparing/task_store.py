"""The queue of a comparison. Its state is the folder, so that any number of workers can share it, and any may be killed."""

import contextlib
import dataclasses
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from uhkd.commands.comparing.plan import Plan, Task, merged
from uhkd.commands.comparing.shared_cache import create_cache, invalidate, is_complete, resolve_cache
from uhkd.commands.subprocesses import end_with_parent, start_child
from uhkd.commands.train import distill, finetune
from uhkd.data import usable_cores
from uhkd.errors import UhkdError
from uhkd.recipe import TASK_KEYS, RecipeError, rename_keys
from uhkd.runs import RunFolder, check_own, drop_leftovers, process_may_be_alive, write_atomically
from uhkd.runs.comparison import TASK_FILES, ComparisonFolder
from uhkd.training.run_evaluation import measure

State = Literal["waiting", "begun", "done", "failed"]
_POLL_SECONDS = 0.5  # between two checks of tasks of other workers


class TaskStore(ComparisonFolder):
    """State of the tasks of a comparison, read from the files of its folder."""

    def run(self, name: str) -> RunFolder:
        """Return the run folder of a task."""
        return RunFolder(self.path / name)

    def state(self, task: Task) -> State:
        """Return the state of a task. "begun": running, or interrupted. A cache that no training needs any more is "done"."""
        if task.serves:
            needed = any(not self.run(name).result.is_file() for name in task.serves)
            if not needed or is_complete(self.path / task.name):
                return "done"
        if self.run(task.name).result.is_file() and (not task.measured or self._test(task.name).is_file()):
            return "done"
        if self.file("failed", task.name).is_file():
            return "failed"
        return "begun" if self.run(task.name).started() else "waiting"

    def accuracy(self, task: Task) -> float:
        """Return the accuracy of a finished task after the last epoch, on the split of the table."""
        if task.measured:
            return json.loads(self._test(task.name).read_text(encoding="utf-8"))["accuracy"]
        metrics = self.run(task.name).read_result()["metrics"]
        if "val_accuracy" not in metrics:
            raise UhkdError(f"{task.name} has no accuracy, it was trained without labels; set probe_data in its recipe")
        return metrics["val_accuracy"]

    def begin(self, plan: Plan) -> None:
        """Write the options of every task, and make failed tasks ready for another attempt.

        Raises:
            UhkdError: a folder below `out` is a link.
            RecipeError: a task differs from the task of the same name that the folder already has.
        """
        problems = []
        check_own(self.path, *(f"{kind}/{task.name}" for task in plan.work for kind in (*TASK_FILES, ".")))
        for task in plan.work:
            file = self.file("plan", task.name, ".json")
            new = json.loads(json.dumps({"options": task.options, "choices": task.choices, "measured": task.measured}))
            old = rename_keys(json.loads(file.read_text(encoding="utf-8")), TASK_KEYS) if file.is_file() else None
            if old is not None and any(old[key] != new[key] for key in ("options", "choices")):
                problems.append(f"{task.name}: {_difference(old['options'], new['options'])}")
            elif old is None or (task.measured and not old["measured"]):  # or the test split is measured additionally
                self._write(file, json.dumps(new, indent=1))
        if problems:
            more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
            raise RecipeError([f"{self.path} belongs to another recipe; choose another --out", *problems[:5], *more])
        for task in plan.work:
            with self.claim(task.name) as claimed:
                if claimed:
                    self.file("failed", task.name).unlink(missing_ok=True)

    def fail(self, name: str, why: str) -> None:
        """Record the reason of a failure."""
        self._write(self.file("failed", name), why)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Lock a task for the duration of the context; yield False if another worker has it. Locks end with their process."""
        file = self.file("locks", name, ".lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def options_of(self, task: Task) -> dict[str, Any]:
        """Return the options of a task, updated by the setting chosen for it."""
        chosen = self.chosen(task.choices)
        return task.options if chosen is None else merged(task.options, task.choices[chosen])

    def chosen(self, choices: Mapping[str, Any], *, decide: bool = True) -> str | None:
        """Return which of the settings tried is chosen: the one with the best held-out accuracy, or the first of equals.

        The choice is written by the first call and never changes, even if a failed trial succeeds later. None: there is no
        choice, no trial is finished, or nothing was chosen yet and `decide` is False.
        """
        if not choices:
            return None
        file = self.file("chosen", next(iter(choices)).rpartition("/")[0].removeprefix("tune/"), ".json")
        if not file.is_file():
            tried = [name for name in choices if self.run(name).result.is_file()]
            if not tried or not decide:
                return None
            scores = {name: self.run(name).read_result()["metrics"]["val_accuracy"] for name in tried}
            self._write(file, json.dumps(max(scores, key=lambda name: scores[name])))
        return json.loads(file.read_text(encoding="utf-8"))

    def tasks_of(self, process: int) -> list[str]:
        """Return the unfinished tasks of a process of this machine."""
        return [
            str(file.relative_to(self.path / "locks").with_suffix(""))
            for file in (self.path / "locks").rglob("*.pid")
            if file.read_text(encoding="utf-8") == _worker_name(process)
        ]

    def execute(self, task: Task, served: Sequence[Task] = ()) -> None:
        """Run or resume one task; failures are recorded, not raised. served: the trainings of a cache."""
        log = self.file("logs", task.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        holder = self.file("locks", task.name, ".pid")
        for file in (holder, self._test(task.name)):
            drop_leftovers(file)
        write_atomically(holder, _worker_name(os.getpid()))
        if log.is_symlink():
            log.unlink()  # else the output would be appended to another file
        streams = log.open("a", encoding="utf-8", errors="backslashreplace")
        with streams as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                self._execute(task, served)
            except Exception as error:  # one failed training must not end the others
                traceback.print_exc(file=file)
                if task.cache:
                    invalidate(self.path / task.cache, error)
                kind = "" if isinstance(error, UhkdError) else f"{type(error).__name__}: "
                self.fail(task.name, f"{kind}{error}")
        holder.unlink()

    def _execute(self, task: Task, served: Sequence[Task]) -> None:
        folder = self.run(task.name)
        if task.serves:
            create_cache(self.path, task.name, task.options, {other.name: self.options_of(other) for other in served})
        elif not folder.result.is_file():
            if folder.path.exists() and not folder.started():  # killed while it created its first file
                shutil.rmtree(folder.path)
            options, train = self.options_of(task), finetune
            if "model" not in task.options:
                cache = self.path / task.cache if task.cache else None
                options = resolve_cache(options, folder, cache, task.cache and self.failure(task.cache))
                train = distill
            train(**options | {"out": str(folder.path), "resume": folder.started()})
        if task.measured:
            metrics = measure(str(folder.path), split="test")[0].metrics
            write_atomically(self._test(task.name), json.dumps(metrics, indent=1) + "\n")

    def _test(self, name: str) -> Path:
        return self.path / name / "test.json"

    @staticmethod
    def _write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text + "\n")


def work(tasks: Sequence[Task], out: Path) -> None:
    """Run tasks in order until all have ended; wait for those of other workers."""
    store, by_name = TaskStore(out), {task.name: task for task in tasks}
    while True:
        waiting = False
        for task in tasks:
            if store.state(task) in ("done", "failed"):
                continue
            before = {name: store.state(by_name[name]) for name in _awaited(task, by_name)}
            lost = [name for name in task.after if before[name] == "failed"]
            if task.choices and all(before[name] == "failed" for name in task.choices):
                lost += task.choices  # some failed trials are only not chosen; if all fail, there is no choice
            if lost:
                store.fail(task.name, f"not run: {lost[0]} failed")
                continue
            if any(state not in ("done", "failed") for state in before.values()):
                waiting = True
                continue
            with store.claim(task.name) as claimed:
                if not claimed:
                    waiting = True
                elif store.state(task) not in ("done", "failed"):
                    store.execute(task, [by_name[name] for name in task.serves])
                    gc.collect()  # frees images and networks in reference cycles, which else accumulate over several cells
        if not waiting:
            return
        time.sleep(_POLL_SECONDS)


def _awaited(task: Task, by_name: Mapping[str, Task]) -> list[str]:
    """Return the tasks that must end before this one: its teacher, trials and cache; for a cache the trials of its trainings."""
    names = [*task.after, *task.choices, *([task.cache] if task.cache in by_name else [])]
    names += [name for served in task.serves for name in by_name[served].choices if name not in task.serves]
    return list(dict.fromkeys(names))


@contextlib.contextmanager
def workers_of(plan: Plan, out: Path, jobs: int) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Yield a function that starts a worker process with 1 / `jobs` of the cores; all workers end with the context.

    They also end if this process is killed, see `start_child`.
    """
    order = {
        "out": str(out),
        "threads": max(1, usable_cores() // jobs),
        "command": sys.argv,
        "tasks": [dataclasses.asdict(task) for task in plan.work],
    }
    _remove_stale_orders(out / "plan")
    file = out / "plan" / f".order-{_worker_name(os.getpid())}.json"
    write_atomically(file, json.dumps(order) + "\n")
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started.append(start_child(__name__, str(file)))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.communicate()
        file.unlink(missing_ok=True)


def main() -> None:
    """Entry point of a worker process; the argument is the path of its order."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = order["command"]  # recorded in the runs
    end_with_parent()
    torch.set_num_threads(min(order["threads"], torch.get_num_threads()))  # fewer if the environment sets fewer
    tasks = tuple(Task(**task | {k: tuple(task[k]) for k in ("after", "serves")}) for task in order["tasks"])
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole process group; the parent reports it
        work(tasks, Path(order["out"]))


def _remove_stale_orders(plan: Path) -> None:
    """Remove the orders of processes of this machine that were killed."""
    machine = platform.node()
    for file in plan.glob(f".order-{machine}-*.json"):
        if not process_may_be_alive({"process": int(file.stem.rpartition("-")[2]), "machine": machine}):
            file.unlink(missing_ok=True)


def _worker_name(process: int) -> str:
    """Return a name of a process, unique among the machines that share a folder."""
    return f"{platform.node()}-{process}"


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    changes = [f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in keys]
    return "; ".join(changes) or "other settings were tried"
