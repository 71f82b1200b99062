"""results/performance/*.json -> the measured part of docs/performance.md (see render.py)."""

from collections.abc import Callable
from statistics import fmean, median
from typing import Any

from uhkd.commands.comparing.cost_tables import cost_rows
from uhkd.commands.comparing.tables import markdown


def measured(found: dict[str, dict[str, Any]]) -> str:
    """Every table that has been measured, by file name (KIND.json or KIND-WHICH.json), in a fixed order; others say so."""
    blocks = []
    for name, made in MADE.items():
        files = [file for file in sorted(found) if file.removesuffix(".json").partition("-")[0] == name]
        blocks += [f"{made(found[file])}\n\n{_source(file, found[file])}" for file in files]
        blocks += [] if files else [f"`{name}.json`: not yet run"]
    return "\n\n".join([*blocks, gpu(found.get("gpu.json"))])


def gpu(content: dict[str, Any] | None) -> str:
    """All sections of `benchmarks/everything.py` on a GPU."""
    if content is None:
        return "### On a GPU\n\nnot yet run: the minutes that a GPU was lent went to trainings"
    blocks, left = [f"### On a GPU: {content['environment']['gpu']}"], []
    for name, found in content["sections"].items():
        if isinstance(found, str):
            left.append(f"{name} ({found.partition(':')[0]})")
        else:
            made = {"reading": stored, "transform": spectral} | MADE | {"steps": steps}
            blocks.append(made[name.partition(":")[0]](found).replace("### ", "#### ", 1))
    blocks += [f"No time was left for: {'; '.join(left)}."] if left else []
    return "\n\n".join([*blocks, _source("gpu.json", content)])


def steps(content: dict[str, Any]) -> str:
    """Cost of a step by method."""
    sizes = content["record_bytes"]
    return (
        f"### {content['title']}: {content['settings']['pair']}\n\nBatch {content['settings']['batch']}, "
        f"{content['settings']['rounds']} interleaved rounds; a stored record takes {sizes['fp16']:,} bytes in fp16, "
        f"{sizes['int8']:,} in int8.\n\n{markdown(cost_rows(content))}"
    )


def epochs(content: dict[str, Any]) -> str:
    """Wall time of an epoch by candidate."""
    rows = [["training", "seconds an epoch (median)", "x scratch [95 %]", "waiting for data (mean)"]]
    for name, ratio in content["to_scratch"].items():
        own = content["seconds"][name]
        rows.append([name, f"{median(own):.1f}", _ratio(ratio), f"{fmean(content['data_wait'][name]):.1%}"])
    own = content["settings"]
    return (
        f"### {content['title']}: {own['pair']}\n\n{own['images']:,} images an epoch, batch {own['batch']}, whole trainings in "
        f"turn, {own['rounds']} rounds; reading of images and signals included.\n\n{markdown(rows)}"
    )


def writing(content: dict[str, Any]) -> str:
    """Writing compared with the forward pass alone."""
    own, speeds = content["settings"], content["images_per_second"]
    rows = [["", "images a second (median)"], *([name, f"{median(found):,.0f}"] for name, found in speeds.items())]
    rows.append(["writing / teacher alone", _ratio(content["writing_to_teacher"])])
    return (
        f"### {content['title']}: {own['pair']}\n\nBatch {own['batch']}, {own['images']:,} images, {own['rounds']} rounds; "
        f"writing is views, teacher, spectra, encoding, checksums and the file.\n\n{markdown(rows)}"
    )


def options(content: dict[str, Any]) -> str:
    """Each option of the student's step, over the packaged choice."""
    networks = content["networks"]
    labels = list(dict.fromkeys(label for own in networks.values() for label in own if label != "packaged"))
    rows = [["time over the packaged step's", *networks]]
    rows += [[label, *(_ratio(own[label]["to_packaged"]) for own in networks.values())] for label in labels]
    own = content["settings"]
    return f"### {content['title']}\n\nBatch {own['batch']} of 224 px, {own['rounds']} interleaved rounds.\n\n{markdown(rows)}"


