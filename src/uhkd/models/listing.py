"""Names of the networks of uhkd, torchvision and timm, read from the source files of these packages.

Importing timm and torchvision takes six seconds, too long for the error message of a misspelt name. Both packages register a
network with a decorator above a function of the same name.
"""

import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from uhkd.models.cifar_variants import VARIANTS

_REGISTERED = re.compile(r"^@register_model(?:\(\))?\n(?:(?!def ).*\n)*?def (\w+)\(", re.MULTILINE)


@cache
def _source(package: str) -> str:
    """Return the source of a package's `models` folder; empty where there are no source files (such as in a zip file)."""
    spec = find_spec(package)
    folders = [Path(path, "models") for path in (spec and spec.submodule_search_locations) or ()]
    return "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))


def _registered(package: str) -> tuple[str, ...]:
    key = _natural if package == "timm" else None
    return tuple(sorted(set(_REGISTERED.findall(_source(package))), key=key))


def _imported(package: str) -> tuple[str, ...]:
    if package == "timm":
        import timm

        return tuple(timm.list_models())
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def _natural(name: str) -> list[int | str]:
    """Sort key of timm: numbers are compared by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


@cache
def listing() -> dict[str, tuple[str, ...]]:
    """Return all network names by library, in the order of the library."""
    return {"uhkd": tuple(VARIANTS)} | {
        package: (package not in sys.modules and _registered(package)) or _imported(package)
        for package in ("torchvision", "timm")
    }


def may_exist(package: str, name: str) -> bool:
    """Return False if a package has no network of this name (without a tag), as far as is possible without importing it.

    An imported package is queried directly, because a program may have registered networks. Otherwise any function of this name
    counts, in case a later version registers networks in another way.
    """
    if package in sys.modules:
        return name in _imported(package)
    return f"def {name}(" in _source(package) or not _registered(package)


def exists(package: str, name: str) -> bool:
    """Return whether a package has a network of this name (without a tag); import it only if `may_exist`."""
    return may_exist(package, name) and name in _imported(package)
