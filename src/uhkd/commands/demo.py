"""`demo`: on handwritten digits, a CNN teaches a ViT and an MLP; does it help, and does the frequency domain?"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uhkd.arguments import DemoArguments
from uhkd.commands.setup import say
from uhkd.pictures import draw_curves, draw_spectra
from uhkd.recipe import build, find_recipe, load_yaml
from uhkd.runs import RunFolder, environment, write_atomically

STUDENTS = ("vit", "mlp")
METHODS = ("scratch", "kd", "twin_a", "uhkd")


def demo(arguments: DemoArguments | None = None, **words: Any) -> dict[str, dict[str, list[float]]]:
    """Train the teacher, then every student by every method and seed; table, curves and spectra in one folder.

    Runs by the packaged recipes digits/*, one process a core. Every number is the accuracy on the test part after the last
    epoch. Returns {student: {method: [accuracy by seed]}}.
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
                    changes = {"teacher": teacher, "method": method, "seed": seed, "out": str(_cell(out, student, method, seed))}
                    if asked.quick:
                        changes["allow_weak_teacher"] = True
                    jobs[pool.submit(_run, "distill", f"digits/{student}", changes | shorter)] = (student, method, seed)
        results: dict[str, dict[str, list[float]]] = {s: {m: [0.0] * seeds for m in METHODS} for s in STUDENTS}
        for done, job in enumerate(as_completed(jobs), 1):
            student, method, seed = jobs[job]
            results[student][method][seed] = job.result()
            say(f"[{done}/{len(jobs)}] {student} student, {method}, seed {seed}: {job.result():.2%}")
    for student in STUDENTS:
        runs = {m: [RunFolder(_cell(out, student, m, seed)) for seed in range(seeds)] for m in METHODS}
        draw_curves(runs, out / f"curves-{student}.png")
        draw_spectra({m: runs[m][0] for m in METHODS if m != "scratch"}, out / f"spectra-{student}.png")
    lines = list(_verdicts(results, seeds))
    _report(out, taught, results, lines, environment())
    for line in lines:
        say(line)
    say(f"pictures, runs and demo.md are in {out} ({time.monotonic() - began:.0f} s)")
    return results


def mean_sd(values: list[float]) -> str:
    """'97.21 ± 0.35' in percent; the spread is the sample standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def _verdicts(results: dict[str, dict[str, list[float]]], seeds: int) -> Iterable[str]:
    """What the numbers say of UHKD against each baseline, seed by seed, whichever way it falls."""
    for student, by_method in results.items():
        for rival in METHODS[:-1]:
            gaps = [100 * (a - b) for a, b in zip(by_method["uhkd"], by_method[rival], strict=True)]
            mean = statistics.fmean(gaps)
            if seeds < 3:
                yield f"{student}: UHKD minus {rival} {mean:+.2f} points (too few seeds to tell)"
                continue
            error = statistics.stdev(gaps) / seeds**0.5
            verdict = "within two standard errors: no difference shown" if abs(mean) <= 2 * error else "beyond two standard errors"
            yield f"{student}: UHKD minus {rival} {mean:+.2f} points, standard error {error:.2f} ({verdict})"


def _report(
    out: Path, taught: float, results: dict[str, dict[str, list[float]]], lines: list[str], facts: dict[str, Any]
) -> None:
    seeds = len(results[STUDENTS[0]][METHODS[0]])
    title = f"digits, test accuracy (%), mean ± sd over {seeds} seeds"
    head = ["student", "teacher", *METHODS]
    rows = [[student, f"{100 * taught:.2f}", *(mean_sd(by[m]) for m in METHODS)] for student, by in results.items()]
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    marks = [head, ["---"] * len(head), *rows]
    text = [f"# {title}", "", *(f"| {' | '.join(row)} |" for row in marks), "", *(f"- {line}" for line in lines)]
    pictures = [f"![{s} {p}]({p}-{s}.png)" for s in STUDENTS for p in ("curves", "spectra")]
    write_atomically(out / "demo.md", "\n".join([*text, "", *pictures]) + "\n")
    RunFolder(out).write_json("demo.json", {"teacher": taught, "students": results, "environment": facts})


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
    with open(folder.parent / "logs" / f"{folder.name}.txt", "w") as log, contextlib.redirect_stderr(log):
        words = load_yaml(find_recipe(recipe)) | changes
        run = (finetune if verb == "finetune" else distill)(**words).run
        return measure(str(run.path))[0].metrics["accuracy"]
