"""A program that writes a cache, or trains from one, in one process after the other and kills each at a moment of its own.

    python torture_cache.py ORDER.json

ORDER has the words of `uhkd.cache` for each stage of the cache (a later one adds views) and those of the distillation from it,
how many processes of each shall be killed, the seed of the moments, and their kinds. Of a cache that is whole too early some
shards are deleted; every life of the run that comes to its end lies in OUT/life-N.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from references.torture import deadly

WRITING = ("anywhere", "shard", "between", "begin", "manifest", "claim", "teacher")
READING = ("anywhere", "record", "step", "checkpoint")


def torn(at: int, part: str = "") -> Callable[[Path, Any], None]:
    """`write_atomically` that dies in the middle of its `at`-th file whose name holds `part`."""
    from uhkd.runs import write_atomically

    count = [0]

    def write(path: Path, content: Any) -> None:
        count[0] += part in path.name
        if count[0] == at:
            half = content.encode() if isinstance(content, str) else content
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(half[: len(half) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(path, content)

    return write


def arm(kind: str, at: int) -> None:
    """Let this process die at the call number `at` of something."""
    from uhkd.cache import Shards
    from uhkd.cache import folder as stored
    from uhkd.runs import checkpoints, files, folder
    from uhkd.training import Teacher, cache_shards, step

    if kind == "shard":
        cache_shards.write_atomically = torn(at)
    elif kind == "between":
        Shards.is_complete = deadly(Shards.is_complete, 5 * at)
    elif kind == "claim":
        cache_shards.hold = deadly(cache_shards.hold, at)
    elif kind == "begin":
        folder.write_atomically = torn(1 + at % 2)
        files.os.fsync = deadly(files.os.fsync, at)
    elif kind == "manifest":
        stored.write_atomically = torn(1, "cache.json")
    elif kind == "teacher":
        Teacher.outputs = deadly(Teacher.outputs, 2 * at)
    elif kind == "record":
        Shards.read_for = deadly(Shards.read_for, 56 + 5 * at)  # an early look takes 64
    elif kind == "step":
        step.weighted_sum = deadly(step.weighted_sum, at)
    elif kind == "checkpoint":
        checkpoints.write_atomically = torn(at)


def main() -> None:
    """Follow the order."""
    import torch

    import uhkd
    from uhkd.cache import shards
    from uhkd.runs import RunFolder
    from uhkd.training import fit

    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    RunFolder.drop_checkpoints = lambda self: None
    fit.draw = lambda folder: []
    shards._SHARD = 32  # several a view
    chance, tale = random.Random(order["seed"]), []

    def lives(name: str, kinds: list[str], kills: int, live: Callable[[int], object]) -> None:
        """Lives of one sort, told how many came to their end, until enough were killed and one more came to its end."""
        killed = ended = 0
        armed = True
        while armed or not ended:
            kind, at, delay = chance.choice(kinds), chance.randint(1, 4), chance.uniform(0.1, order["longest"])
            armed = killed < kills
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    if armed:
                        arm(kind, at)
                    live(ended)
                    code = 0
                finally:
                    os._exit(code)
            if armed and kind == "anywhere":
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)  # not waited for yet: nobody else has its number
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                killed += 1
                tale.append(f"{name}: killed ({kind})")
            elif status:
                sys.exit(f"{name} failed with status {status} after: {'; '.join(tale)}")
            else:
                ended += 1
                assert ended < 100, f"{killed} of {kills} were killed: {tale}"
                if name == "cache" and killed < kills:
                    there = sorted(Path(order["cache"]).glob("view-*/*.bin"))
                    for shard in chance.sample(there, len(there) // 3):
                        shard.unlink()

    def train(life: int) -> None:
        out = Path(order["out"], f"life-{life}")
        uhkd.distill(**order["run"], out=str(out), resume=RunFolder(out).started())

    for words, kills in order["stages"]:
        lives("cache", order["writing"], kills, lambda _, words=words: uhkd.cache(**words))
    lives("run", order["reading"], order["kills"], train)
    print("\n".join(tale))


if __name__ == "__main__":
    main()
