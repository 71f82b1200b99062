"""`uhkd doctor`: software and hardware of this machine, and faults that prevent trainings."""

import importlib
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

import uhkd
from uhkd.console import escape, file_size, first_line, log_debug, pluralize, print_result, print_table
from uhkd.recipe.arguments import DoctorArguments
from uhkd.runs.disk import free_bytes, nearest_existing

State = Literal["ok", "warning", "fault"]

_SHOWN = {
    "uhkd": "uhkd",
    "python_version": "python",
    "os": "system",
    "torch_version": "torch",
    "cuda_compiled_version": "torch's CUDA",
    "nvidia_driver_version": "NVIDIA driver",
}
_STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


@dataclass(frozen=True)
class Check:
    """Result of one check.

    state: ok, warning (slow, or not everything works) or fault (trainings fail). advice: what to do unless ok.
    """

    topic: str
    found: str
    state: State = "ok"
    advice: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """Results of all checks, and the fields of `torch.utils.collect_env` as text."""

    checks: tuple[Check, ...]
    environment: dict[str, str]

    @property
    def exit_code(self) -> int:
        """1 if any check is a fault, else 0."""
        return int(any(check.state == "fault" for check in self.checks))

    def to_json(self) -> dict[str, Any]:
        """Return whether trainings can run, the results of all checks (key "findings"), and the environment."""
        checks = [vars(check) for check in self.checks]
        return {"ok": self.exit_code == 0, "findings": checks, "environment": self.environment}


def doctor(arguments: DoctorArguments | None = None) -> DoctorReport:
    """Check packages, device, threads and disk; print a table and advice; return all results (exit code 1 with a fault).

    Nothing is downloaded, no file remains.
    """
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    report = DoctorReport(tuple(_run(topic, check) for topic, check in CHECKS.items()), environment())
    columns = (Column(no_wrap=True), Column(no_wrap=True), Column())
    table = Table(*columns, box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, topic in _SHOWN.items():
        if name in report.environment:
            table.add_row("", topic, escape(report.environment[name]))
    for check in report.checks:
        table.add_row(Text(check.state, _STYLES[check.state]), check.topic, escape(check.found))
    print_table(table)
    log_debug("\n".join(f"{name}: {value}" for name, value in report.environment.items()))
    wrong = [check for check in report.checks if check.state != "ok"]
    for check in wrong:
        print_result(f"{check.state}: {check.topic}: {check.advice}")
    faults = sum(check.state == "fault" for check in wrong)
    print_result(f"{pluralize(faults, 'fault')}, {pluralize(len(wrong) - faults, 'warning')}")
    return report


def _run(topic: str, check: Callable[[], Check]) -> Check:
    """Return the result of a check; an exception becomes a warning, so that the report is complete."""
    try:
        return check()
    except Exception as error:
        log_debug(traceback.format_exc())
        advice = "the check itself failed; uhkd doctor --verbose shows the traceback"
        return Check(topic, f"check failed: {type(error).__name__}: {first_line(error)}", "warning", advice)


def environment() -> dict[str, str]:
    """Return the paths of uhkd and Python, and the environment reported by `torch.utils.collect_env`."""
    paths = {"uhkd": f"{uhkd.__version__} in {Path(uhkd.__file__).parent}, run by {sys.executable}"}
    try:
        from torch.utils.collect_env import get_env_info

        return paths | {name: str(value) for name, value in get_env_info()._asdict().items() if value is not None}
    except Exception as error:  # it calls many other programs; a missing torch is reported by its check
        log_debug(f"torch.utils.collect_env failed: {type(error).__name__}: {error}")
        return paths


def packages() -> Check:
    """Compare installed packages with the requirements of uhkd; minimum versions may exclude vulnerabilities."""
    try:
        needs = [Requirement(line) for line in metadata.requires("uhkd") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", "uhkd is not installed as a package, so that its requirements are unknown")
    problems = unmet(needs)
    if not problems:
        required = (need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""}))
        return Check("packages", ", ".join(f"{name} {_version(name)}" for name in required))
    texts = [f"{need.name} {version or 'is missing'}, required is {need.specifier}" for need, version in problems]
    advice = "pip install " + " ".join(f'"{need.name}{need.specifier}"' for need, _ in problems)
    state = "fault" if any(version is None for _, version in problems) else "warning"
    return Check("packages", "; ".join(texts), state, advice)


