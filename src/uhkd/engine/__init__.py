"""The training loop on Lightning Fabric: one student, its distillers, a sealed teacher."""

from uhkd.engine.balance import Balance, Lead, make_balance
from uhkd.engine.deterministic import make_deterministic
from uhkd.engine.learner import Learner, weigh
from uhkd.engine.loggers import check_loggers
from uhkd.engine.optimizer import FUSED
from uhkd.engine.resuming import check_tensors
from uhkd.engine.schedule import lr_factor
from uhkd.engine.stored import StoredTeacher, check_needs, target_differences
from uhkd.engine.teacher import Teacher, Teachers, at_chance, calibrate
from uhkd.engine.trainer import EVAL_BATCH, Job, Trainer

__all__ = [
    "EVAL_BATCH",
    "FUSED",
    "Balance",
    "Job",
    "Lead",
    "Learner",
    "StoredTeacher",
    "Teacher",
    "Teachers",
    "Trainer",
    "at_chance",
    "calibrate",
    "check_loggers",
    "check_needs",
    "check_tensors",
    "lr_factor",
    "make_balance",
    "make_deterministic",
    "target_differences",
    "weigh",
]
