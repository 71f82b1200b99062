"""Comparisons in pieces of minutes, for a GPU that is lent for a short while and then forgets everything.

    python benchmarks/gpu_queue.py --data cifar100.npz --minutes 9 --state queue

The list is a YAML file (gpu_queue.yaml beside this script): teachers, comparisons between networks, and steps, most important
first. A step names comparisons, their methods and seeds; its trainings run side by side. Last comes `everything.py`.
Whatever was finished is packed into the folder `state`, one file a teacher and two more, each of at most 16 MiB: carry it to
the next machine, and the queue goes on there. A training or teacher that was cut short is begun anew.

    cells.tar.gz        run folders of finished trainings, without weights and pictures, tables, and which steps are done
    teacher-NAME.tar    a finished teacher, its weights in half precision
    speed.json          what everything.py measured
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from uhkd.data import usable_cores
from uhkd.recipe import find_recipe, load_yaml
from uhkd.runs.checksums import read_sums, write_sums

HERE = Path(__file__).resolve().parent
GRACE = 5.0  # seconds between the request to end and the end
LEAST = 45.0  # seconds in which no step gets anywhere
PACKING = 20.0  # seconds kept for packing
HEAVY = (".safetensors", ".npz", ".png", ".pt", ".lock", ".pid")  # not carried
WORK = "folder of work, the same on every machine: the paths of its teachers are part of the recipes"
LARGEST = 16 * 2**20  # bytes a file may have
DONE = "done.txt"


class Queue:
    """The folder of work on this machine, what of it is carried, and the time that is left."""

    def __init__(self, plan: dict[str, Any], state: Path, work: Path, data: str, jobs: int, end: float) -> None:
        self.plan, self.state, self.work, self.data, self.jobs, self.end = plan, state, work, data, jobs, end
        for folder in (state, work):
            folder.mkdir(parents=True, exist_ok=True)
        for archive in sorted(state.glob("*.tar*")):
            with tarfile.open(archive) as packed:
                packed.extractall(work, filter="data")

    @property
    def left(self) -> float:
        """Seconds for work."""
        return self.end - PACKING - time.monotonic()

    def run(self, command: Sequence[str]) -> bool:
        """A command in the folder of work, ended with all its children when the time is over; whether it succeeded."""
        process = subprocess.Popen([sys.executable, *command], cwd=self.work, start_new_session=True)
        try:
            return process.wait(max(0.0, self.left)) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            # the first lets it end what it started in sessions of their own
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)

    def teacher(self, name: str) -> bool:
        """Train a teacher unless it is there; whether it is. One that is kept in a folder is copied."""
        folder = Path("teachers", name)
        if (self.work / folder / "result.json").is_file():
            return True
        if isinstance(teacher := self.plan["teachers"][name], str):
            shutil.copytree(HERE.parent / teacher, self.work / folder, dirs_exist_ok=True)
            return True
        arguments = dict(teacher)
        command, base, by = arguments.pop("verb"), arguments.pop("recipe"), arguments.pop("teacher", None)
        plan = load_yaml(find_recipe(base)) | arguments | {"data": self.data, "out": str(folder)}
        if by is not None:
            if not self.teacher(by):
                return False
            plan["teacher"] = str(Path("teachers", by))
        if self.left < LEAST:
            return False
        file = self.work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(plan))
        if not self.run(
            ["-m", "uhkd", command, "-c", file.name, "--resume" if (self.work / folder).exists() else "--no-resume"]
        ):
            return False
        weights = self.work / folder / "model.safetensors"
        save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(weights).items()}, weights)
        write_sums(weights.parent, [weights.parent / file for file in read_sums(weights.parent)], {})
        self.pack(f"teacher-{name}.tar", [self.work / folder], carried=("model.safetensors",))
        return True

    def step(self, names: Sequence[str], methods: Sequence[str], seeds: int) -> bool:
        """Run what some comparisons lack, all at once; whether they are complete."""
        note = f"{' '.join(names)}: {','.join(methods)} {seeds}"
        if note in self.done():
            return True
        if not all(self.teacher(self.plan["comparisons"][name]["teacher"]) for name in names) or self.left < LEAST:
            return False
        commands = []
        for name in names:
            arguments = dict(self.plan["comparisons"][name])
            teacher = arguments.pop("teacher")
            plan = arguments | {
                "data": self.data,
                "teachers": [str(self.work / "teachers" / teacher)],
                "out": str(Path("cells", name)),
                "methods": list(methods),
                "seeds": seeds,
                "jobs": max(1, self.jobs // len(names)),
            }
            file = self.work / f"{name}.yaml"
            file.write_text(yaml.safe_dump(plan))
            commands.append(["-m", "uhkd", "compare", "-c", file.name])

        def worker(first: int) -> list[bool]:
            """The comparisons from one of them on: a worker without work joins another one."""
            return [self.run(command) for command in commands[first:] + commands[:first]]

        with ThreadPoolExecutor(len(commands)) as workers:
            complete = all(all(done) for done in workers.map(worker, range(len(commands))))
        if complete:
            (self.work / "cells" / DONE).write_text("\n".join([*self.done(), note]) + "\n")
        self.pack("cells.tar.gz", [self.work / "cells"])
        return complete

    def done(self) -> list[str]:
        """Steps that are complete: looking at each of their trainings again would take seconds."""
        file = self.work / "cells" / DONE
        return file.read_text().splitlines() if file.is_file() else []

    def finished(self, run: Path) -> bool:
        """Whether a run folder needs its weights no more: the training is over, and the test part was read if it is to be."""
        if not (run / "result.json").is_file():
            return False
        within = run.relative_to(self.work).parts  # cells/COMPARISON/... or teachers/NAME
        plan = self.work.joinpath(*within[:2], "plan", *within[2:]).with_suffix(".json")
        measured = plan.is_file() and json.loads(plan.read_text())["measured"]
        return not measured or (run / "test.json").is_file()

    def pack(self, archive: str, folders: Sequence[Path], carried: Sequence[str] = ()) -> None:
        """The finished run folders below some folders, and those folders' own files, as one archive in the state."""
        files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
        unfinished = {p.parent for p in files if p.name == "recipe.yaml" and not self.finished(p.parent)}
        temporary = self.state / f".{archive}"
        with tarfile.open(temporary, "w:gz" if archive.endswith("gz") else "w") as packed:
            for file in files:
                heavy = file.name.endswith(HEAVY) and file.name not in carried
                if not heavy and "caches" not in file.parts and not unfinished & set(file.parents):
                    packed.add(file, file.relative_to(self.work))
        size = temporary.stat().st_size
        if size > LARGEST:
            temporary.unlink()
            raise ValueError(f"{archive} has {size / 2**20:.1f} MiB, more than the {LARGEST >> 20} that may be carried")
        temporary.replace(self.state / archive)


