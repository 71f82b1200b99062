"""results/large/PAIR-{small,large}.json -> both sizes side by side, and whether they rank alike (see render.py).

PAIR-large-2.json holds methods that ran later, PAIR-again.json some with more seeds, PAIR-{weights,falling}.json other weights.
"""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from scipy.stats import kendalltau, rankdata, spearmanr

from uhkd.commands.comparing.summary import table_rows as cells_of
from uhkd.commands.comparing.tables import markdown

PARTS = {"val": "held-out split of the training images", "test": "test split"}

TITLE = "Large: all images and sixty epochs"
_TRIED = {"weights": "", "falling": ", weights falling to 0 by half a cosine"}
Summaries = Mapping[str, Mapping[str, Any]]  # comparisons of one pair each, by file name


def large(files: Summaries) -> str:
    """Of every pair: both sizes side by side, what they rest on, and how well their rankings agree.

    A pair that ran small alone is shown as such.
    """
    blocks = []
    for name, small in files.items():
        pair, is_small, _ = name.partition("-small")
        big = files.get(f"{pair}-large.json")
        if big and (later := files.get(f"{pair}-large-2.json")):
            big = {**big, "runs": [*big["runs"], *later["runs"]]}
        if not is_small:
            continue
        part = PARTS[small["part"]]
        lines = f"`{pair}`, accuracy (%) on the {part} after the last epoch; no setting was tuned. {facts(small, big)}"
        table = both(small, big) if big else [["method", "small"], *rows(small)]
        blocks += [lines, markdown(table), agreement(small, big) if big else "Large: **not yet run**."]
        if again := files.get(f"{pair}-again.json"):
            blocks.append(repeated(again))
        if tried := [
            line for kind, text in _TRIED.items() if (line := other_weights(files.get(f"{pair}-{kind}.json"), text))
        ]:
            blocks.append(f"Other weights, large, one seed: {'; '.join(tried)}.")
    return "\n\n".join(blocks)


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A comparison's accuracies, its teacher's first, then from the best on."""
    found = means(summary)
    ordered = sorted(found, key=lambda method: -found[method])
    top = ["(teacher)", f"{100 * teacher(summary)['accuracy']:.2f}"]
    return [top, *([method, cell(summary, method)] for method in ordered)]


def both(small: Mapping[str, Any], big: Mapping[str, Any]) -> list[list[str]]:
    """Accuracies and ranks of the methods that ran in both sizes, best of the large comparison first."""
    ours, theirs = both_ran(small, big)
    rank, rank_small = (dict(zip(of, rankdata([-v for v in of.values()]), strict=True)) for of in (theirs, ours))
    (_, teacher_recipe), *others = (row for row in rows(big) if row[0] in {"(teacher)", *theirs})
    lines = [["method", "large", "rank", "small", "rank"], ["(teacher)", teacher_recipe, "", rows(small)[0][1], ""]]
    for method, accuracy in others:
        lines.append([method, accuracy, f"{rank[method]:g}", cell(small, method), f"{rank_small[method]:g}"])
    return lines


def agreement(small: Mapping[str, Any], big: Mapping[str, Any]) -> str:
    """Rank correlations over the methods, in a sentence."""
    ours, theirs = both_ran(small, big)
    pairs = [(ours[method], theirs[method]) for method in ours]
    rho, tau = (float(measure(*zip(*pairs, strict=True)).statistic) for measure in (spearmanr, kendalltau))
    left_out = sorted(means(small).keys() - ours.keys())
    missing = f" Large is **not yet run** by {', '.join(left_out)}." if left_out else ""
    return (
        f"The two rankings agree by Spearman's rho {rho:.2f}, Kendall's tau {tau:.2f} ({len(pairs)} methods).{missing}"
    )


def both_ran(small: Mapping[str, Any], big: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean accuracies of the methods that ran in both sizes, in the order of the small one."""
    ours, theirs = means(small), means(big)
    shared = [method for method in ours if method in theirs]
    return {method: ours[method] for method in shared}, {method: theirs[method] for method in shared}


def repeated(summary: Mapping[str, Any]) -> str:
    """Some methods of the large comparison run again with more seeds, in a sentence."""
    lines = ", ".join(f"`{method}` {cell(summary, method)}" for method in means(summary))
    seeds, commits = ({run[name] for run in summary["runs"]} for name in ("seed", "commit"))
    return f"Run again with {len(seeds)} seeds (commit {', '.join(sorted(commits))}): {lines}."


def other_weights(summary: Mapping[str, Any] | None, text: str) -> str:
    """The methods of the large comparison at other weights, in a phrase; nothing where none ran."""
    if summary is None:
        return ""
    changed = {run["method"]: run["weights"] for run in summary["runs"]}
    lines = [
        f"`{method}` {cell(summary, method)}"
        + (f" ({' '.join(f'{name}={value:g}' for name, value in changed[method].items())})" if changed[method] else "")
        for method in means(summary)
    ]
    return ", ".join(lines) + text


def facts(small: Mapping[str, Any], big: Mapping[str, Any] | None) -> str:
    """What the two sizes are, and where they ran."""
    text, summaries = [], {"Small": small} | ({"large": big} if big else {})
    for size, summary in summaries.items():
        (own,) = summary["pairs"].values()
        recipe, teacher_recipe, seeds = (
            own["recipe"],
            teacher(summary)["recipe"],
            {run["seed"] for run in summary["runs"]},
        )
        text.append(
            f"{size}: {own['train_images']:,} images, {recipe['epochs']} epochs, batch {recipe['batch_size']}, "
            f"{recipe['optimizer']} lr {summary['runs'][0]['lr']:g}, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
            f"teacher `{teacher(summary)['name']}`{with_options(teacher_recipe)} of {teacher_recipe['epochs']} epochs"
        )
    machines = {facts["gpu"] or "CPU" for summary in summaries.values() for facts in summary["environments"]}
    commits = {run["commit"] for summary in summaries.values() for run in summary["runs"]}
    return f"{'; '.join(text)}. {', '.join(sorted(machines))}; commits {', '.join(sorted(commits))}."


def with_options(teacher_recipe: Mapping[str, Any]) -> str:
    """The sizes of a teacher as text."""
    options = teacher_recipe.get("options") or teacher_recipe.get("student_options") or {}
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""


def teacher(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the comparison's only pair."""
    (own,) = summary["pairs"].values()
    return own["teacher"]


def scores(summary: Mapping[str, Any]) -> dict[str, list[float]]:
    """Accuracies in percent by method, over seeds."""
    return {line.method: [100 * value for value in line.accuracy.values()] for line in cells_of(summary)}


def means(summary: Mapping[str, Any]) -> dict[str, float]:
    """Mean accuracy in percent by method."""
    return {method: fmean(values) for method, values in scores(summary).items()}


def cell(summary: Mapping[str, Any], method: str) -> str:
    """Mean ± sd, or the only number."""
    values = scores(summary)[method]
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
