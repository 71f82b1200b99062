"""The queue of a comparison: its state is the folder, so any number of workers share it and any of them may be killed."""

import contextlib
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from uhkd.commands.comparing.plan import Plan, Task, merged
from uhkd.recipe import RecipeError
from uhkd.runs import RunFolder, write_atomically

State = Literal["waiting", "begun", "done", "failed"]
_PATIENCE = 0.5  # seconds between two looks at tasks that others work on


class Board:
    """What is done, begun and failed, read from the files below `out`.

    NAME/ is a task's run folder, plan/NAME.json its words, locks/NAME who works on it, logs/NAME.txt what it said,
    failed/NAME.txt why it ended.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, name: str) -> RunFolder:
        """The run folder of a task."""
        return RunFolder(self.out / name)

    def state(self, task: Task) -> State:
        """Where a task stands; "begun" is at work, or was when its worker was killed."""
        if self.run(task.name).result.is_file() and (not task.measured or self._test(task.name).is_file()):
            return "done"
        if self._file("failed", task.name).is_file():
            return "failed"
        return "begun" if self.run(task.name).started() else "waiting"

    def failure(self, name: str) -> str | None:
        """Why a task failed."""
        file = self._file("failed", name)
        return file.read_text().strip() if file.is_file() else None

    def accuracy(self, task: Task) -> float:
        """Of a finished task: on the test part where that is wanted, else on the held-out part, after the last epoch."""
        if task.measured:
            return json.loads(self._test(task.name).read_text())["accuracy"]
        return self.run(task.name).read_result()["metrics"]["val_accuracy"]

    def begin(self, plan: Plan) -> None:
        """Write down every task's words, and give tasks that failed another chance.

        Raises:
            RecipeError: when a task has other words than the folder's earlier task of that name.
        """
        problems = []
        for task in plan.tasks:
            file = self._file("plan", task.name, ".json")
            now = json.loads(json.dumps({"words": task.words, "choices": task.choices, "measured": task.measured}))
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(now, indent=1) + "\n")
            elif (before := json.loads(file.read_text())) != now:
                problems.append(f"{task.name}: {_difference(before, now)}")
        if problems:
            more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
            raise RecipeError([f"{self.out} was begun by another recipe; choose another --out", *problems[:5], *more])
        shutil.rmtree(self.out / "failed", ignore_errors=True)

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

    def words(self, task: Task) -> dict[str, Any]:
        """The words a task runs by: its own, and the changes of the best of its choices (the first of equals)."""
        tried = [name for name in task.choices if self.run(name).result.is_file()]
        if not tried:
            return task.words
        scores = {name: self.run(name).read_result()["metrics"]["val_accuracy"] for name in tried}
        return merged(task.words, task.choices[max(scores, key=lambda name: scores[name])])

    def execute(self, task: Task) -> None:
        """Train one task (from its last checkpoint, if it was begun); a failure is noted, not raised."""
        from uhkd.commands.api import distill, finetune
        from uhkd.commands.judging import measure

        log = self._file("logs", task.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        folder = self.run(task.name)
        with log.open("a") as file, contextlib.redirect_stderr(file):
            try:
                if not folder.result.is_file():
                    if folder.path.exists() and not folder.started():  # killed while it made its first file
                        shutil.rmtree(folder.path)
                    words = self.words(task) | {"out": str(folder.path), "resume": folder.started()}
                    (finetune if "model" in words else distill)(**words)
                if task.measured:
                    metrics = measure(str(folder.path), split="test")[0].metrics
                    write_atomically(self._test(task.name), json.dumps(metrics, indent=1) + "\n")
            except Exception as error:  # whatever one training dies of, the others go on
                traceback.print_exc(file=file)
                self.fail(
                    task.name, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                )

    def _test(self, name: str) -> Path:
        return self.out / name / "test.json"

    def _file(self, kind: str, name: str, suffix: str = ".txt") -> Path:
        return self.out / kind / f"{name}{suffix}"


def work(plan: Plan, out: Path) -> None:
    """Do tasks in order until all are done, failed or beyond reach; wait for those that others work on."""
    board, by_name = Board(out), {task.name: task for task in plan.tasks}
    while True:
        waiting = False
        for task in plan.tasks:
            if board.state(task) in ("done", "failed"):
                continue
            before = {name: board.state(by_name[name]) for name in (*task.after, *task.choices)}
            lost = [name for name in task.after if before[name] == "failed"]
            if task.choices and all(before[name] == "failed" for name in task.choices):
                lost += task.choices  # a setting that fails was tried and is not chosen; without any there is no choice
            if lost:
                board.fail(task.name, f"not run: {lost[0]} failed")
                continue
            if any(state not in ("done", "failed") for state in before.values()):
                waiting = True
                continue
            with board.claim(task.name) as mine:
                if not mine:
                    waiting = True
                elif board.state(task) not in ("done", "failed"):
                    board.execute(task)
        if not waiting:
            return
        time.sleep(_PATIENCE)


def start_workers(plan: Plan, out: Path, jobs: int) -> list[BaseProcess]:
    """`jobs` processes at work on the plan, each with its share of the cores; they end when this process does."""
    context = get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers: list[BaseProcess] = [
        context.Process(target=_worker, args=(plan, out, threads), daemon=True) for _ in range(jobs)
    ]
    for worker in workers:
        worker.start()
    return workers


def _worker(plan: Plan, out: Path, threads: int) -> None:
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # fewer where the environment asks for that
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the parent tells about it
        work(plan, out)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Which words differ, or which other thing."""
    old, new = before["words"], now["words"]
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    said = [f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in keys]
    said += [f"{k} was {before[k]!r}, now {now[k]!r}" for k in ("measured",) if before[k] != now[k]]
    return "; ".join(said) or "it tried other settings"
