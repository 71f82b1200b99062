"""Lazy imports: the public names of a package are imported on first use.

Importing torch takes two seconds of CPU time; timm, torchvision and lightning_fabric together six more. A command that needs
none of them, or stops at a wrong name, must not wait for them.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyPackage(ModuleType):
    """A package that imports a module on the first access to one of its names."""

    _modules: Mapping[str, str]  # by name

    def __getattr__(self, name: str) -> Any:
        if name not in self._modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(self._modules[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # an import binds a submodule in its package, which would hide a function of the same name (uhkd.commands.compare)
        if not (name in self._modules and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__dict__["__all__"])


def import_on_use(package: str, modules: Mapping[str, Sequence[str]]) -> None:
    """Make the names of an imported package lazy; `modules` maps each defining module to the names."""
    module = sys.modules[package]
    module.__dict__["_modules"] = {name: path for path, names in modules.items() for name in names}
    module.__class__ = _LazyPackage
