"""Figures of the features of one group: spectra by level, errors by frequency during the training, CKA with the teacher."""

import numpy as np

from uhkd.reporting.aggregates import by_frequency
from uhkd.reporting.figure_data import Curves, Drawing, Line, Panel
from uhkd.reporting.grouping import MethodGroup
from uhkd.reporting.plots import cka, legend_of_lines, nearest_level, spectra, spectrum

_MAX_LEVELS = 32  # rows of a readable CKA matrix
_MAX_FRAMES = 24  # positions of the slider


def of_group(group: MethodGroup) -> list[Drawing]:
    """Return all figures for which the runs of a group have the arrays."""
    return [drawing for make in (_spectra, _errors, _cka) if (drawing := make(group)) is not None]


def missing_of(group: MethodGroup) -> list[str]:
    """Return the names of the arrays that no run of the group recorded."""
    missing = [] if group.mean_levels("student_spectrum", 2) else ["spectra of the student"]
    if group.method in ("scratch", "finetune"):
        return missing
    if not group.mean_levels("teacher_spectrum", 1):
        missing.append("spectra of the teacher")
    if group.mean_array("cka_end", 2) is None:
        missing.append("CKA after the training")
    if not group.mean_levels("error", 2):
        missing.append(
            "errors by frequency (only for methods that match features in the frequency domain or on a grid)"
        )
    return missing


def _spectra(group: MethodGroup) -> Drawing | None:
    students, starts = group.mean_levels("student_spectrum", 2), group.mean_levels("start_spectrum", 1)
    teachers = group.mean_levels("teacher_spectrum", 1)
    if not students:
        return None
    panels: list[Curves] = []
    shares = []
    levels = len(teachers) or len(students)
    for level in range(levels):
        nearest = nearest_level(level, len(students), levels)
        lines = [spectrum("teacher", teachers[level], "ink", 1)] if teachers else []
        if len(starts) == len(students):
            lines.append(spectrum("student before", starts[nearest], "s2", 2))
        elif len(students[nearest]) > 1:
            lines.append(spectrum("student, first evaluation", students[nearest][0], "s2", 2))
        lines.append(spectrum("student after", students[nearest][-1], "s0", 0))
        title = f"level {level + 1}"
        if nearest != level and teachers:
            title = f"teacher level {level + 1}, student level {nearest + 1}"
        panels.append(spectra(title, lines))
        percent = (f"{line.label} {100 * sum(line.y[1:]) / max(sum(line.y), 1e-30):.0f} %" for line in lines)
        shares.append(f"level {level + 1}: {', '.join(percent)}")
    return Drawing(
        f"{group.key}-spectra",
        "Spectra",
        "The energy of the feature maps by spatial frequency: low frequencies are smooth structure, high frequencies fine "
        "detail. Look whether the student's line is closer to the teacher's dashed line after the training than before.",
        f"Share of the energy above frequency 0. {'; '.join(shares)}.",
        tuple(panels),
        legend=legend_of_lines(panels),
    )


def _errors(group: MethodGroup) -> Drawing | None:
    errors, frequencies = group.mean_levels("error", 2), group.mean_levels("frequency", 1)
    pairs = [(e, f) for e, f in zip(errors, frequencies, strict=False) if e.shape[1] == len(f) and np.isfinite(f).any()]
    steps = group.mean_array("steps", 1)
    if not pairs or steps is None or any(len(e) != len(steps) for e, _ in pairs):
        return None
    indices = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(len(steps), _MAX_FRAMES))})
    frames = [f"step {steps[i]:.0f}" for i in indices]
    panels, means = [], []
    for level, (error, frequency) in enumerate(pairs):
        values, table = by_frequency(error, frequency)
        x = values.tolist()
        lines = [Line("first evaluation", x, table[0].tolist(), "s2", 2)] if len(indices) > 1 else []
        for frame, i in enumerate(indices):
            lines.append(Line(frames[frame], x, table[i].tolist(), "s0", frame=frame))
        lines.append(Line("last evaluation", x, table[-1].tolist(), "s0", 0, faint=True))
        panels.append(Curves(f"level {level + 1}", "cycles per image", "squared error", tuple(lines)))
        means.append(f"level {level + 1}: {table[0].mean():.2f} to {table[-1].mean():.2f}")
    return Drawing(
        f"{group.key}-errors",
        "Error by frequency over the training",
        "The distance of the student's aligned features from the teacher's at each frequency (0: mean of the map). The "
        "slider selects the step of the training. Look which frequencies improve last, and for levels that do not improve: "
        "they have no effect on the student.",
        f"Mean squared error of the aligned coefficients, first to last evaluation. {'; '.join(means)}.",
        tuple(panels),
        frames=tuple(frames),
        legend=(("first evaluation", "s2", 2, None), ("selected step (without scripts: the last)", "s0", 0, None)),
    )


def _cka(group: MethodGroup) -> Drawing | None:
    panels: list[Panel] = []
    means = []
    for name, title in (("cka_start", "before training"), ("cka_end", "after training")):
        values = group.mean_array(name, 2)
        if values is not None and max(values.shape) <= _MAX_LEVELS:
            panels.append(cka(title, values))
            means.append(f"{title}: mean {values.mean():.2f}, last level with last level {values[-1, -1]:.2f}")
    if not panels:
        return None
    return Drawing(
        f"{group.key}-cka",
        "Similarity of all levels (CKA)",
        "Linear CKA (centered kernel alignment): 1 if two levels represent the images with the same similarities, 0 if they "
        "have nothing in common. Look whether the matrix became darker, above all on its diagonal.",
        f"{'; '.join(means)}.",
        tuple(panels),
    )
