"""The command `uhkd`: its help without heavy imports, its verbs, its errors and exit codes."""

import contextlib
import io
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from uhkd import __version__
from uhkd.cli import json_output
from uhkd.console import (
    DRY_RUN,
    OPTIONS,
    PLANS,
    OutputOptions,
    escape_lines,
    is_rank_zero,
    log_debug,
    output_options,
    parse_output_options,
)
from uhkd.distributed import exit_with_parent, first_to_report
from uhkd.errors import UhkdError

COMMANDS = {
    "demo": "a teacher and its students on handwritten digits, in minutes, with table and pictures",
    "models": "list networks by name and size",
    "recipes": "list packaged recipes, show one, or compare two key by key",
    "inspect": "try a pair of networks without training: taps, spectra, memory",
    "finetune": "train one network on labels: a teacher or a scratch baseline",
    "distill": "train a student to imitate a teacher of any other architecture",
    "cache": "store a teacher's signals once, for many students; cache verify checks them",
    "compare": "pairs x methods x seeds side by side, resumable, in one table; or what a step costs",
    "watch": "where trainings stand, live, from another terminal",
    "eval": "accuracy of a trained run",
    "predict": "classes of image files",
    "report": "runs as one page to look at: tables, figures, images",
    "export": "the trained network alone, for timm, torch.export or ONNX, also in int8, checked",
    "push": "an exported network with its model card onto a hub, private by default",
    "index": "note where the samples of tar shards lie",
    "doctor": "what this machine offers, what is wrong with it, and what to do about that",
    "completion": "the script by which bash, zsh or fish completes uhkd's words",
}

# a verb whose name is taken in Python has another name there
_FUNCTIONS = {"eval": "evaluate", "cache verify": "verify_cache"}
# verbs that need no torch live outside of uhkd.commands
_HOMES = {"completion": "uhkd.cli.completion"}

