"""`compare`: many trainings as one resumable comparison, told in one table."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from uhkd.commands.comparing.cost import measure_costs
from uhkd.commands.comparing.live import run, states
from uhkd.commands.comparing.plan import Plan, make_plan
from uhkd.commands.comparing.queue import TaskStore
from uhkd.commands.comparing.report import print_report, write
from uhkd.commands.comparing.summary import gather
from uhkd.commands.report import report
from uhkd.console import log_info, pluralize
from uhkd.errors import UhkdError
from uhkd.recipe import CompareRecipe, DistillRecipe, build
from uhkd.runs import check_place, write_atomically
from uhkd.training.inputs import open_recipe_data


def compare(recipe: CompareRecipe | None = None, **options: Any) -> dict[str, Any]:
    """Run every pair x method x seed that is not done yet, then write and show the table.

    Everything lies below `out`: a run folder a training, report.html (see `report`), compare.json (what the numbers rest on),
    compare.md, .tex, .csv, runs.csv, compare.png. Killed and started again it repeats no finished training and goes on with
    begun ones from their checkpoints; the same command beside it adds workers. With `cost` the trainings are left out and the
    step's time, memory and FLOPs measured instead (cost.json, cost.md, ...).

    Returns:
        What compare.json (cost.json) holds.

    Raises:
        UhkdError: for recipes that cannot work, or when some trainings failed (all others are done and in the table).
    """
    settings = build(CompareRecipe, options) if recipe is None else recipe
    out = Path(settings.out).resolve()
    check_place(out)
    plan = make_plan(settings, out)
    if settings.cost:
        return measure_costs(settings, plan, out)
    store = TaskStore(out)
    if settings.split == "test" and states(plan, store)["done"] < len(plan.tasks):
        _refuse_without_test(plan)
    store.begin(plan)
    write_atomically(out / "compare.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    done = states(plan, store)["done"]
    log_info(
        f"{len(plan.tasks)} trainings ({len(plan.cells)} cells of the table, {len(plan.trials)} settings tried), "
        f"{done} done already; everything goes to {out}"
    )
    if settings.cache == "auto":
        _log_caches(plan)
    run(plan, store, settings.jobs)
    title = settings.title or ", ".join(
        pluralize(number, noun)
        for number, noun in ((len(settings.methods), "method"), (len(plan.teachers), "pair"), (settings.seeds, "seed"))
    )
    summary = gather(plan, store, title=title, part=settings.split, tune=settings.tune)
    write(out, summary)
    print_report(summary)
    if summary["runs"]:
        try:
            report(runs=(str(out),))
        except (ValueError, OSError) as error:  # the trainings are done, and their tables are written
            log_info(f"warning: the page of the comparison was not written: {error}")
    for line in summary["warnings"]:
        log_info(f"warning: {line}")
    for cache in plan.caches:
        if why := store.failure(cache.name):
            log_info(f"{cache.name} was not made, its trainings ran with the teacher: {why.splitlines()[0]}")
    failed = {task.name: why for task in plan.tasks if (why := store.failure(task.name))}
    if failed:
        failures = "".join(f"\n  {name}: {why.splitlines()[0]}" for name, why in failed.items())
        raise UhkdError(
            f"{len(failed)} of {len(plan.tasks)} trainings failed (the others are done; the same command tries these again):"
            f"{failures}\n  what they said is in {out / 'logs'}"
        )
    return summary


def _log_caches(plan: Plan) -> None:
    """Which trainings learn from stored signals, and why the others do not."""
    served = sum(len(cache.serves) for cache in plan.caches)
    seeds = ", ".join(str(seed) for seed in sorted({cache.options["seed"] for cache in plan.caches}))
    others = ", ".join(f"{number} {why}" for why, number in Counter(plan.live.values()).items())
    rest = f"; of the others {others}" if others else ""
    if plan.caches:
        s = "s serve" if len(plan.caches) > 1 else " serves"
        log_info(
            f"{len(plan.caches)} cache{s} {served} of {served + len(plan.live)} students (view seeds {seeds}){rest}"
        )
    else:
        log_info(f"no cache of teacher signals would pay: of {len(plan.live)} students {others}")


def _refuse_without_test(plan: Plan) -> None:
    """See, before any training, that the data of every pair has the part that the table is about."""
    opened: set[str] = set()
    for task in plan.tasks:
        if task.measured and (name := str(task.options.get("data"))) not in opened:
            opened.add(name)
            data = open_recipe_data(build(DistillRecipe, task.options))
            if data.test is None:
                raise UhkdError(
                    f"data {data.name} has no test part; leave out --split test to compare on the held-out part"
                )
