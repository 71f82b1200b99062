"""Names of the networks that come with uhkd, torchvision and timm, read from the sources of these packages.

Importing timm and torchvision takes six seconds, in which a slip in a name would wait for its answer. Both register a network
by a decorator above the function of its name.
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
    """The text of a package's models; what is neither in a folder nor a plain file has none."""
    spec = find_spec(package)
    folders = [Path(place, "models") for place in (spec and spec.submodule_search_locations) or ()]
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
    """As timm sorts: numbers by their size."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


@cache
def listing() -> dict[str, tuple[str, ...]]:
    """Every network by library, in the order in which the library lists them."""
    return {"uhkd": tuple(VARIANTS)} | {
        package: (package not in sys.modules and _registered(package)) or _imported(package)
        for package in ("torchvision", "timm")
    }


def may_exist(package: str, name: str) -> bool:
    """Return False where a package has no network of this name (without a tag), as far as is known without importing it.

    One that is imported is asked: it has the networks that a program registered itself. Else a network that a later version
    registers in another way is still a function of its name.
    """
    if package in sys.modules:
        return name in _imported(package)
    return f"def {name}(" in _source(package) or not _registered(package)


def exists(package: str, name: str) -> bool:
    """Return whether a package has a network of this name (without a tag); it is imported unless that is out of the question."""
    return may_exist(package, name) and name in _imported(package)
