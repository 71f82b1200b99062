"""`uhkd doctor`: the software and hardware of this machine, and the faults that keep trainings from running."""

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
from uhkd.console import escape, file_size, log_debug, pluralize, print_result, print_table
from uhkd.recipe.arguments import DoctorArguments

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
    """The outcome of one check.

    state: ok, warning (it works, but slowly, or not everything does) or fault (trainings fail). advice: what to do, if not ok.
    """

    topic: str
    found: str
    state: State = "ok"
    advice: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings, and the fields of `torch.utils.collect_env` as text."""

    findings: tuple[Check, ...]
    environment: dict[str, str]

    @property
    def exit_code(self) -> int:
        """1 with a fault among them, else 0."""
        return int(any(finding.state == "fault" for finding in self.findings))

    def as_json(self) -> dict[str, Any]:
        """Whether trainings can run, every finding, and the environment."""
        findings = [vars(finding) for finding in self.findings]
        return {"ok": self.exit_code == 0, "findings": findings, "environment": self.environment}


def doctor(arguments: DoctorArguments | None = None) -> DoctorReport:
    """Check packages, device, threads and disk; print a table and what to do; return the findings (exit code 1 with a fault).

    Nothing is fetched, and nothing is left behind.
    """
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    diagnosis = DoctorReport(tuple(_run(topic, check) for topic, check in CHECKS.items()), environment())
    columns = (Column(no_wrap=True), Column(no_wrap=True), Column())
    table = Table(*columns, box=box.SIMPLE, show_header=False, pad_edge=False)
    for name, topic in _SHOWN.items():
        if name in diagnosis.environment:
            table.add_row("", topic, escape(diagnosis.environment[name]))
    for finding in diagnosis.findings:
        table.add_row(Text(finding.state, _STYLES[finding.state]), finding.topic, escape(finding.found))
    print_table(table)
    log_debug("\n".join(f"{name}: {value}" for name, value in diagnosis.environment.items()))
    wrong = [finding for finding in diagnosis.findings if finding.state != "ok"]
    for finding in wrong:
        print_result(f"{finding.state}: {finding.topic}: {finding.advice}")
    faults = sum(finding.state == "fault" for finding in wrong)
    print_result(f"{pluralize(faults, 'fault')}, {pluralize(len(wrong) - faults, 'warning')}")
    return diagnosis


def _run(topic: str, check: Callable[[], Check]) -> Check:
    """Return the finding of a check; one that raises must not end the report."""
    try:
        return check()
    except Exception as error:
        log_debug(traceback.format_exc())
        advice = "this could not be found out, which is a fault by itself; uhkd doctor --verbose shows more"
        return Check(topic, f"cannot tell: {type(error).__name__}: {_first_line(error)}", "warning", advice)


def _first_line(error: Exception) -> str:
    return (str(error) or "no reason given").partition("\n")[0]


def environment() -> dict[str, str]:
    """Return where uhkd and Python lie, and the environment by name as `torch.utils.collect_env` reports it."""
    found = {"uhkd": f"{uhkd.__version__} in {Path(uhkd.__file__).parent}, run by {sys.executable}"}
    try:
        from torch.utils.collect_env import get_env_info

        return found | {name: str(value) for name, value in get_env_info()._asdict().items() if value is not None}
    except Exception as error:  # it calls many other programs; without torch the check of torch tells
        log_debug(f"torch.utils.collect_env failed: {type(error).__name__}: {error}")
        return found


def packages() -> Check:
    """Compare installed packages with what this version of uhkd requires; a floor may keep out a vulnerability."""
    try:
        needs = [Requirement(line) for line in metadata.requires("uhkd") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", "uhkd itself is not installed, so that what it requires is not known here")
    problems = unmet(needs)
    if not problems:
        there = (need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""}))
        return Check("packages", ", ".join(f"{name} {_version(name)}" for name in there))
    found = "; ".join(
        f"{need.name} {version or 'is missing'}, needed is {need.specifier}" for need, version in problems
    )
    advice = "pip install " + " ".join(f'"{need.name}{need.specifier}"' for need, _ in problems)
    return Check("packages", found, "fault" if any(version is None for _, version in problems) else "warning", advice)


def unmet(needs: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """Return the requirements that are not met, each with the installed version (None: missing); of extras, only old versions."""
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
    """Run one compiled operator of torchvision: it loads only if torchvision was built for this torch."""
    topic = "torch and torchvision"
    try:
        import torch

        indices = importlib.import_module("torchvision.ops").nms(
            torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5
        )
        if indices.tolist() == [0]:
            return Check(topic, f"{_version('torch')} and {_version('torchvision')} fit together")
        why = f"torchvision's operators give {indices.tolist()}, expected [0]"
    except Exception as error:  # a broken pair can fail in any way
        why = f"do not fit together: {type(error).__name__}: {_first_line(error)}"
    return Check(topic, why, "fault", f"install both anew, from one place: pip install --force-reinstall {fitting()}")


def fitting() -> str:
    """Return the installed torchvision and the torch that its metadata names, as words for pip."""
    needs = [Requirement(line) for line in (metadata.requires("torchvision") or () if _version("torchvision") else ())]
    torch = next((need for need in needs if need.name == "torch"), None)
    return f"torchvision=={_version('torchvision')} torch{torch.specifier}" if torch else "torch torchvision"


def device() -> Check:
    """Run one kernel on the GPU; without a usable GPU, find out why."""
    import torch

    if not torch.cuda.is_available():
        there = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").is_file()
        try:
            torch.cuda.init()
        except Exception as error:  # RuntimeError or AssertionError, by the build
            return without_gpu(torch.version.cuda, there, _first_line(error))
        return without_gpu(torch.version.cuda, there, "")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    try:
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
    except RuntimeError as error:
        built = ", ".join(torch.cuda.get_arch_list())
        advice = f"this torch is built for {built}: install a build for this GPU, or use --device cpu"
        return Check("device", f"{found}, but it cannot compute: {_first_line(error)}", "fault", advice)
    return Check("device", found)


def without_gpu(built: str | None, there: bool, why: str) -> Check:
    """Judge a machine on which torch sees no GPU.

    built: CUDA version that torch was built for. there: whether the machine seems to have one. why: CUDA's error.
    """
    cpu = f"CPU; no GPU seen by torch ({f'built for CUDA {built}' if built else 'built without CUDA'})"
    if not there:
        return Check("device", cpu)
    if built is None:
        advice = "this machine has an NVIDIA GPU: install a torch that is built for CUDA"
        return Check("device", cpu, "warning", advice)
    if "driver" in why and ("old" in why or "insufficient" in why):
        advice = f"update the NVIDIA driver, or install a torch built for an older CUDA than {built}"
    else:
        advice = "CUDA_VISIBLE_DEVICES may hide it, a container may lack it (docker run --gpus all), or the driver is not loaded"
    return Check("device", f"{cpu}, though there is one: {why or 'CUDA gives no reason'}", "fault", advice)


def threads() -> Check:
    """Compare torch's threads with the cores that this process may use: more threads slow each other down."""
    import torch

    from uhkd.data.loader import usable_cores

    used, usable = torch.get_num_threads(), usable_cores()
    found = f"torch uses {used}; {usable} of {os.cpu_count()} cores are usable"
    if used > usable:
        return Check("threads", found, "warning", f"export OMP_NUM_THREADS={usable} (and MKL_NUM_THREADS)")
    return Check("threads", found)


