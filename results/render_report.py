"""results/report/*.json, one report pair a file -> one summary as of `uhkd compare`, and what it says of the project's aims."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from uhkd.commands.comparing.summary import lines

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # method -> pair -> seed -> accuracy


def merged(parts: Mapping[str, Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Comparisons of one pair each as one; a pair is named by its file, as two of them may have one student.

    Raises:
        ValueError: when they were not made alike.
    """
    alike = {(part["part"], part["settings_tried"], len(part["pairs"])) for part in parts.values()}
    if len(alike) > 1 or any(len(part["pairs"]) != 1 for part in parts.values()):
        raise ValueError(
            f"results/report: expected one pair a file, with one part and one count of tries, found {alike}"
        )
    first = next(iter(parts.values()))
    whole: dict[str, Any] = {"title": title, "part": first["part"], "settings_tried": first["settings_tried"]}
    whole |= {"pairs": {}, "environments": [], "runs": [], "tuning": []}
    for name, part in parts.items():
        pair = name.removesuffix(".json")
        machines = whole["environments"]
        machines += [facts for facts in part["environments"] if facts not in machines]
        at = [machines.index(facts) for facts in part["environments"]]
        whole["pairs"][pair] = next(iter(part["pairs"].values()))
        whole["runs"] += [run | {"pair": pair, "environment": at[run["environment"]]} for run in part["runs"]]
        whole["tuning"] += [trial | {"pair": pair} for trial in part["tuning"]]
    return whole


def scores(summary: Mapping[str, Any]) -> Scores:
    """Accuracy in percent by method, pair and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in lines(summary):
        found.setdefault(line.method, {})[line.pair] = {seed: 100 * value for seed, value in line.accuracy.items()}
    return found


def advantage(
    ours: Mapping[str, Mapping[int, float]], theirs: Mapping[str, Mapping[int, float]], pairs: Sequence[str]
) -> str:
    """Difference of two methods in the mean over pairs, paired by seed: '+1.20 ± 0.80', two standard errors."""
    gaps = [[ours[pair][seed] - theirs[pair][seed] for seed in ours[pair]] for pair in pairs]
    error = math.sqrt(sum(variance(gap) / len(gap) for gap in gaps)) / len(gaps)
    return f"{fmean(map(fmean, gaps)):+.2f} ± {2 * error:.2f}"


def aims(summary: Mapping[str, Any], homogeneous: Sequence[str]) -> list[list[str]]:
    """UHKD against every method: differences pair by pair, and in the mean over the heterogeneous ones."""
    found = scores(summary)
    ours = found["uhkd"]
    mixed = [pair for pair in summary["pairs"] if pair not in homogeneous]
    rows = [["UHKD minus", *summary["pairs"], f"mean of {len(mixed)} heterogeneous pairs"]]
    for method, theirs in found.items():
        if method != "uhkd":
            cells = [advantage(ours, theirs, [pair]) for pair in summary["pairs"]]
            rows.append([method, *cells, advantage(ours, theirs, mixed)])
    return rows
