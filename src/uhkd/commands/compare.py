"""`compare`: many trainings as one resumable comparison with one table."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from uhkd.commands.comparing.cost import measure_costs
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.progress import run, states
from uhkd.commands.comparing.report import print_report, write
from uhkd.commands.comparing.summary import gather
from uhkd.commands.comparing.task_store import TaskStore
from uhkd.commands.report import report
from uhkd.console import log_info, pluralize
from uhkd.data import Columns
from uhkd.errors import UhkdError
from uhkd.recipe import CompareRecipe, DistillRecipe, build
from uhkd.runs import check_place, write_atomically
from uhkd.runs.comparison import RECIPE_FILE
from uhkd.training.inputs import open_recipe_data


def compare(recipe: CompareRecipe | None = None, **options: Any) -> dict[str, Any]:
    """Run every pair x method x seed that is not done yet, then write and print the table.

    `out` holds one run folder per training, report.html (see `report`), compare.json (all results), compare.md, .tex, .csv,
    runs.csv and compare.png. The same command resumes an interrupted comparison: finished trainings are kept, others resume from
    their checkpoints; started again at the same time it adds workers. With `cost` nothing is trained; time, memory and FLOPs of
    a step are measured instead (cost.json, cost.md).

    Returns:
        The content of compare.json or cost.json.

    Raises:
        UhkdError: a recipe is invalid, or some trainings failed (all others are done and in the table).
    """
    settings = build(CompareRecipe, options) if recipe is None else recipe
    out = Path(settings.out).resolve()
    check_place(out)
    plan = make_plan(settings, out)
    if settings.cost:
        return measure_costs(settings, plan, out)
    store = TaskStore(out)
    if settings.split == "test" and states(plan, store)["done"] < len(plan.tasks):
        _check_test_split(plan)
    store.begin(plan)
    write_atomically(out / RECIPE_FILE, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    done = states(plan, store)["done"]
    log_info(
        f"{len(plan.tasks)} trainings ({len(plan.cells)} cells of the table, {len(plan.trials)} settings tried), "
        f"{done} done already; results go to {out}"
    )
    if settings.cache == "auto":
        _log_caches(plan)
    run(plan, store, settings.jobs)
    counts = {"method": len(settings.methods), "pair": len(plan.teachers), "seed": settings.seeds}
    title = settings.title or ", ".join(pluralize(number, noun) for noun, number in counts.items())
    summary = gather(plan, store, title=title, part=settings.split, tune=settings.tune)
    write(out, summary)
    print_report(summary)
    if summary["runs"]:
        try:
            report(runs=(str(out),))
        except (UhkdError, OSError) as error:  # the trainings are done, and their tables are written
            log_info(f"warning: report.html was not written: {error}")
    for line in summary["warnings"]:
        log_info(f"warning: {line}")
    for cache in plan.caches:
        if why := store.failure(cache.name):
            log_info(f"{cache.name} was not created, its trainings ran with the live teacher: {why.splitlines()[0]}")
    failed = {task.name: why for task in plan.tasks if (why := store.failure(task.name))}
    if failed:
        failures = "".join(f"\n  {name}: {why.splitlines()[0]}" for name, why in failed.items())
        raise UhkdError(
            f"{len(failed)} of {len(plan.tasks)} trainings failed (the others are done; the same command runs these again):"
            f"{failures}\n  their output is in {out / 'logs'}"
        )
    return summary


def _log_caches(plan: Plan) -> None:
    """Log how many trainings use a cache, and why the others do not."""
    served = sum(len(cache.serves) for cache in plan.caches)
    seeds = ", ".join(str(seed) for seed in sorted({cache.options["seed"] for cache in plan.caches}))
    others = ", ".join(f"{number} {why}" for why, number in Counter(plan.live.values()).items())
    if not plan.caches:
        log_info(f"no cache of teacher outputs would save time: of {len(plan.live)} students {others}")
        return
    caches = pluralize(len(plan.caches), "cache serves", "caches serve")
    rest = f"; of the others {others}" if others else ""
    log_info(f"{caches} {served} of {served + len(plan.live)} students (view seeds {seeds}){rest}")


def _check_test_split(plan: Plan) -> None:
    """Check before any training that the data of every pair has a test split."""
    opened: set[str] = set()
    for task in plan.tasks:
        if task.measured and (name := str(Columns.of(task.options))) not in opened:
            opened.add(name)
            data = open_recipe_data(build(DistillRecipe, task.options))
            if data.test is None:
                raise UhkdError(
                    f"data {data.name} has no test split; leave out --split test to compare on the held-out split"
                )
