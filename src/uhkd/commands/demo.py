"""`demo`: on handwritten digits, a CNN teaches a ViT and an MLP; does it help, and does the frequency domain?"""

import contextlib
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uhkd.arguments import DemoArguments
from uhkd.commands.setup import say
from uhkd.commands.summary import gather, markdown, table, verdicts
from uhkd.pictures import draw_curves, draw_spectra
from uhkd.recipe import build, find_recipe, load_yaml
from uhkd.runs import RunFolder, write_atomically

STUDENTS = ("vit", "mlp")
METHODS = ("scratch", "kd", "twin_a", "uhkd")


def demo(arguments: DemoArguments | None = None, **words: Any) -> dict[str, Any]:
    """Train the teacher, then every student by every method and seed; table, curves and spectra in one folder.

    Runs by the packaged recipes digits/*, one process a core. Every number is the accuracy on the test part after the last
    epoch. Returns what demo.json holds.
    """
    asked = build(DemoArguments, words) if arguments is None else arguments
    seeds, shorter = (1, {"epochs": 2}) if asked.quick else (asked.seeds, {})
    out, began = _new_folder(Path(asked.out)), time.monotonic()
    (out / "logs").mkdir(parents=True)
    say(f"demo on 1,797 real images of handwritten digits; everything goes to {out}")
    workers = min(os.cpu_count() or 1, 8)
    teacher = str(out / "teacher")
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        taught = pool.submit(_run, "finetune", "digits/teacher", {"out": teacher, **shorter}).result()
        say(f"teacher (CNN): {taught:.2%} test accuracy after {time.monotonic() - began:.0f} s")
        jobs = {}
        for seed in range(seeds):
            for student in STUDENTS:
                for method in METHODS:
                    changes = {
                        "teacher": teacher,
                        "method": method,
                        "seed": seed,
                        "out": str(_cell(out, student, method, seed)),
                    }
                    if asked.quick:
                        changes["allow_weak_teacher"] = True
                    jobs[pool.submit(_run, "distill", f"digits/{student}", changes | shorter)] = (student, method, seed)
        accuracies = {}
        for done, job in enumerate(as_completed(jobs), 1):
            student, method, seed = jobs[job]
            accuracies[jobs[job]] = job.result()
            say(f"[{done}/{len(jobs)}] {student} student, {method}, seed {seed}: {job.result():.2%}")
    for student in STUDENTS:
        runs = {m: [RunFolder(_cell(out, student, m, seed)) for seed in range(seeds)] for m in METHODS}
        draw_curves(runs, out / f"curves-{student}.png")
        draw_spectra({m: runs[m][0] for m in METHODS if m != "scratch"}, out / f"spectra-{student}.png")
    cells = sorted(accuracies, key=lambda cell: (cell[0], METHODS.index(cell[1]), cell[2]))
    folders = [RunFolder(_cell(out, *cell)) for cell in cells]
    title = f"Handwritten digits, accuracy on the test part (%), mean ± sd over {seeds} seeds"
    told = [taught, *(accuracies[cell] for cell in cells)]
    summary = gather(title, RunFolder(teacher), folders, part="test", accuracies=told)
    _report(out, summary)
    say(f"pictures, runs and demo.md are in {out} ({time.monotonic() - began:.0f} s)")
    return summary


def _report(out: Path, summary: dict[str, Any]) -> None:
    rows, lines = table(summary), list(verdicts(summary))
    # a row a method and a column a student: fits a terminal of 80 columns
    head, *body = zip(*rows, strict=True)
    shown = Table(*head, title=summary["title"])
    for row in body:
        shown.add_row(*row)
    Console().print(shown)
    pictures = "\n".join(f"![{kind} of {s}]({kind}-{s}.png)" for s in STUDENTS for kind in ("curves", "spectra"))
    text = [f"# {summary['title']}", markdown(rows), "\n".join(f"- {line}" for line in lines), pictures]
    write_atomically(out / "demo.md", "\n\n".join(text) + "\n")
    RunFolder(out).write_json("demo.json", summary)
    for line in lines:
        say(line)


def _new_folder(wanted: Path) -> Path:
    """`wanted`, or the first free of wanted-2, wanted-3, ...: an earlier demo is never touched."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _cell(out: Path, student: str, method: str, seed: int) -> Path:
    return out / f"{student}-{method}-seed{seed}"


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(verb: str, recipe: str, changes: dict[str, Any]) -> float:
    """One training in a process of its own, its lines in logs/; the accuracy on the test part."""
    from uhkd.commands.api import distill, finetune
    from uhkd.commands.judging import measure

    folder = Path(changes["out"])
    log_file = folder.parent / "logs" / f"{folder.name}.txt"
    with log_file.open("w") as log, contextlib.redirect_stderr(log):
        words = load_yaml(find_recipe(recipe)) | changes
        run = (finetune if verb == "finetune" else distill)(**words).run
        return measure(str(run.path))[0].metrics["accuracy"]
