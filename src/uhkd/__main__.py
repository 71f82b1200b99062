"""The command `uhkd`: its help without heavy imports, its verbs, its errors and exit codes."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uhkd import __version__
from uhkd.launching import end_with_launcher
from uhkd.text import shown_lines

VERBS = {
    "demo": "a teacher and its students on handwritten digits, in minutes, with table and pictures",
    "models": "list networks by name and size",
    "recipes": "list packaged recipes, show one, or compare two key by key",
    "inspect": "try a pair of networks without training: taps, spectra, memory",
    "finetune": "train one network on labels: a teacher or a scratch baseline",
    "distill": "train a student to imitate a teacher of any other architecture",
    "cache": "store a teacher's signals once, for many students; cache verify checks them",
    "compare": "pairs x methods x seeds side by side, resumable, in one table; or what a step costs",
    "eval": "accuracy of a trained run",
    "predict": "classes of image files",
    "export": "the trained network alone, for timm, torch.export or ONNX, also in int8, checked",
    "push": "an exported network with its model card onto a hub, private by default",
    "index": "note where the samples of tar shards lie",
    "doctor": "what this machine offers: versions, device, precision, disk",
}

# a verb whose name is taken in Python has another name there
_FUNCTIONS = {"eval": "evaluate", "cache verify": "verify_cache"}

_EXAMPLES = """\
  uhkd demo
  uhkd finetune --model timm/resnet18 --start pretrained --data path/to/images --epochs 20 --out runs/teacher
  uhkd distill --teacher runs/teacher --student timm/deit_tiny_patch16_224 --data path/to/images --out runs/student
  uhkd eval runs/student
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 2 the user's mistake (told on stderr), 130 stopped
    (143 and 138: by SIGTERM and SIGUSR1, saved before)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb in ("-V", "--version"):
        print(f"uhkd {__version__}")
        return 0
    if verb not in VERBS:
        return _unknown_verb(verb)
    if rest[:1] == ["verify"] and verb == "cache":
        verb, rest = "cache verify", rest[1:]
    end_with_launcher()
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        print(f"\nuhkd {verb}: stopped", file=sys.stderr)
        return 130


def _help() -> str:
    verbs = "".join(f"  {verb:<10}{line}\n" for verb, line in VERBS.items())
    return (
        "usage: uhkd VERB [OPTIONS]      options of a verb: uhkd VERB --help\n\n"
        "Distil a large vision model into a small one of any other architecture, on your own images.\n\n"
        f"verbs:\n{verbs}\nexamples:\n{_EXAMPLES}\nuhkd --version prints the version ({__version__}).\n"
    )


def _unknown_verb(verb: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(verb.lower(), VERBS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}"
    kind = "option" if verb.startswith("-") else "verb"
    print(f"uhkd: error: unknown {kind} {verb!r}; {hint}", file=sys.stderr)
    return 2


def _run(verb: str, rest: list[str]) -> int:
    """Parse, import the heavy code, run; the user's mistakes become one message and exit code 2."""
    asked: Any = None
    try:
        from uhkd.cli import parse

        asked = parse(verb, rest)
        from uhkd import commands

        getattr(commands, _FUNCTIONS.get(verb, verb))(asked)
        return 0
    except SystemExit as stop:  # after a verb's --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stop:  # a training that was asked to end says where it stands
        print(shown_lines(f"\nuhkd {verb}: {str(stop) or 'stopped'}{_go_on(verb, rest, asked)}"), file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:
        # the reader of our output is gone (uhkd models | head): nothing more can be said on stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("UHKD_TRACEBACK") == "1":
            raise
        print(shown_lines(f"uhkd {verb}: error: {error}{_trace_hint(error)}"), file=sys.stderr)
        return 2


def _go_on(verb: str, rest: Sequence[str], asked: Any) -> str:
    """How to go on with a stopped training."""
    if verb in ("compare", "cache") and asked is not None:
        return "; the same command goes on with it"
    if verb not in ("finetune", "distill"):
        return ""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the first may still be writing
        return "; go on with the same torchrun command and --resume"
    out = getattr(asked, "out", None)
    if out is None:
        return "; if a checkpoint was written, go on with the same command and --resume --out RUN_FOLDER"
    if not any(Path(out).glob("checkpoints/step-*")):
        return " before the first checkpoint"
    words = [*rest] if "--resume" in rest else [*rest, "--resume"]
    return f"; go on with: uhkd {verb} {shlex.join(words)}"


def _trace_hint(error: BaseException) -> str:
    """A pointer to the trace where the error does not come from a check of ours."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return "" if module.split(".")[0] == "uhkd" else "\n  (UHKD_TRACEBACK=1 shows where this came from)"


if __name__ == "__main__":
    sys.exit(main())
