"""results/reliability/*.json (benchmarks/soak.py, mutants.py) -> the measured part of docs/reliability.md (see render.py)."""

from collections import Counter
from typing import Any

from uhkd.commands.comparing.tables import markdown

COMMANDS = {
    "finetune": "`finetune` on an image folder, one loader process",
    "distill": "`distill`, live teacher",
    "cache": "`cache`",
    "cached": "`distill` from a cache",
    "compare": "`compare`, two methods",
    "two processes": "`distill` by two processes",
}
FAULTS = {
    "kill": "SIGKILL (all processes of the training)",
    "rank": "SIGKILL of one of two processes",
    "term": "SIGTERM",
    "usr1": "SIGUSR1",
    "clock": "wall clock set four times in three seconds, by up to a day",
    "flip": "one flipped bit in the newest checkpoint",
    "cut": "a file of the newest checkpoint cut to half its length",
    "full": "full disk",
    "shard": "a third of a cache's shards deleted",
    "image": "a training image replaced before resuming",
    "one process": "resumed by one process in place of two, then SIGTERM",
}


def reliability(found: dict[str, dict[str, Any]]) -> str:
    """Tables of the soak, and of the mutants before and after tests were added."""
    soaks = {name: content for name, content in found.items() if "lives" in content}
    checks = {name: content for name, content in found.items() if "mutants" in content}
    return "\n\n".join(
        [
            "### Faults",
            *([_soak(name, content) for name, content in soaks.items()] or ["Not yet run."]),
            "### Mutants",
            *([_mutants(name, content) for name, content in checks.items()] or ["Not yet run."]),
        ]
    )


def _mutants(name: str, content: dict[str, Any]) -> str:
    """Mutants by group and outcome."""
    counts = Counter((mutant["group"], mutant["outcome"]) for mutant in content["mutants"])
    groups = sorted({group for group, _ in counts})
    rows = [["modules", "mutants", "a test failed", "too slow", "survived"]]
    for group in groups:
        own = [counts[group, outcome] for outcome in ("killed", "timeout", "survived")]
        rows.append([group, *map(str, (sum(own), *own))])
    total = len(content["mutants"])
    killed = 100 - 100 * sum(counts[group, "survived"] for group in groups) / total
    facts = content["environment"]
    return "\n\n".join(
        [
            f"{total} of {content['count']} mutants, drawn with seed {content['seed']}, were tried: {killed:.1f} % killed.",
            markdown(rows),
            f"torch {facts['versions']['torch']}; commit {facts['commit']}. File: `results/reliability/{name}`.",
        ]
    )


def _soak(name: str, content: dict[str, Any]) -> str:
    failed = Counter(failure.split(": ")[0] for failure in content["failures"])
    commands = [["command", "finished", "failures"]]
    commands += [[COMMANDS[task], str(count), str(failed[task])] for task, count in content["ended"].items()]
    faults = [["fault", "times"], *([FAULTS[fault], str(n)] for fault, n in sorted(content["faults"].items()))]
    memory = []
    for where, pairs in content["memory (MB) and open files"].items():
        (first, files), (last, files_later) = pairs[1], pairs[-1]
        memory.append(f"{where}: {first:.0f} to {last:.0f} MB, {files} to {files_later} open files")
    facts = content["environment"]
    return "\n\n".join(
        [
            f"{content['minutes']:.0f} minutes: {content['lives']} starts of commands, {sum(content['faults'].values())} faults, "
            f"{len(content['failures'])} failures.",
            markdown(commands),
            markdown(faults),
            f"One process {'; '.join(memory)}.",
            f"{facts['cpu_cores']} shared CPU cores; torch {facts['versions']['torch']}; commit {facts['commit']}. File: "
            f"`results/reliability/{name}`.",
        ]
    )
