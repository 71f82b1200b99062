"""The figures of one group's features: spectra by level, errors by frequency over the training, and CKA with the teacher."""

import numpy as np

from uhkd.reporting.aggregates import by_frequency
from uhkd.reporting.figure_data import Curves, Drawing, Line, Panel
from uhkd.reporting.grouping import MethodGroup
from uhkd.reporting.plots import cka, spectrum

_MOST_LEVELS = 32  # cells of a row that can be told apart
_MOST_FRAMES = 24  # places of the slider: evaluations between are left out


def of_group(group: MethodGroup) -> list[Drawing]:
    """Every figure that the runs of a group have the arrays for."""
    return [drawn for make in (_spectra, _errors, _cka) if (drawn := make(group)) is not None]


def missing_of(group: MethodGroup) -> list[str]:
    """What a reader would look for and no run of the group recorded, and why that may be."""
    found = []
    if not group.mean_levels("student_spectrum", 2):
        found.append("spectra of the student")
    if group.method in ("scratch", "finetune"):
        return found
    if not group.mean_levels("teacher_spectrum", 1):
        found.append("spectra of the teacher")
    if group.mean_array("cka_end", 2) is None:
        found.append("CKA after the training")
    if not group.mean_levels("error", 2):
        found.append(
            "errors by frequency (only methods that match features in the frequency domain or on a grid have them)"
        )
    return found


def _spectra(group: MethodGroup) -> Drawing | None:
    students, starts = group.mean_levels("student_spectrum", 2), group.mean_levels("start_spectrum", 1)
    teachers = group.mean_levels("teacher_spectrum", 1)
    if not students:
        return None
    panels: list[Curves] = []
    levels = max(len(teachers), 1) if teachers else len(students)
    gaps = []
    for level in range(levels):
        lines = []
        near = -(-(level + 1) * len(students) // levels) - 1  # matched by relative depth
        if teachers:
            lines.append(spectrum("teacher", teachers[level], "ink", 1))
        if len(starts) == len(students):
            lines.append(spectrum("student before", starts[near], "s2", 2))
        elif len(students[near]) > 1:
            lines.append(spectrum("student, first evaluation", students[near][0], "s2", 2))
        lines.append(spectrum("student after", students[near][-1], "s0", 0))
        title = (
            f"level {level + 1}"
            if near == level or not teachers
            else f"teacher level {level + 1}, student level {near + 1}"
        )
        panels.append(Curves(title, "cycles per image", "share of energy", tuple(lines), log=True))
        gaps.append(f"level {level + 1}: " + ", ".join(f"{line.label} {100 * _high(line):.0f} %" for line in lines))
    drawn = dict.fromkeys((line.label, line.hue, line.dash, None) for panel in panels for line in panel.lines)
    return Drawing(
        f"{group.key}-spectra",
        "Spectra",
        "How the energy of the feature maps spreads over spatial frequencies: left the smooth parts, right the fine ones. "
        "Look whether the student's line after training came nearer to the teacher's dashed one than before.",
        f"Share of the energy above frequency 0. {'; '.join(gaps)}.",
        tuple(panels),
        legend=tuple(drawn),
    )


def _high(line: Line) -> float:
    return float(sum(line.y[1:]) / max(sum(line.y), 1e-30))


def _errors(group: MethodGroup) -> Drawing | None:
    errors, frequencies = group.mean_levels("error", 2), group.mean_levels("frequency", 1)
    pairs = [(e, f) for e, f in zip(errors, frequencies, strict=False) if e.shape[1] == len(f) and np.isfinite(f).any()]
    steps = group.mean_array("steps", 1)
    if not pairs or steps is None or any(len(e) != len(steps) for e, _ in pairs):
        return None
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(len(steps), _MOST_FRAMES))})
    panels, captions = [], []
    for level, (error, frequency) in enumerate(pairs):
        values, table = by_frequency(error, frequency)
        xs = values.tolist()
        lines = [Line("first evaluation", xs, table[0].tolist(), "s2", 2)] if len(chosen) > 1 else []
        lines += [
            Line(f"step {steps[t]:.0f}", xs, table[t].tolist(), "s0", frame=frame) for frame, t in enumerate(chosen)
        ]
        lines.append(Line("last evaluation", xs, table[-1].tolist(), "s0", 0, faint=True))
        panels.append(Curves(f"level {level + 1}", "cycles per image", "squared error", tuple(lines)))
        captions.append(f"level {level + 1}: {table[0].mean():.2f} to {table[-1].mean():.2f}")
    return Drawing(
        f"{group.key}-errors",
        "Error by frequency over the training",
        "How far the student's aligned features are from the teacher's at each frequency (0: mean of the map). The "
        "slider moves through the training. Look which frequencies fall last, and whether any level stays where it "
        "began: that level taught nothing.",
        f"Mean squared error of the aligned coefficients, first to last evaluation. {'; '.join(captions)}.",
        tuple(panels),
        frames=tuple(f"step {steps[t]:.0f}" for t in chosen),
        legend=(("first evaluation", "s2", 2, None), ("at the slider (without scripts: the last)", "s0", 0, None)),
    )


def _cka(group: MethodGroup) -> Drawing | None:
    panels: list[Panel] = []
    captions = []
    for name, title in (("cka_start", "before training"), ("cka_end", "after training")):
        values = group.mean_array(name, 2)
        if values is None or max(values.shape) > _MOST_LEVELS:
            continue
        panels.append(cka(title, values))
        captions.append(f"{title}: mean {values.mean():.2f}, last level with last level {values[-1, -1]:.2f}")
    if not panels:
        return None
    return Drawing(
        f"{group.key}-cka",
        "Likeness of all levels (CKA)",
        "Linear CKA: 1 where a level of the student orders the images as that of the teacher does, 0 where they have "
        "nothing in common. Look whether the matrix became darker, and along its diagonal most.",
        f"{'; '.join(captions)}.",
        tuple(panels),
    )
