"""The queue of a comparison: its state is the folder, so any number of workers share it and any of them may be killed."""

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

from uhkd.commands.children import end_with_parent, start_child
from uhkd.commands.comparing.plan import Plan, Task, merged
from uhkd.commands.comparing.serving import invalidate, is_complete, resolve_cache, store
from uhkd.data import usable_cores
from uhkd.errors import UhkdError
from uhkd.recipe import TASK_KEYS, RecipeError, rename_keys
from uhkd.runs import RunFolder, check_own, drop_leftovers, write_atomically

State = Literal["waiting", "begun", "done", "failed"]
_PATIENCE = 0.5  # seconds between two looks at tasks that others work on


class TaskStore:
    """What is done, begun and failed, read from the files below `out`.

    NAME/ is a task's run folder (or cache), plan/NAME.json its words, locks/NAME.lock is held and locks/NAME.pid written by who
    works on it, logs/NAME.txt is what it said, failed/NAME.txt why it ended, chosen/PAIR/METHOD.json the setting that was taken.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, name: str) -> RunFolder:
        """The run folder of a task."""
        return RunFolder(self.out / name)

    def state(self, task: Task) -> State:
        """Where a task stands; "begun" is at work, or was when its worker was killed. A cache that nobody needs is done."""
        if task.serves:
            needed = any(not self.run(name).result.is_file() for name in task.serves)
            if not needed or is_complete(self.out / task.name):
                return "done"
        if self.run(task.name).result.is_file() and (not task.measured or self._test(task.name).is_file()):
            return "done"
        if self._file("failed", task.name).is_file():
            return "failed"
        return "begun" if self.run(task.name).started() else "waiting"

    def failure(self, name: str) -> str | None:
        """Why a task failed."""
        file = self._file("failed", name)
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    def accuracy(self, task: Task) -> float:
        """Of a finished task: on the test part where that is wanted, else on the held-out part, after the last epoch."""
        if task.measured:
            return json.loads(self._test(task.name).read_text(encoding="utf-8"))["accuracy"]
        metrics = self.run(task.name).read_result()["metrics"]
        if "val_accuracy" not in metrics:
            raise UhkdError(f"{task.name} learned without labels and has no accuracy; say probe_data in its recipe")
        return metrics["val_accuracy"]

    def begin(self, plan: Plan) -> None:
        """Write down every task's words, and give tasks that failed another chance.

        Raises:
            UhkdError: when a folder below `out` is a link.
            RecipeError: when a task has other words than the folder's earlier task of that name.
        """
        problems = []
        kinds = ("plan", "locks", "logs", "failed", "chosen")
        check_own(self.out, *(f"{kind}/{task.name}" for task in plan.work for kind in (*kinds, ".")))
        for task in plan.work:
            file = self._file("plan", task.name, ".json")
            now = json.loads(json.dumps({"options": task.options, "choices": task.choices, "measured": task.measured}))
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(now, indent=1) + "\n")
                continue
            before = rename_keys(json.loads(file.read_text(encoding="utf-8")), TASK_KEYS)
            if any(before[key] != now[key] for key in ("options", "choices")):
                problems.append(f"{task.name}: {_difference(before, now)}")
            elif task.measured and not before["measured"]:  # the same training, wanted on the test part too
                write_atomically(file, json.dumps(now, indent=1) + "\n")
        if problems:
            more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
            raise RecipeError([f"{self.out} was begun by another recipe; choose another --out", *problems[:5], *more])
        for task in plan.work:
            with self.claim(task.name) as claimed:
                if claimed:
                    self._file("failed", task.name).unlink(missing_ok=True)

    def fail(self, name: str, why: str) -> None:
        """Note why a task ended."""
        file = self._file("failed", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, why + "\n")

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Hold a task while the context lasts: False when another worker has it. A dead worker holds nothing."""
        file = self._file("locks", name, ".lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def options_of(self, task: Task) -> dict[str, Any]:
        """The words a task runs by: its own, and the changes of its choice that was taken."""
        taken = self.taken(task.choices)
        return task.options if taken is None else merged(task.options, task.choices[taken])

    def taken(self, choices: Mapping[str, Any], *, decide: bool = True) -> str | None:
        """Which of the settings tried is taken: the best on the held-out part (the first of equals), once and for all.

        It is written down by the first task that asks, so that one that failed before and is tried again changes nothing.
        None: there is no choice, none of them was finished, or (without `decide`) none was taken yet.
        """
        if not choices:
            return None
        file = self._file("chosen", next(iter(choices)).rpartition("/")[0].removeprefix("tune/"), ".json")
        if not file.is_file():
            tried = [name for name in choices if self.run(name).result.is_file()]
            if not tried or not decide:
                return None
            scores = {name: self.run(name).read_result()["metrics"]["val_accuracy"] for name in tried}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(max(scores, key=lambda name: scores[name])) + "\n")
        return json.loads(file.read_text(encoding="utf-8"))

    def held_by(self, process: int) -> list[str]:
        """Tasks that a process of this machine worked on and did not finish."""
        return [
            str(file.relative_to(self.out / "locks").with_suffix(""))
            for file in (self.out / "locks").rglob("*.pid")
            if file.read_text(encoding="utf-8") == _worker_name(process)
        ]

    def execute(self, task: Task, served: Sequence[Task] = ()) -> None:
        """Do one task (from its last checkpoint, if it was begun); failures are noted, not raised. served: by a cache."""
        from uhkd.commands.judging import measure
        from uhkd.commands.train import distill, finetune

        log = self._file("logs", task.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        folder, holder = self.run(task.name), self._file("locks", task.name, ".pid")
        cache = self.out / task.cache if task.cache else None
        for file in (holder, self._test(task.name)):
            drop_leftovers(file)
        write_atomically(holder, _worker_name(os.getpid()))
        if log.is_symlink():
            log.unlink()  # what is appended to would be another file
        kind: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
        with log.open("a", **kind) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                if task.serves:
                    store(self.out, task.name, task.options, {other.name: self.options_of(other) for other in served})
                elif not folder.result.is_file():
                    if folder.path.exists() and not folder.started():  # killed while it made its first file
                        shutil.rmtree(folder.path)
                    options, teaches = self.options_of(task), "model" in task.options
                    if not teaches:
                        options = resolve_cache(options, folder, cache, task.cache and self.failure(task.cache))
                    place = {"out": str(folder.path), "resume": folder.started()}
                    (finetune if teaches else distill)(**options | place)
                if task.measured:
                    metrics = measure(str(folder.path), split="test")[0].metrics
                    write_atomically(self._test(task.name), json.dumps(metrics, indent=1) + "\n")
            except Exception as error:  # whatever one training dies of, the others go on
                traceback.print_exc(file=file)
                if cache is not None:
                    invalidate(cache, error)
                self.fail(
                    task.name, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                )
        holder.unlink()

    def _test(self, name: str) -> Path:
        return self.out / name / "test.json"

    def _file(self, kind: str, name: str, suffix: str = ".txt") -> Path:
        return self.out / kind / f"{name}{suffix}"


def work(tasks: Sequence[Task], out: Path) -> None:
    """Do tasks in order until all are done, failed or beyond reach; wait for those that others work on."""
    store, by_name = TaskStore(out), {task.name: task for task in tasks}
    while True:
        waiting = False
        for task in tasks:
            if store.state(task) in ("done", "failed"):
                continue
            before = {name: store.state(by_name[name]) for name in _awaited(task, by_name)}
            lost = [name for name in task.after if before[name] == "failed"]
            if task.choices and all(before[name] == "failed" for name in task.choices):
                lost += task.choices  # a setting that fails was tried and is not chosen; without any there is no choice
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
                    gc.collect()  # a training's images and networks lie in cycles: left alone, they pile up for several cells
        if not waiting:
            return
        time.sleep(_PATIENCE)


def _awaited(task: Task, by_name: Mapping[str, Task]) -> list[str]:
    """Tasks that must have ended before this one: what it needs, its choices and cache; before a cache its trainings' choices."""
    names = [*task.after, *task.choices, *([task.cache] if task.cache in by_name else [])]
    names += [name for served in task.serves for name in by_name[served].choices if name not in task.serves]
    return list(dict.fromkeys(names))


@contextlib.contextmanager
def workers_of(plan: Plan, out: Path, jobs: int) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """What starts a process at work on the plan, with its share of the cores; all of them end with the context.

    Each ends also when this one is killed, see `start_child`.
    """
    order = {
        "out": str(out),
        "threads": max(1, usable_cores() // jobs),
        "command": sys.argv,
        "tasks": [dataclasses.asdict(task) for task in plan.work],
    }
    _tidy(out / "plan")
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
    """A worker's process: its order is the file named on its command line."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = order["command"]  # what runs note as their command
    end_with_parent()
    torch.set_num_threads(min(order["threads"], torch.get_num_threads()))  # fewer where the environment asks for that
    tasks = tuple(Task(**task | {k: tuple(task[k]) for k in ("after", "serves")}) for task in order["tasks"])
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the parent tells about it
        work(tasks, Path(order["out"]))


def _tidy(plan: Path) -> None:
    """Remove orders that processes of this machine gave and did not live to take back."""
    for file in plan.glob(f".order-{platform.node()}-*.json") if os.name == "posix" else ():
        try:
            os.kill(int(file.stem.rpartition("-")[2]), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except PermissionError:
            pass  # another user's, and alive


def _worker_name(process: int) -> str:
    """A process among those of all machines that share a folder."""
    return f"{platform.node()}-{process}"


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which words differ, or which other thing."""
    old, new = before["options"], now["options"]
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    changes = [f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in keys]
    return "; ".join(changes) or "it tried other settings"
