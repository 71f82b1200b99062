"""The commands as typed functions: the Python API, called by the command line too."""

from typing import TYPE_CHECKING

from uhkd.lazy import import_on_use

if TYPE_CHECKING:
    from uhkd.commands.cache import cache
    from uhkd.commands.cache_verify import verify_cache
    from uhkd.commands.compare import compare
    from uhkd.commands.demo import demo
    from uhkd.commands.doctor import doctor
    from uhkd.commands.dry_run import plan_cache, plan_compare, plan_demo, plan_export, plan_training
    from uhkd.commands.evaluate import evaluate, predict
    from uhkd.commands.export import export
    from uhkd.commands.index import index
    from uhkd.commands.inspect import inspect
    from uhkd.commands.models import models
    from uhkd.commands.push import push
    from uhkd.commands.recipes import recipes
    from uhkd.commands.report import report
    from uhkd.commands.train import distill, finetune
    from uhkd.commands.watch import watch
    from uhkd.training.fit import Result

__all__ = [
    "Result",
    "cache",
    "compare",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "index",
    "inspect",
    "models",
    "plan_cache",
    "plan_compare",
    "plan_demo",
    "plan_export",
    "plan_training",
    "predict",
    "push",
    "recipes",
    "report",
    "verify_cache",
    "watch",
]

import_on_use(__name__)
