"""results/report/*.json -> one summary as of `uhkd compare`, and UHKD against each method over all its pairs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from uhkd.commands.comparing.summary import table_rows

ROUNDING = 0.002  # accuracy of one network on two machines
BySeed = Mapping[str, Mapping[int, float]]  # pair -> seed -> accuracy (%)


def merged(parts: Mapping[str, Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Comparisons of one pair each as one. PAIR-N.json holds some of a pair's methods; two pairs may have one student.

    A method that a later file has as well was measured again, after its defaults had changed: the later numbers stand.

    Raises:
        ValueError: when they were not made alike.
    """
    first = next(iter(parts.values()))
    alike = ("part", "settings_tried")
    merged_summary: dict[str, Any] = {"title": title} | {name: first[name] for name in alike}
    merged_summary |= {"pairs": {}, "environments": [], "runs": [], "tuning": []}
    for name, part in sorted(parts.items(), key=lambda item: number(item[0])):
        if len(part["pairs"]) != 1 or any(part[name] != first[name] for name in alike):
            raise ValueError(f"{name} and others differ: expected one pair, and the same {' and '.join(alike)}")
        pair, own = name.rpartition("-")[0], next(iter(part["pairs"].values()))
        if not same(merged_summary["pairs"].setdefault(pair, own), own):
            raise ValueError(f"{name} is of another pair than the files before it")
        machines = merged_summary["environments"]
        machines += [facts for facts in part["environments"] if facts not in machines]
        at = [machines.index(facts) for facts in part["environments"]]
        again = {(pair, run["method"]) for run in part["runs"]}
        for kind in ("runs", "tuning"):
            merged_summary[kind] = [
                entry for entry in merged_summary[kind] if (entry["pair"], entry["method"]) not in again
            ]
        merged_summary["runs"] += [run | {"pair": pair, "environment": at[run["environment"]]} for run in part["runs"]]
        merged_summary["tuning"] += [trial | {"pair": pair} for trial in part["tuning"]]
    merged_summary["pairs"] = dict(sorted(merged_summary["pairs"].items()))
    # measured again, a method keeps its place
    order = list(dict.fromkeys(run["method"] for part in parts.values() for run in part["runs"]))
    merged_summary["runs"].sort(key=lambda run: order.index(run["method"]))
    return merged_summary


def number(name: str) -> int:
    """N of PAIR-N.json."""
    return int(name.rpartition("-")[2].removesuffix(".json"))


def same(pair: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two files are of one pair: on another machine a teacher's accuracy may round, and data be named, otherwise."""
    bare = [{**own, "data": None, "teacher": {**own["teacher"], "accuracy": None}} for own in (pair, other)]
    return bare[0] == bare[1] and abs(pair["teacher"]["accuracy"] - other["teacher"]["accuracy"]) < ROUNDING


def scores(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Accuracy in percent by method, pair and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in table_rows(summary):
        found.setdefault(line.method, {})[line.pair] = {seed: 100 * value for seed, value in line.accuracy.items()}
    return found


def gap(ours: BySeed, theirs: BySeed, pairs: Sequence[str]) -> str:
    """Difference in the mean over pairs, paired by seed, and two standard errors: '+1.20 ± 0.80'."""
    if any(pair not in theirs for pair in pairs):
        return "not run"
    found = [[ours[pair][seed] - theirs[pair][seed] for seed in ours[pair]] for pair in pairs]
    error = math.sqrt(sum(variance(own) / len(own) for own in found)) / len(found)
    return f"{fmean(map(fmean, found)):+.2f} ± {2 * error:.2f}"


def gaps(summary: Mapping[str, Any], homogeneous: Sequence[str]) -> list[list[str]]:
    """UHKD minus every other method: pair by pair, and in the mean over the heterogeneous pairs."""
    found = scores(summary)
    pairs = list(summary["pairs"])
    mixed = [pair for pair in pairs if pair not in homogeneous]
    columns = {pair: [pair] for pair in pairs}
    if mixed:
        columns[f"mean of {len(mixed)} heterogeneous"] = mixed
    rows = [["UHKD minus", *columns]]
    for method, theirs in found.items():
        if method != "uhkd":
            rows.append([method, *(gap(found["uhkd"], theirs, of) for of in columns.values())])
    return rows
