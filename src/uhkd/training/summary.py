"""Summary of a finished training: its validation metrics, those of baselines, and the next commands."""

from pathlib import Path
from typing import Any

from uhkd.data.names import may_download
from uhkd.runs.best_epoch import best_epoch
from uhkd.training.progress import format_metrics

KINDS: dict[str, str] = {"linear": "linear probe", "knn": "k-NN"}


def final_summary(facts: dict[str, Any]) -> list[str]:
    """Return lines with the validation of the kept weights and, if there are labels, the accuracy of teachers and baselines.

    facts: content of result.json.
    """
    metrics, teacher = facts["metrics"], facts.get("teacher_metrics")
    accuracy = f"{metrics['val_accuracy']:.2%}" if "val_accuracy" in metrics else None
    best = best_epoch(facts)
    if facts["verb"] == "finetune":
        return [f"{facts['model']}: validation accuracy {accuracy}{f' ({best})' if best else ''}"]
    when = f"of {best}" if best else "after the last epoch"
    if accuracy is None:
        return [f"validation {when}, without labels: {', '.join(format_metrics(metrics))}  {facts['student']}"]
    if "teachers" in facts:
        rows = {
            f"teacher {number}": f"{_percent(fields['teacher_metrics'].get('accuracy'))}  {fields['teacher']}"
            for number, fields in enumerate(facts["teachers"], 1)
        }
    else:
        rows = {"teacher": f"{teacher['accuracy']:.2%}  {facts['teacher']}" if teacher else "not run"}
    probe = facts.get("probe")
    rows |= {"untrained": f"{probe['start']:.2%}"} if probe else dict.fromkeys(("scratch", "kd", "uhkd"), "not run")
    rows |= {facts["method"]: f"{accuracy}  {facts['student']}"}
    by = f", {probe['by']}" if probe else ""
    return [f"validation accuracy {when}{by}:", *(f"  {name:<10} {text}" for name, text in rows.items())]


def _percent(accuracy: float | None) -> str:
    return "not known" if accuracy is None else f"{accuracy:.2%}"


def usage_hints(run: Path, facts: dict[str, Any], *, headless: bool, data: str = "") -> list[str]:
    """Return lines on how to evaluate and use a trained network.

    headless: whether it has no logits. data: name of its data.
    """
    if headless:
        return [
            f"evaluate it with: uhkd eval {run} --data LABELLED_IMAGES --probe knn; view it with: uhkd report {run}",
            f'in Python: model = uhkd.load_run("{run}"); model(images in [0, 1], frozenset({{"embedding"}})).embedding',
        ]
    named = f" --data {data}" if may_download(data) else ""  # `eval` downloads nothing that it was not asked for
    hints = [f"evaluate it with: uhkd eval {run}{named}; view it with: uhkd report {run}"]
    # compare needs runs with one teacher and trained on labels
    labelled = "val_accuracy" in facts["metrics"] and "probe" not in facts
    if facts["verb"] == "distill" and "teachers" not in facts and labelled:
        hints.append(f"train the missing rows with: uhkd compare --pairs {run} --methods scratch kd uhkd")
    return [*hints, f'in Python: model = uhkd.load_run("{run}"); model(images in [0, 1]).logits']
