"""A mutation check: what share of small changes of the core do its tests find?

    pip install cosmic-ray
    python benchmarks/mutants.py --count 200 --out mutants.json

cosmic-ray lists all its mutations of the modules in GROUPS; `--count` of them are drawn by `--seed`. Each is applied to a copy of
the committed code, and the tests of its group run until the first fails. A mutant is killed if a test fails or takes too long.
Started again with the same file, it continues after the mutants of this file.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_TRAINING = ["tests/training/test_trainer.py", "tests/training/test_balance.py", "tests/training/test_unused.py"]
_RESUME = ["tests/runs", "tests/training/test_resuming.py", "tests/training/test_faults.py"]
# modules -> tests, the quickest first
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "spectral": (["spectral/*.py"], ["tests/spectral"]),
    "methods": (["methods/*.py"], ["tests/methods"]),
    "training step": (["training/step.py", "training/learner.py", "training/balance/*.py"], _TRAINING),
    "resume": (["training/state.py", "training/checkpoint_checks.py", "runs/checkpoints.py"], _RESUME),
}
PRELOADED = ["torch", "torchvision", "timm", "torchmetrics", "scipy.stats", "matplotlib.pyplot", "pytest"]
LOG = "mutants.log"  # output of the tests
# in annotations, `|` joins types: nothing runs a mutant of it
LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr",)


def mutants(root: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` of all mutations of the code in `root`: group, module, operator, occurrence, position (line, column)."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    kinds = {name: get_operator(name) for name in sorted(operator_names()) if not name.startswith(LEFT_OUT)}
    operators = {name: kind() for name, kind in kinds.items() if not kind.arguments()}
    found = []
    for group, (patterns, _) in GROUPS.items():
        for path in sorted(p for pattern in patterns for p in (root / "src" / "uhkd").glob(pattern)):
            nodes = list(ast_nodes(get_ast_from_path(path)))
            for name, operator in operators.items():
                positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
                facts = {"group": group, "module": str(path.relative_to(root)), "operator": name}
                found += [{**facts, "occurrence": i, "position": [*start]} for i, start in enumerate(positions)]
    chance = random.Random(seed)
    chance.shuffle(found)
    # one for each place: a binary operator has eleven mutants, a number two
    places = {(m["module"], *m["position"], m["operator"].split("_")[0]): m for m in found}
    return chance.sample(list(places.values()), min(count, len(places)))


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run tests in a copy of the repository until one fails; exit with pytest's code. In a process of its own."""
    os.setsid()
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    sys.path.insert(0, str(copy / "src"))
    log = os.open(copy / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import pytest
    import torch

    torch.set_num_threads(1)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(int(pytest.main([*options, "-m", "not slow", *tests])))


def outcome(copy: Path, tests: list[str], limit: float) -> str:
    """Return "survived", "killed" or "timeout" of the code in a copy."""
    process = multiprocessing.get_context("forkserver").Process(target=run_tests, args=(copy, tests))
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid or 0, 9)
        process.join()
        return "timeout"
    if process.exitcode == 5:
        raise SystemExit(f"no tests were found in {tests}")
    return "survived" if process.exitcode == 0 else "killed"


def try_mutant(mutant: dict[str, Any], copy: Path, limits: dict[str, float]) -> dict[str, Any]:
    """Return a mutant with its line before and after, outcome and seconds. limits: seconds for the tests of each group."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    path, group, began = copy / mutant["module"], mutant["group"], time.monotonic()
    with use_mutation(path, get_operator(mutant["operator"])(), mutant["occurrence"]) as (before, after):
        pairs = zip(before.splitlines(), after.splitlines(), strict=False)
        changed = next(([a.strip(), b.strip()] for a, b in pairs if a != b), None)
        found = outcome(copy, GROUPS[group][1], limits[group])
    return {**mutant, "change": changed, "outcome": found, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Try mutants; the file is written after each."""
    # not above: the processes of the tests import this file, and must import the copy's uhkd
    from uhkd.runs import environment, write_atomically

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=180.0, help="no mutant begins after that")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    arguments = parser.parse_args()
    if importlib.util.find_spec("cosmic_ray") is None:
        parser.error("cosmic-ray makes the mutants and is not installed: pip install cosmic-ray")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    began, facts = time.monotonic(), {k: v for k, v in environment().items() if k != "command"}
    identity = {"seed": arguments.seed, "count": arguments.count, "commit": facts["commit"]}
    content: dict[str, Any] = {**identity, "seconds": {}, "mutants": [], "environment": facts}
    if arguments.out.is_file():
        content = json.loads(arguments.out.read_text())
        if other := {name: content[name] for name in identity if content[name] != identity[name]}:
            parser.error(f"{arguments.out} has other mutants ({other}, expected {identity}): choose another --out")
    known = {_key(mutant) for mutant in content["mutants"]}
    with tempfile.TemporaryDirectory(prefix="uhkd-mutants-") as folder:
        copies: Queue[Path] = Queue()
        for number in range(arguments.workers):
            copy = Path(folder, str(number))
            copy.mkdir()
            subprocess.run(f"git archive HEAD | tar x -C {copy}", shell=True, cwd=ROOT, check=True)
            copies.put(copy)
        drawn = mutants(Path(folder, "0"), arguments.count, arguments.seed)
        drawn = [mutant for mutant in drawn if mutant["group"] in arguments.groups]

        def work(mutant: dict[str, Any]) -> None:
            if time.monotonic() - began > 60 * arguments.minutes or _key(mutant) in known:
                return
            copy = copies.get()
            try:
                content["mutants"].append(try_mutant(mutant, copy, limits))
                write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")
            finally:
                copies.put(copy)

        limits = {}
        for group in arguments.groups:
            start = time.monotonic()
            if outcome(Path(folder, "0"), GROUPS[group][1], 1800) != "survived":
                sys.exit(f"{Path(folder, '0', LOG).read_text()[-3000:]}\nthe tests of {group} fail without a mutation")
            content["seconds"][group] = round(time.monotonic() - start, 1)
            limits[group] = 60 + 3 * content["seconds"][group]
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(work, drawn))
    write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")
    counts = Counter(mutant["outcome"] for mutant in content["mutants"])
    print(f"{len(content['mutants'])} mutants of {len(drawn)}: {dict(counts)}: {arguments.out}")


def _key(mutant: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(mutant[name] for name in ("module", "operator", "occurrence"))


if __name__ == "__main__":
    main()
