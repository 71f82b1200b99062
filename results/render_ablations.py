"""results/search/*.json and the questions of results/ablations.yaml -> docs/ablations.md (see render.py)."""

import json
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from uhkd.commands.comparing.tables import markdown

HERE = Path(__file__).resolve().parent
Found = dict[tuple[str, str], dict[int, float]]  # (pair, variant) -> seed -> accuracy


def searched() -> dict[str, dict[str, Any]]:
    """All comparisons of the search, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((HERE / "search").glob("*.json"))}


def ablations() -> str:
    """The page: one question after the other, each with its table and its result."""
    content, fields = searched(), yaml.safe_load((HERE / "ablations.yaml").read_text())
    found, pairs = gathered(content)
    commits = sorted({run["commit"] for summary in content.values() for run in summary["runs"]})
    blocks = ["# Ablations", fields["head"].strip(), markdown(_pairs(pairs))]
    for question in fields["questions"]:
        blocks += [f"## {question['question']}", question["answer"].strip()]
        if "rows" in question:
            shown = [pair for pair in pairs if pair in question.get("pairs", pairs)]
            blocks.append(markdown(table(found, shown, question["rows"])))
        if "gradients" in question:
            blocks.append(markdown(pulls(question["gradients"])))
    blocks.append(
        f"Written by `results/render.py` from {len(content)} files in [`results/search`](../results/search) and "
        f"`results/ablations.yaml`; {len({(p, v) for p, v in found})} cells, {sum(map(len, found.values()))} trainings; commits "
        f"{', '.join(commits)}."
    )
    return "\n\n".join(blocks) + "\n"


def gathered(content: dict[str, dict[str, Any]]) -> tuple[Found, dict[str, dict[str, Any]]]:
    """Accuracies by pair, variant and seed over all files, and each pair's facts.

    Raises:
        ValueError: when one name means two settings, or one training has two results.
    """
    found: Found = {}
    meant: dict[tuple[str, str], Any] = {}
    pairs: dict[str, dict[str, Any]] = {}
    for file, summary in content.items():
        if summary["part"] != "val":
            raise ValueError(f"{file} was measured on the test part, which no search may read")
        for name, own in summary["pairs"].items():
            pairs.setdefault(_name(name, own), own)
        for run in summary["runs"]:
            key = (_name(run["pair"], summary["pairs"][run["pair"]]), run["method"])
            # runs from before the option do not record it and would differ from those that record its default
            differs = {k: v for k, v in run["differs"].items() if (k, v) != ("weights_schedule", "constant")}
            fields = [*(run[name] for name in ("joined", "settings", "weights", "lr")), differs]
            if meant.setdefault(key, fields) != fields:
                raise ValueError(f"{file}: {key} is {fields}, and elsewhere {meant[key]}")
            seeds = found.setdefault(key, {})
            if seeds.setdefault(run["seed"], run["accuracy"]) != run["accuracy"]:
                raise ValueError(f"{file}: {key} with seed {run['seed']} has another result than elsewhere")
    return found, pairs


def table(found: Found, pairs: list[str], rows: dict[str, str]) -> list[list[str]]:
    """Accuracy of each variant, pair by pair; pairs that ran fewer than two of them show no difference and are left out."""
    ran = Counter(pair for pair, variant in found if variant in rows.values())
    pairs = [pair for pair in pairs if ran[pair] > 1]
    lines = [["", *pairs]]
    for label, variant in rows.items():
        if not any((pair, variant) in found for pair in pairs):
            raise ValueError(f"no file in results/search has a variant {variant!r}")
        lines.append([str(label), *(_cell(found.get((pair, variant))) for pair in pairs)])
    return lines


def pulls(names: dict[str, str]) -> list[list[str]]:
    """Of each term of a training: its gradient's norm relative to the cross-entropy's, and their cosine, during training."""
    lines: list[list[str]] = []
    for pair, name in names.items():
        rows = json.loads((HERE / "search" / "gradients" / f"{name}.json").read_text())["rows"]
        shown = [rows[0], rows[len(rows) // 2], rows[-1]]
        lines = lines or [["pair", "term", *(f"epoch {row['epoch']:.1f}" for row in shown)]]
        for term in shown[0]["norm"]:
            cells = [
                f"{row['norm'][term] / row['norm']['ce']:.2f} ({row['cosine_with_ce'][term]:+.2f})" for row in shown
            ]
            if term != "ce":
                lines.append([pair, term, *cells])
    return lines


def _cell(seeds: dict[int, float] | None) -> str:
    if not seeds:
        return "not run"
    values = [100 * value for value in seeds.values()]
    if len(values) == 1:
        return f"{values[0]:.1f} (one seed)"
    return f"{fmean(values):.1f} ± {stdev(values):.1f} ({len(values)})"


def _name(pair: str, own: dict[str, Any]) -> str:
    """Teachers of one architecture are distinguished by their accuracy."""
    teacher = own["teacher"]
    return f"{teacher['name'].removeprefix('uhkd/')} ({100 * teacher['accuracy']:.1f}) -> {pair}"


def _pairs(pairs: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = [["teacher (accuracy, %) -> student's recipe", "training images", "epochs", "optimiser"]]
    for name, own in pairs.items():
        recipe = own["recipe"]
        lines.append(
            [
                name,
                f"{own['train_images']:,}",
                str(recipe["epochs"]),
                recipe["optimizer"],
            ]
        )
    return lines
