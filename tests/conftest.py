"""Shapes are checked under pytest only: the hook must be in place before anything of uhkd is imported."""

import os
import sys

from hypothesis import settings
from jaxtyping import install_import_hook

assert not [name for name in sys.modules if name == "uhkd" or name.startswith("uhkd.")], "uhkd imported before the hook"
install_import_hook("uhkd", "typechecker.check")

# one thread a worker: pytest-xdist already uses every core (also for processes that tests start)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch  # noqa: E402

torch.set_num_threads(1)

# the same examples every time; no deadline, as machines differ and other tests run beside
settings.register_profile("uhkd", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("uhkd")
