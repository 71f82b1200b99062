"""Packages whose public names are imported on first use.

torch costs two seconds of processor time, timm, torchvision and lightning_fabric together six more. A command that needs none
of them, or ends with a mistake in a name, must not wait for them.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyPackage(ModuleType):
    """A package that imports a module when one of its names is first asked for."""

    _modules: Mapping[str, str]  # by name

    def __getattr__(self, name: str) -> Any:
        if name not in self._modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._modules[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # an import binds a submodule in its package, where it would hide the function of its name (uhkd.commands.compare)
        if not (name in self._modules and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__dict__["__all__"])


def import_on_use(package: str, modules: Mapping[str, Sequence[str]]) -> None:
    """Turn an imported package, by name, into one whose names come on first use.

    modules: the names by the module that defines each.
    """
    module = sys.modules[package]
    module.__dict__["_modules"] = {name: home for home, names in modules.items() for name in names}
    module.__class__ = _LazyPackage
