"""results/why/*.json -> the measured part of docs/why.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from uhkd.commands.comparing.tables import markdown

SIDES = {"teacher": "teacher", "kd": "KD", "uhkd": "UHKD"}
Rows = list[list[str]]


def why(found: dict[str, dict[str, Any]]) -> str:
    """Every pair that has been measured, by file name (PAIR.json)."""
    return "\n\n".join(pair(name, found[name]) for name in sorted(found)) or "not yet run"


def pair(file: str, content: Mapping[str, Any]) -> str:
    """All tables and figures of one pair."""
    own, data = content["runs"], content["data"]
    teacher, student = own["teacher"][0], own["uhkd"][0]
    name, seeds = content["pair"], ", ".join(str(run["seed"]) for run in own["uhkd"])
    recipes = "; ".join(f"{SIDES[side]}: {recipe(own[side][0])}" for side in ("kd", "uhkd"))
    facts, commits = content["environment"], sorted({str(run["commit"]) for runs in own.values() for run in runs})
    where = facts["gpu"] or f"{facts['cpu_cores']} shared CPU cores"
    blocks = [
        f"### {name}: {teacher['network']} -> {student['network']}",
        f"{student['train_images']:,} images of {data['name']}, {student['epochs']} epochs, seeds {seeds}; {recipes}. Mean ± sd "
        f"over seeds, on {data['held_out_images']:,} held-out images.",
        f"**After training**\n\n{markdown(calibration(content))}",
        f"**CKA of matched levels**, maps pooled over space\n\n{markdown(cka(content))}",
        f"![CKA of all levels](figures/why-{name}-cka.png)",
        f"**Error of UHKD's aligned spectra**, first -> last evaluation; about 1: nothing learnt\n\n{markdown(error(content))}",
        f"![Error by frequency, and spectra](figures/why-{name}-error.png)",
        f"**What each band holds**: accuracy (%) of a linear probe fitted on {data['fitting_images']:,} training images; chance: "
        f"{100 / data['classes']:.1f}\n\n{markdown(bands(content))}",
        f"![Probes of bands](figures/why-{name}-bands.png)",
        f"**Changed images**: accuracy (%), and the share of the clean accuracy that is kept (%)\n\n{markdown(changed(content))}",
        f"![Changed images](figures/why-{name}-robustness.png)",
        f"{where}; torch {facts['versions']['torch']}; commit {facts['commit']}, runs of {', '.join(commits)}. "
        f"File: `results/why/{file}`.",
    ]
    if content["spectral_error"] is None:
        blocks = [block for block in blocks if "-error.png" not in block]
    if all(side[when] is None for side in content["cka"].values() for when in ("start", "end")):
        blocks = [block for block in blocks if "-cka.png" not in block]
    return "\n\n".join(blocks)


def recipe(run: Mapping[str, Any]) -> str:
    """A run's method with the weights of its terms."""
    parts = (run["settings_and_weights"] or {}).items()
    weights = ", ".join(f"{name}.{term} {weight:g}" for name, own in parts for term, weight in own["weights"].items())
    return f"`{run['method']}` ({weights})" if weights else f"`{run['method']}`"


def calibration(content: Mapping[str, Any]) -> Rows:
    """Accuracy and calibration, a row a side."""
    own = content["calibration"]
    heads = {"accuracy": "accuracy (%)", "top5": "top-5 (%)", "nll": "nll (nats)", "ece": "ece (%)"}
    shown = {key: head for key, head in heads.items() if key in own["kd"]}
    rows = [[n, *(numbers(own[s][key], 1 if key == "nll" else 100) for key in shown)] for s, n in SIDES.items()]
    return [["", *shown.values()], *rows]


def cka(content: Mapping[str, Any]) -> Rows:
    """CKA before and after, a row a matched pair of levels."""
    own = content["cka"]
    columns = {"before": own["uhkd"]["start"], "after KD": own["kd"]["end"], "after UHKD": own["uhkd"]["end"]}
    rows = [
        [
            f"{s + 1} with teacher's {t + 1}",
            *("not recorded" if c is None else numbers(c, 1, s, t) for c in columns.values()),
        ]
        for s, t in content["matched"]
    ]
    return [["level", *columns], *rows]


def error(content: Mapping[str, Any]) -> Rows:
    """Error of each band, a row a level."""
    own = content["spectral_error"]
    if own is None:
        return [["level", "error"], ["all", "not recorded"]]
    names = max((level["bands"] for level in own["levels"]), key=len)
    rows = [["level", *names]]
    for number, level in enumerate(own["levels"], 1):
        texts = {}
        for k, name in enumerate(level["bands"]):
            first, last = (numbers(level["error"], 1, row, k) for row in (0, -1))
            texts[name] = last if len(own["steps"]) == 1 else f"{first} -> {last}"
        rows.append([str(number), *(texts.get(name, "") for name in names)])
    return rows


def bands(content: Mapping[str, Any]) -> Rows:
    """Accuracy of probes, a row a matched level and side."""
    own = content["bands"]
    names = list(max((level for levels in own.values() for level in levels), key=len))
    rows = [["level", "", *names]]
    for student, teacher in content["matched"]:
        for side, title in SIDES.items():
            level = own[side][teacher if side == "teacher" else student]
            cells = (numbers(level[name]) if name in level else "" for name in names)
            rows.append([str((teacher if side == "teacher" else student) + 1), title, *cells])
    return rows


def changed(content: Mapping[str, Any]) -> Rows:
    """Accuracy under each change and what is kept, a row a change."""
    own = content["robustness"]
    head = ["images", *(SIDES[side] for side in own), *(f"{SIDES[side]} keeps" for side in own)]
    rows = [
        [name, *(numbers(own[side][kind][name]) for kind in ("accuracy", "kept") for side in own)]
        for name in own["kd"]["accuracy"]
    ]
    return [head, *rows]


def numbers(values: Mapping[str, Any], scale: float = 100, *at: int) -> str:
    """'21.30 ± 0.45': mean and sd of one number, or of the one at a place in an array."""

    def number(x: float | Sequence[Any]) -> float:
        for i in at:
            assert isinstance(x, Sequence)
            x = x[i]
        assert isinstance(x, float | int)
        return scale * x

    mean, sd = values["mean"], values["sd"]
    return f"{number(mean):.2f}" + ("" if sd is None else f" ± {number(sd):.2f}")
