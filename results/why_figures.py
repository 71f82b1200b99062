"""Figures of what results/why.py measured, drawn from its JSON alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

COLOURS = {
    "teacher": "0.55",
    "kd": "#D55E00",
    "uhkd": "#0072B2",
}  # Okabe and Ito's: distinguishable for colour-blind readers
LABELS = {"teacher": "teacher", "kd": "KD", "uhkd": "UHKD"}


def draw(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """why-PAIR-{cka,bands,error,robustness}.png in a folder, as far as the numbers are there; returns what was drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"cka": cka(found), "bands": bands(found), "error": error(found), "robustness": robustness(found)}
    paths = []
    for name, figure in made.items():
        if figure is not None:
            paths.append(folder / f"why-{found['pair']}-{name}.png")
            figure.savefig(paths[-1], dpi=110)
            with Image.open(paths[-1]) as image:  # 64 colours are plenty, and a third of the bytes
                small = image.convert("RGB").quantize(64)
            small.save(paths[-1], optimize=True)
    return paths


def cka(found: Mapping[str, Any]) -> Figure | None:
    """Likeness of student and teacher levels: before training, after KD, after UHKD; matched levels in bold."""
    own = found["cka"]
    matrices = {"before training": own["uhkd"]["start"], "after KD": own["kd"]["end"], "after UHKD": own["uhkd"]["end"]}
    shown = {name: np.array(values["mean"]) for name, values in matrices.items() if values is not None}
    if not shown:
        return None
    figure = Figure(figsize=(2.7 * len(shown) + 0.8, 3.0), layout="constrained")
    for axes, (name, values) in zip(_panels(figure, len(shown)), shown.items(), strict=True):
        image = axes.imshow(values, vmin=0, vmax=1, origin="lower", cmap="cividis")
        for (row, column), value in np.ndenumerate(values):
            matched = [row, column] in [list(pair) for pair in found["matched"]]
            style = {"fontsize": 9, "fontweight": "bold" if matched else "normal"}
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color="w" if value < 0.55 else "k", **style
            )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("teacher level")
        axes.set_xticks(range(values.shape[1]), [str(i + 1) for i in range(values.shape[1])])
        axes.set_yticks(range(values.shape[0]), [str(i + 1) for i in range(values.shape[0])])
    figure.axes[0].set_ylabel("student level")
    figure.colorbar(image, ax=figure.axes, label="CKA", shrink=0.8)
    return figure


def bands(found: Mapping[str, Any]) -> Figure:
    """Accuracy of the linear probes of each band, a panel a matched level."""
    figure = Figure(figsize=(3.0 * len(found["matched"]), 2.9), layout="constrained")
    for axes, (student, teacher) in zip(_panels(figure, len(found["matched"])), found["matched"], strict=True):
        own = {n: found["bands"][n][teacher if n == "teacher" else student] for n in COLOURS}
        longest = max(own.values(), key=len)
        _bars(axes, list(longest), {n: [values.get(band) for band in longest] for n, values in own.items()})
        axes.axhline(100 / found["data"]["classes"], color="k", linewidth=0.8, linestyle=":")
        axes.set_title(_level(found, student, teacher), fontsize=9)
        axes.set_xlabel("frequency (cycles per image)")
    _alike(figure.axes)
    figure.axes[0].set_ylabel("probe accuracy (%)")
    figure.axes[0].legend(fontsize=8)
    return figure


