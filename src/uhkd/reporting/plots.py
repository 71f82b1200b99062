"""Pictures of runs, drawn from their folders alone: learning curves, spectra, and the likeness of features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uhkd.reporting.draw import images
from uhkd.reporting.figure_data import Bar, Bars, Curves, Heat, Legend, Line, Panel, hue_of
from uhkd.runs import RunFolder, write_atomically

_CURVES = {
    "val_accuracy": ("validation accuracy (%)", 100),
    "val_agreement": ("agreement with the teacher (%)", 100),
    "val_feature_error": ("error of matched features", 1),
    "val_cka": ("linear CKA with the teacher, deepest level", 1),
}


def draw(run: RunFolder) -> list[Path]:
    """curves.png, spectra.png and cka.png of one run, as far as its files have the numbers; returns what was drawn."""
    made = [draw_curves({run.path.name: [run]}, run.path / "curves.png")]
    arrays = run.read_arrays()
    if "teacher_spectrum_0" in arrays and "student_spectrum_0" in arrays:
        made.append(draw_spectra({run.path.name: run}, run.path / "spectra.png"))
    if "cka_end" in arrays:
        matrices = {"before training": arrays.get("cka_start"), "after training": arrays["cka_end"]}
        panels = [cka(title, values) for title, values in matrices.items() if values is not None]
        made.append(_write(run.path / "cka.png", panels, "Linear CKA"))
    return made


def draw_curves(groups: Mapping[str, Sequence[RunFolder]], path: Path) -> Path:
    """Validation accuracy over epochs, one line a group: the mean over its runs (seeds), with a band of one sd.

    Where some runs have none, as without labels, the best known number that all have; nothing is drawn without one.
    """
    found = {label: [run.read_metrics() for run in runs] for label, runs in groups.items()}
    every = [row for group in found.values() for rows in group for row in rows]
    name = next((name for name in _CURVES if all(name in row for row in every)), "val_accuracy")
    title, factor = _CURVES[name]
    lines = []
    for (label, rows), (_, hue, dash, _) in zip(found.items(), _legend(found), strict=True):
        if not all(name in row for seed in rows for row in seed):
            continue
        values = factor * np.array([[row[name] for row in seed] for seed in rows])
        mean, sd = values.mean(0), values.std(0, ddof=1) if len(rows) > 1 else None
        band = None if sd is None else ((mean - sd).tolist(), (mean + sd).tolist())
        lines.append(Line(label, [row["epoch"] for row in rows[0]], mean.tolist(), hue, dash, band))
    return _write(path, [Curves("", "epoch", title, tuple(lines))], legend=_legend(found) if lines else ())


def draw_spectra(runs: Mapping[str, RunFolder], path: Path) -> Path:
    """Energy by frequency radius at every level, each curve divided by its sum: the teacher's and each run's student's.

    Levels are matched by relative depth when the two sides have different numbers of them.
    """
    arrays = {label: run.read_arrays() for label, run in runs.items()}
    first = next(iter(arrays.values()))
    teachers = sum(name.startswith("teacher_spectrum_") for name in first)
    panels = []
    for level in range(teachers):
        lines = [spectrum("teacher", first[f"teacher_spectrum_{level}"], "ink", 1)]
        for found, (label, hue, dash, _) in zip(arrays.values(), _legend(runs), strict=True):
            students = sum(name.startswith("student_spectrum_") for name in found)
            nearest = -(-(level + 1) * students // teachers) - 1
            lines.append(spectrum(label, found[f"student_spectrum_{nearest}"][-1], hue, dash))
        panels.append(Curves(f"level {level + 1}", "cycles per image", "share of energy", tuple(lines), log=True))
    return _write(path, panels, legend=(("teacher", "ink", 1, None), *_legend(runs)))


def draw_comparison(pairs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str) -> Path:
    """Accuracy of every method, a panel a pair: each run a dot, the mean a bar across, the best mean on top."""
    panels = []
    for pair, methods in pairs.items():
        percent = {name: 100 * np.asarray(values) for name, values in methods.items()}
        order = sorted(percent, key=lambda name: -percent[name].mean())
        rows = (
            Bar(name, ((mean := float(percent[name].mean()), "s1", f"{mean:.1f}"),), tuple(percent[name].tolist()))
            for name in order
        )
        panels.append(Bars(pair, "accuracy (%)", tuple(rows), as_dots=True))
    return _write(path, panels, title)


def cka(title: str, values: np.ndarray) -> Heat:
    """CKA of (student levels, teacher levels) as a panel."""
    rows, columns = (tuple(str(i + 1) for i in range(n)) for n in values.shape)
    return Heat(title, "teacher level", "student level", rows, columns, values.tolist(), 0.0, 1.0)


def spectrum(label: str, energy: np.ndarray, hue: str, dash: int) -> Line:
    """The share of the energy (radii,) at each frequency radius as a line."""
    share = np.maximum(energy / max(energy.sum(), 1e-30), 1e-8)
    return Line(label, [float(radius) for radius in range(len(share))], share.tolist(), hue, dash)


def _legend(labels: Mapping[str, object]) -> Legend:
    hues = (hue_of(label, i) for i, label in enumerate(labels))
    return tuple((label, f"s{hue}", dash, None) for label, (hue, dash) in zip(labels, hues, strict=True))


def _write(path: Path, panels: Sequence[Panel], title: str = "", legend: Legend = ()) -> Path:
    write_atomically(path, *images(["png"], panels, title, legend))
    return path
