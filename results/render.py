"""results/**/*.json -> pages and a figure in docs/, parts of README and of docs/performance.md and others; --check: stale?"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from render_ablations import ablations
from render_balance import balance
from render_large import PARTS, TITLE, large
from render_performance import measured
from render_picture import METHODS, figure
from render_reliability import reliability
from render_report import gaps, merged, number
from render_scaling import scaling
from render_steps import steps
from render_why import why

from uhkd.commands.comparing.cost_tables import cost_rows, setting
from uhkd.commands.comparing.summary import verdicts
from uhkd.commands.comparing.tables import markdown, overview, pair_rows

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: written by results/render.py -->", "<!-- end of results -->"
INSTALLED, END_INSTALLED = "<!-- size and time: written by results/render.py -->", "<!-- end of size and time -->"
MEASURED, END_MEASURED = "<!-- measured: written by results/render.py -->", "<!-- end of measured -->"
REPORT = "Report pairs: CIFAR-100 at 32 px, 4,000 images and 10 epochs"
FIRST = "Report pairs, as first read"
HOMOGENEOUS = ("cnn-cnn",)
SHORT = {"fp32": "float32", "bf16": "bfloat16"}


def files() -> dict[str, dict[str, Any]]:
    """All committed results, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))}


def comparison(name: str, summary: dict[str, Any]) -> str:
    """One comparison with what it rests on."""
    seeds = sorted({run["seed"] for run in summary["runs"]})
    commits = sorted({run["commit"] or "unknown" for run in summary["runs"]})
    tried = {trial["method"] for trial in summary["tuning"]}
    untuned = [method for method in dict.fromkeys(run["method"] for run in summary["runs"]) if method not in tried]
    chosen = (
        f"Every method first tried {summary['settings_tried']} settings (learning rate, main loss weight, main setting; the same "
        "points for all, seed 1000) on the held-out part; the best of them is in the table, all of them are in the file."
        + (f" Variants were not tuned: {', '.join(untuned)}." if untuned else "")
        + (" These are the images of the table." if summary["part"] == "val" else "")
        if summary["tuning"]
        else "No setting was tuned for this table: every method ran once a seed with its defaults."
    )
    blocks = [
        f"## {summary['title']}",
        f"Accuracy (%) on the {PARTS[summary['part']]} after the last epoch, mean ± sd over {len(seeds)} seeds. {chosen}",
        markdown(overview(summary)),
    ]
    for pair, own in summary["pairs"].items():
        r, teacher = own["recipe"], own["teacher"]
        trained = teacher.get("recipe")
        lesson = f", {trained['epochs']} epochs on {teacher['train_images']} images" if trained else ""
        lr = next(run["lr"] for run in summary["runs"] if run["pair"] == pair)
        blocks += [
            f"### {pair}",
            f"`{own['student']}` ({own['parameters'] / 1e6:.2f} M parameters), teacher `{teacher['name']}`{lesson}. "
            f"{own['train_images']} training images, {r['epochs']} epochs, batch {r['batch_size']}, {r['optimizer']}"
            f"{'' if summary['tuning'] else f' lr {lr:g}'}, weight decay {r['weight_decay']:g}, label smoothing "
            f"{r['label_smoothing']:g}, crop {r['crop']}, {SHORT.get(r['precision'], r['precision'])}.",
            markdown(pair_rows(summary, pair)),
            "\n".join(f"- {line}" for line in verdicts(summary) if line.startswith(f"{pair}: ")),
        ]
    file = name.removesuffix("-first")  # the report's folder
    blocks.append(
        f"{_machines(summary['environments'])}; commits {', '.join(commits)}. File: [`{file}`](../results/{file})."
    )
    return "\n\n".join(block for block in blocks if block)


def cost(name: str, costs: dict[str, Any]) -> str:
    """What a step costs, pair by pair."""
    blocks = [
        f"## {costs['title']}",
        f"Median step time and geometric mean of the ratios within {costs['rounds']} interleaved rounds, with its 95 % interval. "
        "Names in `-stored` learn from stored signals, read in the step; no teacher runs.",
    ]
    for pair in costs["pairs"]:
        blocks += [f"### {pair}", f"{setting(costs['pairs'][pair])}.", markdown(cost_rows(costs["pairs"][pair]))]
    environment = costs["environment"]
    blocks.append(f"{_machines([environment])}; commit {environment['commit']}. File: [`{name}`](../results/{name}).")
    return "\n\n".join(blocks)


