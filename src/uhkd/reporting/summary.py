"""The sentence above each table: what the group in focus gained."""

from uhkd.console import join, pluralize
from uhkd.reporting.grouping import MethodGroup, StudentGroup
from uhkd.reporting.health import calibration_messages
from uhkd.reporting.run_data import Run, number, text
from uhkd.reporting.stats import paired_difference

_MAX_LENGTH = 90  # characters of a value from a run folder in a table cell


def summary_sentence(student_group: StudentGroup) -> str:
    """Return the accuracy of the group in focus and its gain over the baseline, paired by seed, with the number of seeds."""
    focus, base, accuracy = student_group.focus, student_group.baseline, student_group.focus.metric("val_accuracy")
    if accuracy is None:
        return _without_accuracy(focus)
    sentence = f"{focus.label} classifies {100 * accuracy.mean:.1f} % of the validation images correctly"
    if evaluator := evaluator_of(focus):
        start = focus.mean_std(lambda run: run.evaluator[1] if run.evaluator else None)
        if start is not None:
            gain = 100 * (accuracy.mean - start.mean)
            evaluator += f": {gain:+.1f} points against the untrained student ({100 * start.mean:.1f} %)"
        return f"{sentence} by {evaluator}.{_teacher_sentence(focus)}"
    sentence += _teacher_accuracies(focus)
    if base is None:
        return f"{sentence}. Without the same network trained on labels alone (--method scratch) the gain is unknown."
    ours, theirs = focus.by_seed(), base.by_seed()
    shared = sorted(ours.keys() & theirs.keys())
    difference = paired_difference(
        *({seed: runs[seed].metric("val_accuracy") or 0.0 for seed in shared} for runs in (ours, theirs))
    )
    if difference is None:
        return f"{sentence}. It and {base.label} have no seed in common, so their difference is not paired."
    seeds = pluralize(difference.seeds, "seed")
    base_epochs, epochs = (sorted({_epochs(runs[seed]) for seed in shared}) for runs in (theirs, ours))
    if base_epochs != epochs:
        unit = "epoch" if base_epochs == [1] else "epochs"
        base_counts, counts = (join([*map(str, lengths)]) for lengths in (base_epochs, epochs))
        return (
            f"{sentence}: {difference.mean:+.1f} points against {base.label} ({seeds}), but {base.label} trained "
            f"{base_counts} {unit}, {focus.label} {counts}."
        )
    width = f" ± {difference.half:.1f}" if difference.half is not None and difference.seeds > 2 else ""
    return f"{sentence}: {difference.mean:+.1f}{width} points against {base.label} ({seeds}: {difference.conclusion})."


def calibration_sentence(group: MethodGroup) -> str:
    """Return a sentence on the probabilities of the first run that has a temperature, with a leading space; else ""."""
    for run in group.runs:
        before, after = (number(run.calibration, part, "gap", "value") for part in ("before", "after"))
        temperature = number(run.calibration, "temperature")
        if before is None or after is None or temperature is None:
            continue
        warning = "".join(f" Health: {message}." for message in calibration_messages(run.calibration))
        if reason := text(run.calibration.get("reason"), ""):
            return f" No temperature was fitted ({cut(reason)}).{warning}"
        return (
            f" With its temperature of {temperature:.3g}, confidence minus accuracy is {100 * after:+.1f} points on held-out "
            f"images, {100 * before:+.1f} without.{warning}"
        )
    return ""


def _without_accuracy(focus: MethodGroup) -> str:
    if focus.failure is not None:
        return f"{focus.label} has failed: {cut(focus.failure, 300)}"
    if not any(run.rows for run in focus.runs):
        return f"{focus.label} has not been validated yet."
    if not any(run.unlabelled for run in focus.runs):
        return f"{focus.label} has no recorded accuracy."
    metrics = (
        ("val_agreement", "{:.1f} % agreement with its teacher", 100),
        ("val_feature_error", "feature error {:.3f}", 1),
        ("val_cka", "CKA with its teacher {:.3f}", 1),
    )
    recorded = [text.format(scale * s.mean) for name, text, scale in metrics if (s := focus.metric(name)) is not None]
    similarity = f": {', '.join(recorded)} on the validation images" if recorded else ""
    return (
        f"{focus.label} was trained without labels, and no labelled images evaluate it (--probe-data){similarity}."
        f"{_teacher_sentence(focus)}"
    )


def evaluator_of(group: MethodGroup) -> str | None:
    """Return the probe that measured the accuracy of a group, or None where the network's own head did."""
    return next((run.evaluator[0] for run in group.runs if run.evaluator is not None), None)


def _teacher_accuracies(group: MethodGroup) -> str:
    """Return a clause with the teachers and their accuracies; for one teacher, only if its accuracy was recorded."""
    accuracies = [(t.name, t.metrics.get("accuracy")) for t in group.teachers]
    if len(accuracies) == 1:
        return "" if accuracies[0][1] is None else f", its teacher {100 * accuracies[0][1]:.1f} %"
    names = [f"{name} {'(accuracy not recorded)' if a is None else f'{100 * a:.1f} %'}" for name, a in accuracies]
    return f", its teachers {join(names)}" if names else ""


def _teacher_sentence(group: MethodGroup) -> str:
    names = [t.name for t in group.teachers]
    return f" Its teacher{'s are' if len(names) > 1 else ' is'} {join(names)}." if names else ""


def _epochs(run: Run) -> int:
    return round((number(run.rows[-1], "epoch") if run.rows else number(run.recipe, "epochs")) or 0)


def cut(text: str, longest: int = _MAX_LENGTH) -> str:
    """Return a text of at most `longest` characters, ending in an ellipsis where it was longer."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
