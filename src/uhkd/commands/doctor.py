"""`uhkd doctor`: what this machine offers, reported and never judged."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import uhkd
from uhkd.arguments import DoctorArguments

_PACKAGES = (
    *("torch", "torchvision", "timm", "lightning-fabric", "torchmetrics", "numpy", "scikit-learn"),
    *("pillow", "matplotlib", "safetensors", "pydantic", "tyro"),
)


def doctor(arguments: DoctorArguments | None = None) -> dict[str, str]:
    """Print a table of versions, device, cores, precision and disk, and return it as topic -> finding."""
    findings = {topic: _ask(question) for topic, question in _QUESTIONS.items()}
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for topic, finding in findings.items():
        table.add_row(topic, finding)
    Console(highlight=False, markup=False).print(table)
    return findings


def _ask(question: Callable[[], str]) -> str:
    """The answer, or why there is none: a report must not stop at its first trouble."""
    try:
        return question()
    except Exception as error:
        return f"cannot tell: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def _packages() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} MISSING")
    return ", ".join(found)


def _pair() -> str:
    """Whether torchvision was built for this torch: its compiled operators load only then."""
    import torch

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    kept = importlib.import_module("torchvision.ops").nms(boxes, torch.ones(1), 0.5)
    return "fit together" if kept.tolist() == [0] else f"torchvision's operators give {kept.tolist()}, expected [0]"


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"CPU; no GPU seen by torch ({f'built for CUDA {built}' if built else 'built without CUDA'})"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names)


def _cores() -> str:
    from uhkd.data import usable_cores

    return f"{usable_cores()} usable of {os.cpu_count()}"


def _threads() -> str:
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    settings = ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in names)
    return f"torch uses {torch.get_num_threads()}; {settings}"


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.1f} GiB"


def _bf16() -> str:
    """Measured on one matrix product: a format that computes right may still be emulated and slow."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4096 if device == "cuda" else 512
    full = _product_seconds(torch.ones(size, size, device=device))
    half = _product_seconds(torch.ones(size, size, device=device, dtype=torch.bfloat16))
    verdict = "fast" if half < 0.8 * full else "no gain"
    return f"works on {device}, {verdict}: a product takes {half / full:.2f} times as long as in fp32"


def _product_seconds(matrix) -> float:  # untyped, because torch is imported only where it is needed
    import torch

    times = []
    for _ in range(7):
        began = time.perf_counter()
        matrix.matmul(matrix)
        if matrix.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def _disk() -> str:
    usage = shutil.disk_usage(Path.cwd())
    return f"{usage.free / 1e9:.0f} GB free of {usage.total / 1e9:.0f} GB in {Path.cwd()}"


def _cache() -> str:
    """Where timm's pretrained weights would go, and whether they could be written there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return f"{folder}, writable"
    except OSError as error:
        return f"{folder}, not writable ({error.strerror}); set HF_HOME to a folder that is"


_QUESTIONS: dict[str, Callable[[], str]] = {
    "uhkd": lambda: f"{uhkd.__version__} in {Path(uhkd.__file__).parent}",
    "python": lambda: f"{platform.python_version()} on {platform.platform()}",
    "packages": _packages,
    "torch and torchvision": _pair,
    "device": _device,
    "cores": _cores,
    "threads": _threads,
    "memory": _memory,
    "bf16": _bf16,
    "disk": _disk,
    "weights cache": _cache,
}
