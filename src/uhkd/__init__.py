"""uhkd: distil a large vision model into a small one of any other architecture (UHKD, arXiv 2510.24116)."""

from typing import TYPE_CHECKING

from uhkd.errors import UhkdError
from uhkd.lazy import import_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uhkd.commands import Result, cache, compare, distill, evaluate, finetune, predict, report, watch
    from uhkd.data import open_data
    from uhkd.models import create, load_run
    from uhkd.training.distillation import Distillation

__all__ = [
    "Distillation",
    "Result",
    "UhkdError",
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

import_on_use(__name__)
