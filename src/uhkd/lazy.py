"""Lazy imports: the public names of a package are imported on first use.

Importing torch takes two seconds of CPU time; timm, torchvision and lightning_fabric together six more. A command that needs
none of them, or stops at a wrong name, must not wait for them.
"""

import ast
import sys
from collections.abc import Mapping
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


def import_on_use(package: str) -> None:
    """Make the names lazy that the source of an imported package imports below `if TYPE_CHECKING`."""
    module: Any = sys.modules[package]
    blocks = [node for node in ast.parse(module.__loader__.get_source(package)).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    module.__dict__["_modules"] = {alias.name: node.module for node in imports for alias in node.names}
    module.__class__ = _LazyPackage
