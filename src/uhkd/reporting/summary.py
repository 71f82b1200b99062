"""What may be said of the student in focus, in a sentence or two."""

from uhkd.reporting.grouping import MethodGroup, StudentGroup
from uhkd.reporting.run_data import Run, number
from uhkd.reporting.stats import paired_difference

_LONGEST = 90  # letters of words from elsewhere in a cell


def verdict(family: StudentGroup) -> str:
    """One sentence on what the focus gained on the baseline, paired by seed, and what that rests on."""
    focus, base, own = family.focus, family.baseline, family.focus.metric("val_accuracy")
    if own is None:
        return _without_accuracy(focus)
    sentence = f"{focus.label} names {100 * own.mean:.1f} % of the validation images right"
    if evaluator := evaluator_of(focus):
        start = focus.spread(lambda run: run.evaluator[1] if run.evaluator else None)
        gained = "" if start is None else f": {100 * (own.mean - start.mean):+.1f} points against"
        before = "" if start is None else f"{gained} the untrained student ({100 * start.mean:.1f} %)"
        return f"{sentence} by {evaluator}{before}.{_teacher_of_group(focus)}"
    sentence += _teacher_clause(focus)
    if base is None:
        return f"{sentence}. Without the same network from labels alone (--method scratch) nobody can say what the teacher gave."
    ours, theirs = focus.by_seed(), base.by_seed()
    shared = sorted(ours.keys() & theirs.keys())
    found = paired_difference(
        *({seed: runs[seed].metric("val_accuracy") or 0.0 for seed in shared} for runs in (ours, theirs))
    )
    if found is None:
        return f"{sentence}. It and {base.label} have no seed in common, so their difference is not paired."
    s = "s" if found.seeds > 1 else ""
    lengths = [sorted({_epochs(runs[seed]) for seed in shared}) for runs in (theirs, ours)]
    if lengths[0] != lengths[1]:
        return (
            f"{sentence}: {found.mean:+.1f} points against {base.label} ({found.seeds} seed{s}), but {base.label} trained "
            f"{_counted(lengths[0])}, {focus.label} {_counted(lengths[1], '')}."
        )
    width = f" ± {found.half:.1f}" if found.half is not None and found.seeds > 2 else ""
    return f"{sentence}: {found.mean:+.1f}{width} points against {base.label} ({found.seeds} seed{s}: {found.verdict})."


def _without_accuracy(focus: MethodGroup) -> str:
    """What is known of a student that has no accuracy."""
    if focus.failure is not None:
        return f"{focus.label} has failed: {cut(focus.failure, 300)}"
    if not any(run.rows for run in focus.runs):
        return f"{focus.label} has not been validated yet."
    if not any(run.unlabelled for run in focus.runs):
        return f"{focus.label} has no accuracy on record."
    forms = (
        ("val_agreement", "{:.1f} % agreement with its teacher", 100),
        ("val_feature_error", "feature error {:.3f}", 1),
    )
    forms += (("val_cka", "CKA with its teacher {:.3f}", 1),)
    known = [form.format(scale * s.mean) for name, form, scale in forms if (s := focus.metric(name)) is not None]
    alike = f": {', '.join(known)} on the validation images" if known else ""
    return (
        f"{focus.label} learned without labels, and no labelled images evaluate it (--probe-data){alike}."
        f"{_teacher_of_group(focus)}"
    )


def evaluator_of(group: MethodGroup) -> str | None:
    """What the accuracy of a group is by, where it is a probe's."""
    return next((run.evaluator[0] for run in group.runs if run.evaluator is not None), None)


def _teacher_clause(group: MethodGroup) -> str:
    """Its teachers with their accuracies, where one is known."""
    known = [(t.name, t.metrics.get("accuracy")) for t in group.teachers]
    if len(known) == 1:
        return "" if known[0][1] is None else f", its teacher {100 * known[0][1]:.1f} %"
    names = [f"{name} {'(accuracy not recorded)' if a is None else f'{100 * a:.1f} %'}" for name, a in known]
    return f", its teachers {' and '.join(names)}" if names else ""


def _teacher_of_group(group: MethodGroup) -> str:
    """A sentence on whom it learned from."""
    names = [t.name for t in group.teachers]
    return f" It learned from {' and '.join(names)}." if names else ""


def _epochs(run: Run) -> int:
    """Epochs that a run has trained."""
    return round((number(run.rows[-1], "epoch") if run.rows else number(run.recipe, "epochs")) or 0)


def _counted(epochs: list[int], unit: str = " epochs") -> str:
    return " and ".join(map(str, epochs)) + (" epoch" if unit and epochs == [1] else unit)


def cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