def error(found: Mapping[str, Any]) -> Figure | None:
    """Above, UHKD's error of each frequency, over training where it was noted more than once; below, spectra."""
    matrices, spectra = found["spectral_error"], found["spectra"]
    if matrices is None:
        return None
    figure = Figure(figsize=(3.0 * len(matrices["levels"]), 5.2), layout="constrained")
    upper, lower = figure.subplots(2, len(matrices["levels"]), squeeze=False)
    hues = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")
    for axes, level, (student, teacher) in zip(upper, matrices["levels"], found["matched"], strict=True):
        mean = np.array(level["error"]["mean"])
        sd = np.zeros_like(mean) if level["error"]["sd"] is None else np.array(level["error"]["sd"])
        for k, band in enumerate(level["bands"]):
            if len(mean) > 1:
                axes.plot(matrices["steps"], mean[:, k], label=band, color=hues[k % 6])
                axes.fill_between(
                    matrices["steps"], mean[:, k] - sd[:, k], mean[:, k] + sd[:, k], color=hues[k % 6], alpha=0.2
                )
            else:
                axes.bar(band, mean[0, k], yerr=sd[0, k] or None, color=hues[k % 6], width=0.6)
        axes.axhline(1, color="k", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, max(1.1, 1.05 * mean.max()))
        axes.set_title(_level(found, student, teacher), fontsize=9)
        axes.set_xlabel("step" if len(mean) > 1 else "frequency (cycles per image)")
    _alike(upper)
    upper[0].set_ylabel("error of the aligned spectrum")
    if len(matrices["steps"]) > 1:
        upper[0].legend(title="frequency", fontsize=8, title_fontsize=8)
    for axes, (student, teacher) in zip(lower, found["matched"], strict=True):
        _spectrum(axes, spectra["uhkd"]["teacher"][teacher], COLOURS["teacher"], "-", "teacher")
        for name in ("kd", "uhkd"):
            _spectrum(axes, spectra[name]["last"][student], COLOURS[name], "-", LABELS[name])
            if len(set(spectra[name]["steps"])) > 1:
                _spectrum(axes, spectra[name]["first"][student], COLOURS[name], ":", f"{LABELS[name]}, first")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("frequency (cycles per image)")
    _alike(lower)
    lower[0].set_ylabel("share of energy")
    lower[0].legend(fontsize=8)
    return figure


def robustness(found: Mapping[str, Any]) -> Figure:
    """Accuracy on changed images, and the share of the accuracy on clean ones that is kept."""
    names = list(found["robustness"]["kd"]["accuracy"])
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = _panels(figure, 2)
    for axes, kind in zip(panels, ("accuracy", "kept"), strict=True):
        _bars(axes, names, {side: [own[kind][name] for name in names] for side, own in found["robustness"].items()})
    panels[0].set_ylabel("accuracy (%)")
    panels[1].set_ylabel("kept of clean accuracy (%)")
    for axes in panels:
        axes.tick_params(axis="x", labelrotation=55)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    panels[0].legend(fontsize=8)
    return figure


def _panels(figure: Figure, count: int) -> Sequence[Axes]:
    return figure.subplots(1, count, squeeze=False)[0]


def _alike(panels: Sequence[Axes]) -> None:
    """One range of y for all panels."""
    lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(lows), max(highs))


def _bars(axes: Axes, names: Sequence[str], matrices: Mapping[str, Sequence[Mapping[str, Any] | None]]) -> None:
    """Grouped bars in percent with sd; nothing where a side lacks a number."""
    width = 0.8 / len(matrices)
    for k, (side, values) in enumerate(matrices.items()):
        at = [i for i, value in enumerate(values) if value is not None]
        own = [value for value in values if value is not None]
        sd = None if any(v["sd"] is None for v in own) else [100 * v["sd"] for v in own]
        places = np.array(at) + (k - (len(matrices) - 1) / 2) * width
        axes.bar(places, [100 * v["mean"] for v in own], width, yerr=sd, color=COLOURS[side], label=LABELS[side])
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _spectrum(axes: Axes, energy: Mapping[str, Any], colour: str, style: str, label: str) -> None:
    share = np.array(energy["mean"]) / max(sum(energy["mean"]), 1e-30)
    # the last bins of a fine grid hold rounding noise, which would take up the panel
    axes.plot(np.where(share > 1e-5, share, np.nan), style, color=colour, marker="o", markersize=3, label=label)


def _level(found: Mapping[str, Any], student: int, teacher: int) -> str:
    grids = ["{1}x{2}".format(*found["levels"][n][i]["shape"]) for n, i in (("uhkd", student), ("teacher", teacher))]
    return f"level {student + 1} ({grids[0]}), teacher's {teacher + 1} ({grids[1]})"