def spectral(content: dict[str, Any]) -> str:
    """Our route against rfft2, by grid."""
    rows = [["grid", "ours (ms)", "rfft2 (ms)", "ours / rfft2", "ours, of a copy's speed"]]
    rows[0] += ["extra memory, ours (MB)", "rfft2 (MB)"]
    for grid, own in content["grids"].items():
        ms = {name: 1e3 * median(seconds) for name, seconds in own["seconds"].items()}
        peak = own["extra_bytes"]
        rows.append(
            [
                f"{grid} x {grid}",
                f"{ms['ours']:.1f}",
                f"{ms['rfft2']:.1f}",
                _ratio(own["ours_to_rfft2"]),
                f"{own['share_of_copy']:.0%}",
            ]
            + [f"{peak[name] / 1e6:.1f}" for name in ("ours", "rfft2")]
        )
    settings = content["settings"]
    return (
        f"### {content['title']}\n\nBatch {settings['batch']}, r = {settings['radius']}, all channels of Swin-T -> ResNet18, "
        f"{settings['dtype']} maps, {settings['rounds']} interleaved rounds; the rfft2 route mixes channels first, by a 1 x 1 "
        f"convolution. Absolute times are of a shared machine: read the ratios.\n\n{markdown(rows)}"
    )


def stored(content: dict[str, Any]) -> str:
    """Reading of records, by number of images."""
    rows = [["images", "records a second (median)", "resident memory grew by at most (MiB)"]]
    for images, rounds in content["images"].items():
        rate = median(row["records_per_second"] for row in rounds)
        grown = max(row["resident_after"] - row["resident_before"] for row in rounds) / 2**20
        rows.append([f"{int(images):,}", f"{rate:,.0f}", f"{grown:.1f}"])
    return (
        f"### {content['title']}\n\nRecords of {content['record_bytes']:,} bytes in batches of 128 from the system's page cache, "
        f"every checksum checked, one core.\n\n{markdown(rows)}"
    )


def data(content: dict[str, Any]) -> str:
    """Images a second of each path compared with timm's loader."""
    rows = [["path", "workers", "uhkd", "timm", "uhkd / timm"]]
    for path, own in content["paths"].items():
        speed = own["images_per_second_and_core"]
        rows.append(
            [
                path,
                str(own["workers"]),
                *(f"{median(speed[name]):,.0f}" for name in ("uhkd", "timm")),
                _ratio(own["ratios"]["uhkd / timm"]),
            ]
        )
    return f"### {content['title']}\n\n{content['settings']['rounds']} interleaved rounds.\n\n{markdown(rows)}"


def deterministic(content: dict[str, Any]) -> str:
    """Which trainings are bit-exact, by method and pair."""
    arguments = ("repeats without", "repeats with", "stopped and resumed")
    pairs = list(dict.fromkeys(row["pair"] for row in content["rows"]))
    found: dict[str, list[str]] = {}
    for row in content["rows"]:
        answers = ", ".join("yes" if row[key] else "**no**" for key in arguments if key in row)
        refused = row.get("refused", "").removeprefix("deterministic: ")
        found.setdefault(row["method"], []).append(f"{answers}; refused: {refused}" if refused else answers)
    return (
        f"### {content['title']}: `--deterministic`\n\nWhether a second training is bit-equal to the first: without the option, "
        f"with it, and with it stopped in the middle and resumed; {content['settings']['epochs']} epochs of "
        f"{content['settings']['images']} images, mixup and averaged weights, with other trainings on the same GPU.\n\n"
        + markdown([["method", *pairs], *([method, *cells] for method, cells in found.items())])
    )


MADE: dict[str, Callable[[dict[str, Any]], str]] = {
    "epochs": epochs,
    "writing": writing,
    "spectral": spectral,
    "stored": stored,
    "options": options,
    "data": data,
    "deterministic": deterministic,
}


def _ratio(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _source(name: str, content: dict[str, Any]) -> str:
    facts = content["environment"]
    where = facts["gpu"] or f"{facts['cpu_cores']} shared CPU cores, {facts['threads']} thread"
    return f"{where}; torch {facts['versions']['torch']}; commit {facts['commit']}. File: `results/performance/{name}`."
