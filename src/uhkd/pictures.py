"""Pictures of runs, drawn from their folders alone: learning curves, spectra, and the likeness of features."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uhkd.runs import RunFolder, write_atomically
from uhkd.text import shown

_SIZE = (6.0, 4.0)
_CURVES = {
    "val_accuracy": ("validation accuracy (%)", 100),
    "val_agreement": ("agreement with the teacher (%)", 100),
    "val_feature_error": ("error of matched features", 1),
    "val_cka": ("linear CKA with the teacher, deepest level", 1),
}
_LONGEST, _BESIDE = 60, 28  # letters of a label, and of one beside the axis: a file's name may have 255


def draw(run: RunFolder) -> list[Path]:
    """curves.png, spectra.png and cka.png of one run, as far as its files have the numbers; returns what was drawn."""
    made = [draw_curves({run.path.name: [run]}, run.path / "curves.png")]
    arrays = run.read_arrays()
    if "teacher_spectrum_0" in arrays and "student_spectrum_0" in arrays:
        made.append(draw_spectra({run.path.name: run}, run.path / "spectra.png"))
    if "cka_end" in arrays:
        made.append(_draw_cka(arrays, run.path / "cka.png"))
    return made


def draw_curves(groups: Mapping[str, Sequence[RunFolder]], path: Path) -> Path:
    """Validation accuracy over epochs, one line a group: the mean over its runs (seeds), with a band of one sd.

    Where some runs have none, as without labels, the best known number that all have; nothing is drawn without one.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes: Axes = figure.subplots()
    found = {label: [run.read_metrics() for run in runs] for label, runs in groups.items()}
    every = [row for group in found.values() for rows in group for row in rows]
    name = next((name for name in _CURVES if all(name in row for row in every)), "val_accuracy")
    said, factor = _CURVES[name]
    for label, rows in found.items():
        if not all(name in row for seed in rows for row in seed):
            continue
        epochs = [row["epoch"] for row in rows[0]]
        accuracy = factor * np.array([[row[name] for row in seed] for seed in rows])
        (line,) = axes.plot(epochs, accuracy.mean(0), label=_name(label))
        if len(rows) > 1:
            spread = accuracy.std(0, ddof=1)
            axes.fill_between(
                epochs,
                accuracy.mean(0) - spread,
                accuracy.mean(0) + spread,
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
    axes.set(xlabel="epoch", ylabel=said)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return _save(figure, path)


def draw_spectra(runs: Mapping[str, RunFolder], path: Path) -> Path:
    """Energy by frequency radius at every level, each curve divided by its sum: the teacher's and each run's student's.

    Levels are matched by relative depth when the two sides have different numbers of them.
    """
    arrays = {label: run.read_arrays() for label, run in runs.items()}
    first = next(iter(arrays.values()))
    teachers = sum(name.startswith("teacher_spectrum_") for name in first)
    figure = Figure(figsize=(3.2 * teachers, 3.4), layout="constrained")
    for level, axes in enumerate(np.atleast_1d(figure.subplots(1, teachers))):
        _line(axes, first[f"teacher_spectrum_{level}"], "teacher", color="black", linestyle="--")
        for label, found in arrays.items():
            students = sum(name.startswith("student_spectrum_") for name in found)
            nearest = -(-(level + 1) * students // teachers) - 1
            _line(axes, found[f"student_spectrum_{nearest}"][-1], _name(label))
        axes.set(title=f"level {level + 1}", xlabel="frequency (cycles per image)", yscale="log")
        axes.grid(alpha=0.3)
        if level == 0:
            axes.set_ylabel("share of energy")
            axes.legend(fontsize="small")
    return _save(figure, path)


def draw_comparison(pairs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str) -> Path:
    """Accuracy of every method, a panel a pair: each run a dot, the mean a bar across, the best mean on top."""
    tallest = max(len(methods) for methods in pairs.values())
    figure = Figure(figsize=(3.6 * len(pairs) + 0.8, 0.32 * tallest + 1.4), layout="constrained")
    for axes, (pair, methods) in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs.items(), strict=True):
        order = sorted(methods, key=lambda name: float(np.mean(methods[name])))
        for row, name in enumerate(order):
            runs = 100 * np.asarray(methods[name])
            axes.plot(runs, [row] * len(runs), "o", markersize=4, alpha=0.5, color="tab:blue")
            axes.plot([runs.mean()], [row], "|", markersize=14, markeredgewidth=2, color="black")
        axes.set_yticks(range(len(order)), [_name(name, _BESIDE) for name in order])
        axes.set(title=_name(pair), xlabel="accuracy (%)")
        axes.grid(alpha=0.3)
    figure.suptitle(_name(title), fontsize="medium")
    return _save(figure, path)


def _name(words: str, longest: int = _LONGEST) -> str:
    """Words from elsewhere as a label: one short line, no formula between dollars, never hidden from a legend."""
    line = shown(words)
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return f"{' ' * line.startswith('_')}{line}".replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    """Write the picture, whole; a letter that the font does not have is drawn as a box, without a warning for each."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(content, dpi=120, format="png")
    write_atomically(path, content.getvalue())
    return path


def _line(axes: Axes, energy: np.ndarray, label: str, **style: Any) -> None:
    share = np.maximum(energy / max(energy.sum(), 1e-30), 1e-8)
    axes.plot(np.arange(len(share)), share, marker="o", markersize=3, label=label, **style)


def _draw_cka(arrays: Mapping[str, np.ndarray], path: Path) -> Path:
    drawn = [(k, t) for k, t in (("cka_start", "before training"), ("cka_end", "after training")) if k in arrays]
    figure = Figure(figsize=(3.4 * len(drawn), 3.2), layout="constrained")
    for axes, (name, title) in zip(np.atleast_1d(figure.subplots(1, len(drawn))), drawn, strict=True):
        values = arrays[name]
        image = axes.imshow(values, vmin=0, vmax=1, origin="lower", cmap="viridis")
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        axes.set(title=title, xlabel="teacher level", ylabel="student level")
        axes.set_xticks(range(values.shape[1]), [str(i + 1) for i in range(values.shape[1])])
        axes.set_yticks(range(values.shape[0]), [str(i + 1) for i in range(values.shape[0])])
    figure.colorbar(image, ax=figure.axes, label="linear CKA")
    return _save(figure, path)