def shared_memory() -> Check:
    """Check the memory by which loader processes hand over images (64 MB in a container by default)."""
    if not Path("/dev/shm").is_dir():
        return Check("shared memory", "no limit of its own on this system")
    advice = "loader processes may end with a bus error: docker run --shm-size=8g, or --workers 0"
    return folder("shared memory", Path("/dev/shm"), 5e8, advice)


def disk() -> Check:
    """Check the folder that runs are written to."""
    place = (Path("runs") if Path("runs").is_dir() else Path.cwd()).resolve()
    advice = "name a folder on another disk by --out (a run keeps weights, a checkpoint and pictures)"
    return folder("disk", place, 5e9, advice, fault_below=5e8)


def temporary() -> Check:
    """Check the folder for temporary files."""
    return folder("temporary files", Path(tempfile.gettempdir()), 1e8, "set TMPDIR to another folder")


def weights() -> Check:
    """Check the folder that pretrained weights are downloaded to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return folder("weights cache", Path(HF_HUB_CACHE), 1e9, "set HF_HOME to another folder")


def folder(topic: str, place: Path, least: float, advice: str, fault_below: float = -1) -> Check:
    """Judge whether a folder, or the nearest one above it that exists, can be written and has `least` bytes free.

    fault_below: bytes below which, as where nothing can be written, it is a fault; negative: never more than a warning.
    """
    there = next(parent for parent in (place.absolute(), *place.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        state = "fault" if fault_below >= 0 else "warning"
        return Check(topic, f"{place} cannot be written: {error.strerror or error}", state, advice)
    found = f"{file_size(free)} free in {place}"
    if free >= least:
        return Check(topic, found)
    return Check(topic, found, "fault" if free < fault_below else "warning", f"make room; or {advice}")


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
