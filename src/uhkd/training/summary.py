"""What a training says at its end: its numbers beside those of the baselines, and what can be done with it."""

from pathlib import Path
from typing import Any

from uhkd.training.progress import FORMS

KINDS: dict[str, str] = {"linear": "linear probe", "knn": "k-NN"}


def final_summary(facts: dict[str, Any]) -> list[str]:
    """Validation after the last epoch beside the baselines, a line each; what was not run says so."""
    metrics = facts["metrics"]
    own = f"{metrics['val_accuracy']:.2%}" if "val_accuracy" in metrics else None
    if facts["verb"] == "finetune":
        return [f"{facts['model']}: validation accuracy {own}"]
    if own is None:
        found = ", ".join(
            f"{name.replace('_', ' ')} {metrics[f'val_{name}']:{form}}"
            for name, form in FORMS.items()
            if f"val_{name}" in metrics
        )
        return [f"validation after the last epoch, without labels: {found}  {facts['student']}"]
    teacher = facts.get("teacher_metrics")
    rows = {"teacher": f"{teacher['accuracy']:.2%}  {facts['teacher']}" if teacher else "not run"}
    if "teachers" in facts:
        measured = [(one, one["teacher_metrics"].get("accuracy")) for one in facts["teachers"]]
        rows = {
            f"teacher {number}": f"{'not known' if found is None else f'{found:.2%}'}  {one['teacher']}"
            for number, (one, found) in enumerate(measured, 1)
        }
    probed = facts.get("probe")
    others = {"untrained": f"{probed['start']:.2%}"} if probed else dict.fromkeys(("scratch", "kd", "uhkd"), "not run")
    rows |= others | {facts["method"]: f"{own}  {facts['student']}"}
    by = f", {probed['by']}" if probed else ""
    return [f"validation accuracy after the last epoch{by}:", *(f"  {name:<10} {text}" for name, text in rows.items())]


def usage_hints(run: Path, facts: dict[str, Any], *, headless: bool) -> list[str]:
    """How a trained network is measured and used, a line each; `compare` takes runs of one teacher that learned from labels."""
    if headless:
        return [
            f"measure it with: uhkd eval {run} --data LABELLED_IMAGES --probe knn; look at it with: uhkd report {run}",
            f'in Python: model = uhkd.load_run("{run}"); model(images in [0, 1], frozenset({{"embedding"}})).embedding',
        ]
    labelled = "val_accuracy" in facts["metrics"] and "probe" not in facts
    comparable = facts["verb"] == "distill" and "teachers" not in facts and labelled
    others = f"rows that are not run: uhkd compare --pairs {run} --methods scratch kd uhkd"
    return [
        f"measure it with: uhkd eval {run}; look at it with: uhkd report {run}",
        *([others] if comparable else []),
        f'in Python: model = uhkd.load_run("{run}"); model(images in [0, 1]).logits',
    ]
