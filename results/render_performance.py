"""results/performance/*.json -> the measured part of docs/performance.md (see render.py)."""

from statistics import median
from typing import Any

from uhkd.commands.comparing.tables import markdown


def measured(found: dict[str, dict[str, Any]]) -> str:
    """Every table that has been measured, by file name, in a fixed order; others say so."""
    made = {"spectral.json": spectral, "stored.json": stored, "data.json": data}
    blocks = [
        make(found[name]) + f"\n\n{_source(name, found[name])}" if name in found else f"`{name}`: not yet run"
        for name, make in made.items()
    ]
    blocks.append("### On a GPU\n\nnot yet run: no GPU was at hand")
    return "\n\n".join(blocks)


def spectral(content: dict[str, Any]) -> str:
    """Our route against rfft2, by grid."""
    rows = [["grid", "ours (ms)", "rfft2 (ms)", "ours / rfft2", "extra memory, ours (MB)", "rfft2 (MB)"]]
    for grid, own in content["grids"].items():
        ms = {name: 1e3 * median(seconds) for name, seconds in own["seconds"].items()}
        peak = own["extra_bytes"]
        rows.append(
            [f"{grid} x {grid}", f"{ms['ours']:.1f}", f"{ms['rfft2']:.1f}", _ratio(own["ours_to_rfft2"])]
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
    """Images a second of each path beside timm's loader."""
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


def _ratio(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _source(name: str, content: dict[str, Any]) -> str:
    facts = content["environment"]
    where = facts["gpu"] or f"{facts['cpu_cores']} shared CPU cores, {facts['threads']} thread"
    return f"{where}; torch {facts['versions']['torch']}; commit {facts['commit']}. File: `results/performance/{name}`."