def main() -> None:
    """Work through the list until it or the time ends."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="CIFAR-100: an .npz file, an image folder, cifar100:ROOT")
    options.add_argument("--minutes", type=float, default=9.0, help="budget of the whole run")
    options.add_argument("--state", type=Path, required=True, help="folder that is carried from machine to machine")
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "uhkd-gpu-queue"), help=WORK)
    options.add_argument("--list", type=Path, default=HERE / "gpu_queue.yaml", help="what is to be done")
    options.add_argument("--jobs", type=int, default=usable_cores(), help="trainings at a time: one a core")
    arguments = options.parse_args()
    if Path(arguments.data).suffix and not Path(arguments.data).exists():
        options.error(f"--data: there is no {arguments.data}; expected an .npz file, an image folder or cifar100:ROOT")
    if not arguments.list.is_file():
        options.error(f"--list: there is no {arguments.list}; expected a YAML file like {HERE / 'gpu_queue.yaml'}")
    end = time.monotonic() + 60 * arguments.minutes
    plan = yaml.safe_load(arguments.list.read_text())
    if problem := wrong(plan):
        options.error(f"--list: {arguments.list}: {problem}")
    state, work = arguments.state.resolve(), arguments.work.resolve()
    queue = Queue(plan, state, work, place_data(arguments.data, work), arguments.jobs, end)
    with sharing_the_gpu(work):
        for step in plan["steps"]:
            began, methods = time.monotonic(), plan["methods"][step["methods"]]
            complete = queue.step(step["comparisons"], methods, step["seeds"])
            title = f"{', '.join(step['comparisons'])}: {len(methods)} methods, {step['seeds']} seeds"
            print(f"{title}: {'done' if complete else 'not done'} after {time.monotonic() - began:.0f} s", flush=True)
            if queue.left < LEAST:
                return
    if not (state / "speed.json").is_file():  # alone on the GPU
        minutes = str(queue.left / 60)
        queue.run([str(HERE / "everything.py"), "--minutes", minutes, "--out", str(state / "speed.json")])


def wrong(plan: dict[str, Any]) -> str | None:
    """What is wrong with a list, if anything: found before the minutes of a GPU are spent."""
    for step in plan["steps"]:
        if missing := {"comparisons", "methods", "seeds"} - step.keys():
            return f"the step {step} lacks {', '.join(sorted(missing))}"
        for kind, names in (("comparisons", step["comparisons"]), ("methods", [step["methods"]])):
            if unknown := [name for name in names if name not in plan[kind]]:
                return f"a step names {', '.join(unknown)}; expected of {', '.join(plan[kind])}"
    for name, own in plan["comparisons"].items():
        if own.get("teacher") not in plan["teachers"]:
            return f"{name} has the teacher {own.get('teacher')}; expected one of {', '.join(plan['teachers'])}"
    for name, teacher in plan["teachers"].items():
        if isinstance(teacher, str) and not (HERE.parent / teacher / "result.json").is_file():
            return f"teacher {name}: {teacher} is no finished run below {HERE.parent}"
    return None


@contextlib.contextmanager
def sharing_the_gpu(work: Path) -> Iterator[None]:
    """NVIDIA's service by which processes use a GPU at the same time instead of in turn, where it is there.

    A small network leaves a large GPU idle, and many of them that wait for their turns do so too.
    """
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield
        return
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(work / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(work / "mps-log")}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    os.environ |= places
    try:
        subprocess.run([control, "-d"], check=True)
        yield
    finally:
        subprocess.run([control], input="quit\n", text=True, check=False)
        for name in places:
            del os.environ[name]


def place_data(data: str, work: Path) -> str:
    """The name of the data in the folder of work: a link, so that the recipe of a comparison is the same on every machine."""
    if not (path := Path(data).resolve()).exists():
        return data
    link = work / f"data{path.suffix}"
    work.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path, target_is_directory=path.is_dir())
    return link.name


if __name__ == "__main__":
    main()