_EXAMPLES = """\
  uhkd demo
  uhkd finetune --model timm/resnet18 --start pretrained --data path/to/images --epochs 20 --out runs/teacher
  uhkd distill --teacher runs/teacher --student timm/deit_tiny_patch16_224 --data path/to/images --out runs/student
  uhkd eval runs/student
  uhkd report runs/student
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 doctor found a fault, 2 the user's mistake (told on stderr),
    130 stopped (143 and 138: by SIGTERM and SIGUSR1, saved before), 141 the reader of stdout is gone."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a result is written whole where its letters are not known
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        output, remaining = parse_output_options(argv)
    except ValueError as error:
        print(f"uhkd: error: {error}", file=sys.stderr)
        return 2
    try:
        with output_options(output):
            return _answer(output, remaining)
    except KeyboardInterrupt:
        print("\nuhkd: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output is gone (uhkd models | head): nothing more can be said on stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _answer(output: OutputOptions, remaining: list[str]) -> int:
    """Answer by help, version or a verb."""
    if not remaining or remaining[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    command, rest = remaining[0], remaining[1:]
    if command in ("-V", "--version"):
        print(f"uhkd {__version__}")
        return 0
    if command not in COMMANDS:
        return _refuse(output, "", "usage", _unknown_command(command))
    if rest[:1] == ["verify"] and command == "cache":
        command, rest = "cache verify", rest[1:]
    if output.dry_run and command not in PLANS:
        return _refuse(output, command, "usage", f"unknown option {DRY_RUN}; these verbs have it: {', '.join(PLANS)}")
    exit_with_parent()
    if not output.json or {"-h", "--help"} & {*rest}:
        return _run(output, command, rest)[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tables for people
            code, answer = _run(output, command, rest)
    except Exception as error:  # a fault of ours: Python shows the trace
        print(
            json_output.dumps(json_output.error_document(command, "internal", f"{type(error).__name__}: {error}", 1)),
            flush=True,
        )
        raise
    if answer is not None and is_rank_zero():
        print(json_output.dumps(answer), flush=True)
    return code


def _help() -> str:
    listing = "".join(f"  {command:<12}{line}\n" for command, line in COMMANDS.items())
    dry = {DRY_RUN: f"settle and check all that can be before work, write nothing ({', '.join(PLANS)})"}
    options = "".join(f"  {name:<12}{line}\n" for name, line in (OPTIONS | dry).items())
    return (
        "usage: uhkd VERB [OPTIONS]      options of a verb: uhkd VERB --help\n\n"
        "Distil a large vision model into a small one of any other architecture, on your own images.\n\n"
        f"verbs:\n{listing}\noptions of every verb, before or after it:\n{options}\nexamples:\n{_EXAMPLES}\n"
        f"uhkd --version prints the version ({__version__}).\n"
    )


def _unknown_command(command: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(command.lower(), COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(COMMANDS)}"
    kind = "option" if command.startswith("-") else "verb"
    return f"unknown {kind} {command!r}; {hint}"


def _refuse(output: OutputOptions, command: str, kind: str, message: str) -> int:
    """Tell a mistake that is found before anything runs."""
    print(f"uhkd{command and f' {command}'}: error: {message}", file=sys.stderr)
    if output.json:
        print(json_output.dumps(json_output.error_document(command, kind, message, 2)))
    return 2


def _run(output: OutputOptions, command: str, rest: list[str]) -> tuple[int, dict[str, Any] | None]:
    """Parse, import the heavy code, run; (exit code, the answer as a JSON document; none after --help).

    The user's mistakes become one message and exit code 2.
    """
    parsed: Any = None
    began = time.monotonic()

    def refused(kind: str, code: int, message: str, line: str) -> tuple[int, dict[str, Any]]:
        if first_to_report(line):
            print(escape_lines(line), file=sys.stderr)
        return code, json_output.error_document(command, kind, message, code)

    try:
        from uhkd.cli.parser import parse

        parsed = parse(command, rest)
        if output.dry_run and hasattr(parsed, "dry_run"):  # push has the word in Python too
            parsed = parsed.model_copy(update={"dry_run": True})
        log_debug(
            f"uhkd {__version__} in {Path(__file__).parent}, Python {sys.version.split()[0]}, {command}: {parsed}"
        )
        if command not in _HOMES:
            from uhkd.cli.names import check_names

            check_names(parsed)
        home = import_module(_HOMES.get(command, "uhkd.commands"))
        function = PLANS[command] if output.dry_run else _FUNCTIONS.get(command, command)
        result = getattr(home, function)(parsed)
        log_debug(f"{command} took {time.monotonic() - began:.1f} s")
        return getattr(result, "exit_code", 0), json_output.result_document(
            command, result, parsed
        ) if output.json else None
    except SystemExit as stop:  # after a verb's --help
        return stop.code if isinstance(stop.code, int) else 0, None
    except KeyboardInterrupt as stop:  # a training that was asked to end says where it stands
        message = f"{str(stop) or 'stopped'}{_resume_hint(command, rest, parsed)}"
        return refused("stopped", getattr(stop, "code", 130), message, f"\nuhkd {command}: {message}")
    except BrokenPipeError:
        raise
    except (UhkdError, OSError) as error:
        if os.environ.get("UHKD_TRACEBACK") == "1":
            raise
        if output.verbose:
            traceback.print_exc()
        kind = "usage" if parsed is None else "system" if isinstance(error, OSError) else "refused"
        return refused(kind, 2, str(error), f"uhkd {command}: error: {error}{_trace_hint(error)}")
    except Exception as error:
        if first_to_report(f"uhkd {command}: internal error {type(error).__name__}"):
            print(
                f"uhkd {command}: internal error, not a mistake in the command; please report it with the trace below "
                "and the output of uhkd doctor",
                file=sys.stderr,
            )
        raise


def _resume_hint(command: str, rest: Sequence[str], parsed: Any) -> str:
    """How to go on with a stopped training."""
    if command in ("compare", "cache") and parsed is not None:
        return "; the same command goes on with it"
    if command not in ("finetune", "distill"):
        return ""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the first may still be writing
        return "; go on with the same torchrun command and --resume"
    out = getattr(parsed, "out", None)
    if out is None:
        return "; if a checkpoint was written, go on with the same command and --resume --out RUN_FOLDER"
    if not any(Path(out).glob("checkpoints/step-*")):
        return " before the first checkpoint"
    remaining = [*rest] if "--resume" in rest else [*rest, "--resume"]
    return f"; go on with: uhkd {command} {shlex.join(remaining)}"


def _trace_hint(error: BaseException) -> str:
    """A pointer to the trace where the error does not come from a check of ours."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return "" if module.split(".")[0] == "uhkd" else "\n  (UHKD_TRACEBACK=1 shows where this came from)"


if __name__ == "__main__":
    sys.exit(main())
