"""The verbs as typed functions: what the command line calls, and the Python API."""

from uhkd.commands.api import cache, distill, finetune
from uhkd.commands.compare import compare
from uhkd.commands.demo import demo
from uhkd.commands.doctor import doctor
from uhkd.commands.exporting import export
from uhkd.commands.indexing import index
from uhkd.commands.inspect import inspect
from uhkd.commands.judging import evaluate, predict
from uhkd.commands.models import models
from uhkd.commands.pushing import push
from uhkd.commands.recipes import recipes
from uhkd.commands.training import Result
from uhkd.commands.verifying import verify_cache

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
    "predict",
    "push",
    "recipes",
    "verify_cache",
]
