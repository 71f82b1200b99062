"""Training on Lightning Fabric: a student, its losses, and frozen teachers or a cache of their outputs.

`setup.prepare` assembles a training from a recipe, and `trainer.Trainer` runs it. The loss is computed in
`learner.StudentWithLosses.forward` (raw terms) and `learner.weighted_sum`; for a training loop of your own, the same in one
module is `distillation.Distillation`.
"""

from uhkd.training.balance import Balance, Lead, make_balance
from uhkd.training.cached_teacher import CachedTeacher, check_needs, target_differences
from uhkd.training.checkpoint_checks import check_tensors
from uhkd.training.deterministic import make_deterministic
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.loggers import check_loggers
from uhkd.training.optimizer import FUSED
from uhkd.training.schedule import lr_factor
from uhkd.training.teacher import Teacher, TeacherEnsemble, TeacherSource, at_chance, calibrate

__all__ = [
    "FUSED",
    "Balance",
    "CachedTeacher",
    "Lead",
    "StudentWithLosses",
    "Teacher",
    "TeacherEnsemble",
    "TeacherSource",
    "at_chance",
    "calibrate",
    "check_loggers",
    "check_needs",
    "check_tensors",
    "lr_factor",
    "make_balance",
    "make_deterministic",
    "target_differences",
    "weighted_sum",
]
