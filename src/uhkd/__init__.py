"""uhkd: distil a large vision model into a small one of any other architecture (UHKD, arXiv 2510.24116)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uhkd.commands import Result, cache, compare, distill, evaluate, finetune, predict, report, watch
    from uhkd.data import open_data
    from uhkd.distillation import Distillation
    from uhkd.models import create, load_run

_HOMES = {
    "Distillation": "uhkd.distillation",
    "Result": "uhkd.commands",
    "cache": "uhkd.commands",
    "compare": "uhkd.commands",
    "create": "uhkd.models",
    "distill": "uhkd.commands",
    "evaluate": "uhkd.commands",
    "finetune": "uhkd.commands",
    "load_run": "uhkd.models",
    "open_data": "uhkd.data",
    "predict": "uhkd.commands",
    "report": "uhkd.commands",
    "watch": "uhkd.commands",
}

__all__ = [
    "Distillation",
    "Result",
    "__version__",
    "cache",
    "compare",
    "create",
    "distill",
    "evaluate",
    "finetune",
    "load_run",
    "open_data",
    "predict",
    "report",
    "watch",
]


def __getattr__(name: str) -> Any:
    """The public name, imported on first use so that `import uhkd` costs neither torch nor timm."""
    if name not in _HOMES:
        raise AttributeError(f"module 'uhkd' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
