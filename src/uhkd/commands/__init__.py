"""The verbs as typed functions: what the command line calls, and the Python API."""

from uhkd.commands.caching import cache
from uhkd.commands.compare import compare
from uhkd.commands.demo import demo
from uhkd.commands.doctor import doctor
from uhkd.commands.dry_run import plan_cache, plan_compare, plan_demo, plan_export, plan_training
from uhkd.commands.exporting import export
from uhkd.commands.indexing import index
from uhkd.commands.inspect import inspect
from uhkd.commands.judging import evaluate, predict
from uhkd.commands.models import models
from uhkd.commands.pushing import plan_push, push
from uhkd.commands.recipes import recipes
from uhkd.commands.report import report
from uhkd.commands.train import distill, finetune
from uhkd.commands.verifying import verify_cache
from uhkd.commands.watching import watch
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
    "plan_push",
    "plan_training",
    "predict",
    "push",
    "recipes",
    "report",
    "verify_cache",
    "watch",
]
