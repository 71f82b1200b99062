"""A program that trains in one process after the other and kills each at a moment of its own, until enough were killed.

    python torture.py ORDER.json

ORDER has the words of a distillation, how many processes shall be killed, the seed of the moments, and their kinds. Every life
of the run that comes to its end lies in OUT/life-N. The processes are forked, so that libraries are imported once.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("anywhere", "step", "checkpoint", "rotation", "evaluation", "metrics", "end")
LONGEST = 4.0  # seconds until a kill "anywhere"


def deadly(real: Callable[..., Any], at: int, half: bool = False) -> Callable[..., Any]:
    """`real`, whose call number `at` is the last thing that happens, before, after or (of a file) in the middle of it."""
    count, process = [0], os.getpid()

    def wrapped(*args: Any, **others: Any) -> Any:
        if os.getpid() != process:  # a loader process, which removes temporary files by the same functions
            return real(*args, **others)
        count[0] += 1
        if count[0] == at and half:
            path, content = args
            path.write_bytes(content[: len(content) // 2] if isinstance(content, bytes) else content[:9].encode())
        if count[0] == at and at % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **others)
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return wrapped


def arm(kind: str, at: int) -> None:
    """Let this process die at the call number `at` of something."""
    import shutil

    from uhkd.runs import RunFolder, checkpoints
    from uhkd.training import fit, step, trainer

    if kind == "step":
        step.weighted_sum = deadly(step.weighted_sum, at)
    elif kind == "checkpoint":
        checkpoints.write_atomically = deadly(checkpoints.write_atomically, at, half=True)
    elif kind == "rotation":
        shutil.rmtree = deadly(shutil.rmtree, at)
        Path.replace = deadly(Path.replace, 6 * at)  # files are renamed too
    elif kind == "evaluation":
        trainer.evaluate = deadly(trainer.evaluate, 1 + at % 2)
    elif kind == "metrics":
        RunFolder.write_metrics = deadly(RunFolder.write_metrics, 1 + at % 2)
    elif kind == "end":
        fit.draw = deadly(fit.draw, 1)
        RunFolder.write_model = deadly(RunFolder.write_model, 1 + at % 2)


def main() -> None:
    """Follow the order."""
    import torch

    import uhkd
    from uhkd.runs import RunFolder
    from uhkd.training import fit

    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    RunFolder.drop_checkpoints = lambda self: None  # the last is looked at afterwards
    fit.draw = lambda folder: []  # takes longer than these trainings
    chance, killed, life, tale = random.Random(order["seed"]), 0, 0, []
    while True:
        out = Path(order["out"], f"life-{life}")
        kind, at, delay = chance.choice(order["kinds"]), chance.randint(1, 4), chance.uniform(0.2, LONGEST)
        armed = killed < order["kills"]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if armed:
                    arm(kind, at)
                uhkd.distill(**order["words"], out=str(out), resume=RunFolder(out).started())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if armed and kind == "anywhere":
            time.sleep(delay)
            os.kill(
                child, signal.SIGKILL
            )  # it may have ended already: until it is waited for nobody else has its number
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
            tale.append(f"life {life}: killed ({kind})")
            continue
        if status:
            sys.exit(f"a training failed with status {status} after: {'; '.join(tale)}")
        life += 1
        if not armed:
            break
    print("\n".join(tale))


if __name__ == "__main__":
    main()
