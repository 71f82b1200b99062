"""Versions: of uhkd, Python and the packages below it, and whether they fit together."""

import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import uhkd
from uhkd.commands.diagnosing.finding import Finding

_SHOWN = (
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "numpy",
    "pillow",
    "scikit-learn",
    "matplotlib",
    "safetensors",
)

EXTRAS = {
    "hf": ("datasets",),
    "int8": ("torchao",),
    "lightning": ("pytorch_lightning",),
    "mlflow": ("mlflow", "pytorch_lightning"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "transformers": ("transformers",),
    "wandb": ("wandb", "pytorch_lightning"),
}
"""What each extra is for users brings, by the names of its modules: metadata may be of an older version of uhkd."""


def own() -> Finding:
    """Which uhkd runs, and whether others are to be found by the name."""
    said = f"{uhkd.__version__} in {Path(uhkd.__file__).parent}"
    found = programs(os.environ.get("PATH", ""))
    if len(found) > 1:
        places = ", ".join(map(str, found))
        advice = (
            f"the first of them is run by the word uhkd ({places}); take the others off PATH, or run python -m uhkd"
        )
        return Finding("uhkd", f"{said}; {len(found)} programs of this name", "warning", advice)
    return Finding("uhkd", said)


def programs(path: str) -> list[Path]:
    """The different programs called uhkd in the folders of a PATH, in its order."""
    names = ("uhkd.exe", "uhkd.cmd", "uhkd") if os.name == "nt" else ("uhkd",)
    there = [Path(folder) / name for folder in path.split(os.pathsep) if folder for name in names]
    found = {file.resolve(): file for file in reversed(there) if file.is_file() and os.access(file, os.X_OK)}
    return [file for file in dict.fromkeys(there) if file in found.values()]


def python() -> Finding:
    """The interpreter."""
    return Finding("python", f"{platform.python_version()} on {platform.platform()}, {sys.executable}")


def packages() -> Finding:
    """The packages below us, against what this version of uhkd asks for; a floor often has a vulnerability as its reason."""
    there = ", ".join(f"{name} {version}" for name in _SHOWN if (version := installed(name)))
    try:
        wanted = [Requirement(line) for line in metadata.requires("uhkd") or ()]
    except metadata.PackageNotFoundError:
        return Finding("packages", f"{there}; uhkd itself is not installed, so that what it needs is not known here")
    problems = unmet([need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})])
    if problems:
        specs = " ".join(f'"{need.name}{need.specifier}"' for need, _ in problems)
        said = "; ".join(
            f"{need.name} {version or 'is missing'}, needed is {need.specifier}" for need, version in problems
        )
        missing = any(version is None for _, version in problems)
        return Finding("packages", said, "fault" if missing else "warning", f"pip install {specs}")
    return Finding("packages", there)


def unmet(wanted: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """The requirements that what is installed does not meet, each with the version that is there (None: none)."""
    found = [(need, installed(need.name)) for need in wanted]
    return [(need, version) for need, version in found if version is None or not need.specifier.contains(version, True)]


def installed(name: str) -> str | None:
    """A package's version, if it is there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def extras() -> Finding:
    """Optional packages: which of uhkd's extras can be imported; one that is there in an old version is a warning."""
    try:
        needs = [Requirement(line) for line in metadata.requires("uhkd") or ()]
    except metadata.PackageNotFoundError:
        needs = []
    complete, absent, old = [], [], []
    for extra, modules in EXTRAS.items():
        own = [need for need in needs if need.marker and not _plain(need) and need.marker.evaluate({"extra": extra})]
        there = all(importlib.util.find_spec(module) for module in modules)
        outdated = any(version for _, version in unmet(own))
        (absent if not there else old if outdated else complete).append(extra)
    said = f"{', '.join(complete) or 'none'} installed"
    said += f'; not installed: {", ".join(absent)} (pip install "uhkd[NAME]")' if absent else ""
    if old:
        return Finding(
            "extras", f"{said}; too old: {', '.join(old)}", "warning", f'pip install -U "uhkd[{",".join(old)}]"'
        )
    return Finding("extras", said)


def _plain(need: Requirement) -> bool:
    return need.marker is not None and need.marker.evaluate({"extra": ""})


def pair() -> Finding:
    """Whether torchvision was built for this torch: its compiled operators load only then."""
    topic = "torch and torchvision"
    try:
        import torch

        kept = importlib.import_module("torchvision.ops").nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        if kept.tolist() == [0]:
            return Finding(topic, "fit together")
        why = f"torchvision's operators give {kept.tolist()}, expected [0]"
    except Exception as error:  # a broken pair can fail in any way
        why = f"do not fit together: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Finding(topic, why, "fault", f"install both anew, from one place: pip install --force-reinstall {fitting()}")


def fitting() -> str:
    """The installed torchvision with the torch that it was built for, as it says itself."""
    wanted = [
        Requirement(line) for line in (metadata.requires("torchvision") or () if installed("torchvision") else ())
    ]
    torch = next((need for need in wanted if need.name == "torch"), None)
    return f"torchvision=={installed('torchvision')} torch{torch.specifier}" if torch else "torch torchvision"


SOFTWARE = {"uhkd": own, "python": python, "packages": packages, "extras": extras, "torch and torchvision": pair}
