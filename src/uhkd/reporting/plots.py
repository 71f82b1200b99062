"""Plots of run folders as PNG files: learning curves, spectra, and CKA."""

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
    """Write curves.png, spectra.png and cka.png of a run, as far as it has the data, and return their paths."""
    paths = [draw_curves({run.path.name: [run]}, run.path / "curves.png")]
    arrays = run.read_arrays()
    if "teacher_spectrum_0" in arrays and "student_spectrum_0" in arrays:
        paths.append(draw_spectra({run.path.name: run}, run.path / "spectra.png"))
    if "cka_end" in arrays:
        matrices = {"before training": arrays.get("cka_start"), "after training": arrays["cka_end"]}
        panels = [cka(title, values) for title, values in matrices.items() if values is not None]
        paths.append(_write(run.path / "cka.png", panels, "Linear CKA"))
    return paths


def draw_curves(groups: Mapping[str, Sequence[RunFolder]], path: Path) -> Path:
    """Plot validation accuracy over epochs: one line per group, the mean over its runs (seeds) with a band of one sd.

    If some runs have no accuracy (trained without labels), plot the first metric of `_CURVES` that all have, or nothing.
    """
    metrics = {label: [run.read_metrics() for run in runs] for label, runs in groups.items()}
    rows = [row for group in metrics.values() for run in group for row in run]
    name = next((name for name in _CURVES if all(name in row for row in rows)), "val_accuracy")
    title, factor = _CURVES[name]
    lines = []
    for (label, seeds), (_, hue, dash, _) in zip(metrics.items(), _legend(metrics), strict=True):
        if not all(name in row for seed in seeds for row in seed):
            continue
        values = factor * np.array([[row[name] for row in seed] for seed in seeds])
        mean, sd = values.mean(0), values.std(0, ddof=1) if len(seeds) > 1 else None
        band = None if sd is None else ((mean - sd).tolist(), (mean + sd).tolist())
        lines.append(Line(label, [row["epoch"] for row in seeds[0]], mean.tolist(), hue, dash, band))
    return _write(path, [Curves("", "epoch", title, tuple(lines))], legend=_legend(metrics) if lines else ())


def draw_spectra(runs: Mapping[str, RunFolder], path: Path) -> Path:
    """Plot the share of energy by frequency radius at every level, for the teacher and the student of each run.

    Levels are matched by relative depth if teacher and student have different numbers of levels.
    """
    arrays = {label: run.read_arrays() for label, run in runs.items()}
    first = next(iter(arrays.values()))
    teachers = sum(name.startswith("teacher_spectrum_") for name in first)
    panels = []
    for level in range(teachers):
        lines = [spectrum("teacher", first[f"teacher_spectrum_{level}"], "ink", 1)]
        for student, (label, hue, dash, _) in zip(arrays.values(), _legend(runs), strict=True):
            students = sum(name.startswith("student_spectrum_") for name in student)
            nearest = nearest_level(level, students, teachers)
            lines.append(spectrum(label, student[f"student_spectrum_{nearest}"][-1], hue, dash))
        panels.append(spectra(f"level {level + 1}", lines))
    return _write(path, panels, legend=legend_of_lines(panels))


def draw_comparison(pairs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str) -> Path:
    """Plot the accuracy of every method, one panel per pair: runs as dots, their mean as a bar, sorted by the mean."""
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
    """Return a panel of CKA values of shape (student levels, teacher levels)."""
    rows, columns = (tuple(str(i + 1) for i in range(n)) for n in values.shape)
    return Heat(title, "teacher level", "student level", rows, columns, values.tolist(), 0.0, 1.0)


def spectrum(label: str, energy: np.ndarray, hue: str, dash: int) -> Line:
    """Return a line of the share of the energy at each frequency radius; energy has shape (radii,)."""
    share = np.maximum(energy / max(energy.sum(), 1e-30), 1e-8)
    return Line(label, [float(radius) for radius in range(len(share))], share.tolist(), hue, dash)


def spectra(title: str, lines: Sequence[Line]) -> Curves:
    """Return a panel of lines made by `spectrum`."""
    return Curves(title, "cycles per image", "share of energy", tuple(lines), log=True)


def nearest_level(level: int, students: int, teachers: int) -> int:
    """Return the level of the student with the relative depth of a teacher's level, both from 0; given are their numbers."""
    return -(-(level + 1) * students // teachers) - 1


def legend_of_lines(panels: Sequence[Curves]) -> Legend:
    """Return an entry for each different line of some panels."""
    return tuple(dict.fromkeys((line.label, line.hue, line.dash, None) for panel in panels for line in panel.lines))


def _legend(labels: Mapping[str, object]) -> Legend:
    hues = (hue_of(label, i) for i, label in enumerate(labels))
    return tuple((label, f"s{hue}", dash, None) for label, (hue, dash) in zip(labels, hues, strict=True))


def _write(path: Path, panels: Sequence[Panel], title: str = "", legend: Legend = ()) -> Path:
    write_atomically(path, *images(["png"], panels, title, legend))
    return path
