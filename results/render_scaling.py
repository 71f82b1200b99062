"""results/scaling/*.json -> the measured part and the arithmetic of docs/scaling.md (see render.py)."""

from statistics import median
from typing import Any

from uhkd.cache import RecordFormat
from uhkd.cache.shards import HEAD
from uhkd.commands.comparing.tables import markdown

# samples, classes, bytes of an image: ImageNet-1K's training part has 1,281,167 images in 138 GB, ImageNet-21K's 14,197,122 in
# 1.3 TB; the third is a round number
SETS = {
    "ImageNet-1K": (1_281_167, 1000, 108_000),
    "ImageNet-21K": (14_197_122, 21_841, 92_000),
    "a billion": (10**9, 1000, 100_000),
}
SWIN_T = ((64, 9),) * 4  # four levels at radius 1 and 64 channels
EMBEDDING = 768
A_SAMPLE = 36  # bytes of an index: offset, length, checksum of the header, key, label
ORDER = 8  # bytes a sample of an epoch's order


def scaling(found: dict[str, dict[str, Any]]) -> str:
    """All that was measured, and what follows from it for three sizes of data."""
    if not found:
        return "not yet run"
    (name, content), *_ = found.items()
    facts = content["environment"]
    source = (
        f"{facts['cpu_cores']} shared CPU cores; torch {facts['versions']['torch']}; commit {facts['commit']}. File: "
        f"`results/scaling/{name}`. Absolute times are of a shared machine: read the ratios."
    )
    return "\n\n".join([_opening(content), _reading(content), _training(content), source, _arithmetic(content)])


def _opening(content: dict[str, Any]) -> str:
    rows = [["samples", "open an index", "order, at once", "order, near", "bytes a sample"]]
    for samples, own in content["opening"].items():
        times = (own[key] for key in ("open_seconds", "order_seconds_at_once", "order_seconds_near"))
        rows.append(
            [
                f"{int(samples):,}",
                *(f"{1e3 * seconds:,.1f} ms" for seconds in times),
                f"{own['file_bytes_a_sample']:.1f}",
            ]
        )
    return (
        f"### Opening, and the order of an epoch\n\n{markdown(rows)}\n\nWithout an index the headers of the tars are read: "
        f"{content['headers_per_second']:,.0f} samples a second."
    )


def _reading(content: dict[str, Any]) -> str:
    base = content["reading"]["folder"]
    rows = [["from", "images a second and core (median)", "x a folder (median of rounds)"]]
    for name, rates in content["reading"].items():
        ratio = median(a / b for a, b in zip(rates, base, strict=True))
        rows.append([name, f"{median(rates):,.0f}", f"{ratio:.2f}"])
    size = content["settings"]["photo_bytes"]
    return f"### Reading photos of {size / 1e3:,.0f} KB at 224 px\n\n{markdown(rows)}"


def _training(content: dict[str, Any]) -> str:
    one, two = content["processes"]["1"], content["processes"]["2"]
    ratio = median(b / a for a, b in zip(one, two, strict=True))
    rows = [["images", "images a second", "seconds an epoch", "peak memory (MiB)"]]
    for images, own in content["growth"].items():
        cells = (f"{own['images_per_second']:.0f}", f"{own['seconds']:.1f}", f"{own['peak_bytes'] / 2**20:.0f}")
        rows.append([f"{int(images):,}", *cells])
    return (
        f"### Training by the number of images\n\nOne process, a small network at 32 px on tar shards.\n\n{markdown(rows)}\n\n"
        f"Two processes on two cores: {ratio:.2f} times the images a second of one on one core (median of {len(one)} rounds)."
    )


def _arithmetic(content: dict[str, Any]) -> str:
    rows = [["", *SETS]]
    per_sample = max(own["order_seconds_near"] / int(n) for n, own in content["opening"].items())

    def row(title: str, value: Any) -> None:
        rows.append([title, *(value(*key) for key in SETS.values())])

    row("samples, and bytes of images", lambda n, classes, image: f"{n:,}, {_bytes(n * image)}")
    row("index file, once in each process's memory", lambda n, *_: _bytes(A_SAMPLE * n))
    row("order of an epoch, memory (and several times as much while it is made)", lambda n, *_: _bytes(ORDER * n))
    row("order of an epoch, time (near)", lambda n, *_: _seconds(n * per_sample))
    row("opening without an index, each time", lambda n, *_: _seconds(n / content["headers_per_second"]))
    row("stored signals, a view: Swin-T, all", lambda n, classes, _: _bytes(n * _record(classes)))
    row("a view: embedding and spectra, int8", lambda n, *_: _bytes(n * _record(None, "int8")))
    row("30 such views", lambda n, *_: _bytes(30 * n * _record(None, "int8")))
    row(
        "images read a second for an epoch an hour",
        lambda n, classes, image: f"{n / 3600:,.0f}: {_bytes(n * image / 3600)}/s",
    )
    return f"### Arithmetic for larger data\n\n{markdown(rows)}"


def _record(classes: int | None, storage: Any = "fp16") -> int:
    return RecordFormat(classes, EMBEDDING, SWIN_T, storage).size + HEAD


def _bytes(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError


def _seconds(count: float) -> str:
    if count < 120:
        return f"{count:.2g} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"