def unmet(needs: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """Return unmet requirements with the installed version (None: missing); of extras only those with an old version."""
    problems = []
    for need in needs:
        version = _version(need.name)
        required = need.marker is None or need.marker.evaluate({"extra": ""})
        if not required and any(f'"{extra}"' in str(need.marker) for extra in ("dev", "docs")):
            continue  # tools of developers
        if required if version is None else not need.specifier.contains(version, prereleases=True):
            problems.append((need, version))
    return problems


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision() -> Check:
    """Run one compiled operator of torchvision, which works only if torchvision was built for this torch."""
    topic = "torch and torchvision"
    try:
        import torch

        nms = importlib.import_module("torchvision.ops").nms
        indices = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        if indices.tolist() == [0]:
            return Check(topic, f"{_version('torch')} and {_version('torchvision')} are compatible")
        why = f"torchvision's operators give {indices.tolist()}, expected [0]"
    except Exception as error:  # incompatible builds can fail in any way
        why = f"are not compatible: {type(error).__name__}: {first_line(error)}"
    return Check(topic, why, "fault", f"reinstall both from one source: pip install --force-reinstall {fitting()}")


def fitting() -> str:
    """Return the installed torchvision and the torch that its metadata names, as arguments of pip."""
    needs = [Requirement(line) for line in (metadata.requires("torchvision") or () if _version("torchvision") else ())]
    torch = next((need for need in needs if need.name == "torch"), None)
    return f"torchvision=={_version('torchvision')} torch{torch.specifier}" if torch else "torch torchvision"


def device() -> Check:
    """Run one kernel on the GPU, or find out why none is usable."""
    import torch

    if not torch.cuda.is_available():
        has_gpu = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").is_file()
        try:
            torch.cuda.init()
        except Exception as error:  # RuntimeError or AssertionError, depending on the build
            return without_gpu(torch.version.cuda, has_gpu, first_line(error))
        return without_gpu(torch.version.cuda, has_gpu, "")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    text = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    try:
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
    except RuntimeError as error:
        built = ", ".join(torch.cuda.get_arch_list())
        advice = f"this torch is built for {built}: install a build for this GPU, or use --device cpu"
        return Check("device", f"{text}, but it cannot compute: {first_line(error)}", "fault", advice)
    return Check("device", text)


def without_gpu(cuda: str | None, has_gpu: bool, why: str) -> Check:
    """Return the check of a machine on which torch finds no GPU.

    cuda: CUDA version of this torch build. has_gpu: whether the machine seems to have one. why: error of CUDA.
    """
    cpu = f"CPU; torch finds no GPU ({f'built for CUDA {cuda}' if cuda else 'built without CUDA'})"
    if not has_gpu:
        return Check("device", cpu)
    if cuda is None:
        advice = "this machine has an NVIDIA GPU: install a torch that is built for CUDA"
        return Check("device", cpu, "warning", advice)
    if "driver" in why and ("old" in why or "insufficient" in why):
        advice = f"update the NVIDIA driver, or install a torch built for an older CUDA than {cuda}"
    else:
        advice = "CUDA_VISIBLE_DEVICES may hide it, a container may lack it (docker run --gpus all), or the driver is not loaded"
    return Check("device", f"{cpu}, but the machine has one: {why or 'CUDA gives no reason'}", "fault", advice)


def threads() -> Check:
    """Compare the threads of torch with the usable cores; more threads than cores slow each other down."""
    import torch

    from uhkd.data.loader import usable_cores

    used, usable = torch.get_num_threads(), usable_cores()
    text = f"torch uses {used}; {usable} of {os.cpu_count()} cores are usable"
    if used > usable:
        return Check("threads", text, "warning", f"export OMP_NUM_THREADS={usable} (and MKL_NUM_THREADS)")
    return Check("threads", text)


def shared_memory() -> Check:
    """Check the memory through which loader processes pass images (64 MB by default in a container)."""
    if not Path("/dev/shm").is_dir():
        return Check("shared memory", "no separate limit on this system")
    advice = "loader processes may end with a bus error: docker run --shm-size=8g, or --workers 0"
    return folder("shared memory", Path("/dev/shm"), 5e8, advice)


def disk() -> Check:
    """Check the folder that runs are written to."""
    runs = (Path("runs") if Path("runs").is_dir() else Path.cwd()).resolve()
    advice = "choose a folder on another disk with --out (a run has weights, a checkpoint and plots)"
    return folder("disk", runs, 5e9, advice, fault_below=5e8)


def temporary() -> Check:
    """Check the folder for temporary files."""
    return folder("temporary files", Path(tempfile.gettempdir()), 1e8, "set TMPDIR to another folder")


def weights() -> Check:
    """Check the folder that pretrained weights are downloaded to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return folder("weights cache", Path(HF_HUB_CACHE), 1e9, "set HF_HOME to another folder")


def folder(topic: str, path: Path, least: float, advice: str, fault_below: float = -1) -> Check:
    """Check whether a folder, or its nearest existing parent, is writable and has `least` bytes free.

    fault_below: fewer free bytes are a fault, as is a folder that is not writable; negative: at most a warning.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(path)):
            free = free_bytes(path)
    except OSError as error:
        state = "fault" if fault_below >= 0 else "warning"
        return Check(topic, f"{path} is not writable: {error.strerror or error}", state, advice)
    text = f"{file_size(free)} free in {path}"
    if free >= least:
        return Check(topic, text)
    return Check(topic, text, "fault" if free < fault_below else "warning", f"free some space, or {advice}")


CHECKS: dict[str, Callable[[], Check]] = {
    "packages": packages,
    "torch and torchvision": torchvision,
    "device": device,
    "threads": threads,
    "shared memory": shared_memory,
    "disk": disk,
    "temporary files": temporary,
    "weights cache": weights,
}
