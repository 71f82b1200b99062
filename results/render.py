"""results/*.json -> docs/results.md and the table in README.md. With --check: fail when they are not up to date."""

import json
import sys
from pathlib import Path
from typing import Any

from uhkd.commands.summary import markdown, table, verdicts

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: written by results/render.py -->", "<!-- end of results -->"
SHORT = {"fp32": "float32", "bf16": "bfloat16"}


def summaries() -> dict[str, dict[str, Any]]:
    """All committed results, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}


def section(name: str, summary: dict[str, Any]) -> str:
    """One table with what it rests on."""
    facts, teacher = summary["environment"], summary["teacher"]
    versions = ", ".join(f"{k} {facts['versions'][k]}" for k in ("torch", "timm"))
    where = facts["gpu"] or f"{facts['cpu_cores']} CPU cores, {facts['threads']} thread a run"
    own = teacher["recipe"]
    part = "held-out part of the training images" if summary["part"] == "val" else "test part"
    commits = sorted({run["commit"] or "unknown" for run in summary["runs"]} | {teacher["commit"] or "unknown"})
    lines = [
        f"## {summary['title']}",
        markdown(table(summary)),
        "\n".join(f"- {line}" for line in verdicts(summary)),
        f"Measured on the {part} after the last epoch; "
        f"{summary['data']['train_images']} training images for students, {teacher['train_images']} for the teacher "
        f"({own['model']}, {teacher['parameters'] / 1e6:.2f} M parameters, {own['epochs']} epochs). {where}; {versions}; "
        f"commits {', '.join(commits)}. "
        f"File: [`results/{name}`](../results/{name}).",
        "\n".join(
            f"- `{student}`: {r['epochs']} epochs, batch {r['batch_size']}, {r['optimizer']} lr {r['lr']:g}, "
            f"weight decay {r['weight_decay']:g}, "
            f"label smoothing {r['label_smoothing']:g}, crop {r['crop']}, {SHORT.get(r['precision'], r['precision'])}"
            for student, r in summary["recipes"].items()
        ),
    ]
    return "\n\n".join(lines)


def pages() -> dict[Path, str]:
    """Every file this script writes, with its content."""
    found = summaries()
    head = (
        "# Results\n\nWritten by `results/render.py` from `results/*.json`; never by hand. Mean ± sample standard deviation "
        "over seeds, last epoch. All methods share one recipe per student. Two choices rest on earlier trials on CIFAR-100: "
        "the weight 10 of the feature term of UHKD and its twin on a rough trial before this code (one seed, test accuracy), "
        "and UHKD's `form=pairs` on a screen on the same held-out images with another seed "
        "([`results/screens`](../results/screens)); nothing else was tuned per method. "
        "`twin_a` is UHKD without a Fourier transform (see [method.md](method.md)): an ablation, not a rival."
    )
    readme = HERE.parent / "README.md"
    text = readme.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    short = [
        f"**{s['title']}**\n\n{markdown(table(s))}\n\n"
        + "\n".join(f"- {line}" for line in verdicts(s) if "twin" in line)
        for s in found.values()
    ]
    return {
        HERE.parent / "docs" / "results.md": "\n\n".join([head, *(section(n, s) for n, s in found.items())]) + "\n",
        readme: before + BEGIN + "\n\n" + "\n\n".join(short or ["not yet run"]) + "\n\n" + END + after,
    }


def main() -> int:
    stale = [path for path, content in pages().items() if not path.exists() or path.read_text() != content]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.name} is not what results/*.json say: run python results/render.py")
        else:
            path.write_text(pages()[path])
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
