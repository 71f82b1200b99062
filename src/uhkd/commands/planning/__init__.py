"""`--dry-run`: all of a verb that can be settled and refused before work; nothing is written, trained or fetched for it."""

from uhkd.commands.planning.several import plan_compare, plan_demo, plan_export
from uhkd.commands.planning.single import plan_cache, plan_training

__all__ = ["plan_cache", "plan_compare", "plan_demo", "plan_export", "plan_training"]