def summary_table(summary: dict[str, Any]) -> str:
    """The methods of the picture on the report pairs, for README; docs/results.md has all methods."""
    head, teacher, *rows = overview(summary)
    shown = [row for method in METHODS for row in rows if row[0] == method]
    seeds = len({run["seed"] for run in summary["runs"]})
    title = f"{summary['title']}.\nAccuracy (%) on the {PARTS[summary['part']]}, mean ± sd over {seeds} seeds."
    return f"{title}\n\n{markdown([head, teacher, *shown])}"


def installation() -> str:
    """Return what installing takes, one line for README."""
    file = HERE / "installation" / "install.json"
    if not file.is_file():
        return "not yet run"
    content = json.loads(file.read_text())
    base, everything = (content["commands"][name] for name in ("install", "install-dev"))
    added = (everything["bytes"] - base["bytes"]) / 1e9
    return (
        f"`make install` takes {base['bytes'] / 1e9:.1f} GB and {base['seconds']:.0f} s, `make test` adds {added:.1f} GB and "
        f"{everything['seconds']:.0f} s ({content['environment']['cpu_cores']} shared CPU cores, fast network)."
    )


def _machines(environments: list[dict[str, Any]]) -> str:
    lines = []
    for facts in environments:
        where = facts["gpu"] or f"{facts['cpu_cores']} shared CPU cores, {facts['threads']} thread a run"
        lines.append(f"{where}; torch {facts['versions']['torch']}, timm {facts['versions']['timm']}")
    return " / ".join(lines)


def pages() -> dict[Path, str]:
    """Every file this script writes, with its content."""
    found = files()
    if parts := {path.name: json.loads(path.read_text()) for path in sorted((HERE / "report").glob("*.json"))}:
        first = {name: part for name, part in parts.items() if number(name) == 1}
        found = (
            {"report": merged(parts, REPORT)}
            | ({"report-first": merged(first, FIRST)} if first != parts else {})
            | found
        )
    compared = {name: content for name, content in found.items() if "runs" in content}
    head, published = ((HERE / f"{name}.md").read_text().strip() for name in ("results-head", "published"))
    readme = HERE.parent / "README.md"
    text = readme.read_text()
    text = _replaced(text, INSTALLED, END_INSTALLED, f"\n{installation()}\n")
    short = summary_table(found["report"]) if parts else "not yet run"  # the older tables rest on older defaults
    sections = [comparison(n, s) if n in compared else cost(n, s) for n, s in found.items()]
    if parts:
        table = markdown(gaps(found["report"], HOMOGENEOUS))
        sections[0] += (
            f"\n\n**UHKD minus each other method** (points ± two standard errors: some 80 %, by three seeds)\n\n{table}"
        )
    if sizes := {path.name: json.loads(path.read_text()) for path in sorted((HERE / "large").glob("*.json"))}:
        sections.insert(1, f"## {TITLE}\n\n{large(sizes)}")
    return {
        **dict(
            _measured_page(name, made)
            for name, made in (
                ("performance", measured),
                ("why", why),
                ("scaling", scaling),
                ("balance", balance),
                ("steps", steps),
                ("reliability", reliability),
            )
        ),
        HERE.parent / "docs" / "ablations.md": ablations(),
        HERE.parent / "docs" / "results.md": "\n\n".join([head, *sections, published]) + "\n",
        **({HERE.parent / "docs" / "figures" / "report.svg": figure(found["report"])} if parts else {}),
        readme: _replaced(text, BEGIN, END, f"\n\n{short}\n\n"),
    }


def _measured_page(name: str, made: Callable[[dict[str, dict[str, Any]]], str]) -> tuple[Path, str]:
    """docs/NAME.md with its measured part made anew from results/NAME/*.json."""
    page = HERE.parent / "docs" / f"{name}.md"
    found = {path.name: json.loads(path.read_text()) for path in sorted((HERE / name).glob("*.json"))}
    return page, _replaced(page.read_text(), MEASURED, END_MEASURED, f"\n\n{made(found)}\n\n")


def _replaced(text: str, begin: str, end: str, content: str) -> str:
    """Return a page with another text between two markers."""
    return f"{text.split(begin)[0]}{begin}{content}{end}{text.split(end)[1]}"


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
