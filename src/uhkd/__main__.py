"""The command `uhkd`: help without heavy imports, commands, error messages and exit codes."""

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
    "demo": "train a teacher and students on handwritten digits in minutes, with table and figures",
    "models": "list networks by name and size",
    "recipes": "list packaged recipes, print one, or compare two key by key",
    "inspect": "check a teacher and a student without training: layers, spectra, memory",
    "finetune": "train one network on labels: a teacher or a baseline from scratch",
    "distill": "train a student with a teacher of any other architecture",
    "cache": "store a teacher's outputs once for many students; cache verify checks them",
    "compare": "train pairs x methods x seeds, resumable, with one table; or measure the cost of a step",
    "watch": "show the progress of running trainings",
    "eval": "measure the accuracy of a trained network",
    "predict": "predict the classes of image files",
    "report": "write one HTML page about runs: tables, figures, images",
    "export": "write the trained network for timm, torch.export or ONNX, also in int8, checked",
    "push": "upload an exported network with its model card to a hub, private by default",
    "index": "write an index of tar shards",
    "doctor": "check this machine and suggest solutions to problems",
    "completion": "print the completion script for bash, zsh or fish",
}

# functions with another name than the command
_FUNCTIONS = {"eval": "evaluate", "cache verify": "verify_cache"}
# commands that need no torch are outside of uhkd.commands
_MODULES = {"completion": "uhkd.cli.completion"}

_EXAMPLES = """\
  uhkd demo
  uhkd finetune --model timm/resnet18 --start pretrained --data path/to/images --epochs 20 --out runs/teacher
  uhkd distill --teacher runs/teacher --student timm/deit_tiny_patch16_224 --data path/to/images --out runs/student
  uhkd eval runs/student
  uhkd report runs/student
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0: success. 1: doctor found a problem, or predict files that cannot be decoded. 2: user's mistake, reported on stderr. 130:
    interrupted (143 by SIGTERM, 138 by SIGUSR1, after saving). 141: the reader of stdout has closed it. An exception that is a
    bug is raised, by which Python exits with 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # print results completely in encodings that lack some characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        output, remaining = parse_output_options(argv)
    except UhkdError as error:
        print(f"uhkd: error: {error}", file=sys.stderr)
        return 2
    try:
        with output_options(output):
            return _run(output, remaining)
    except KeyboardInterrupt:
        print("\nuhkd: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of stdout has closed it (uhkd models | head): discard the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(output: OutputOptions, remaining: list[str]) -> int:
    """Print the help, the version, or the result of a command."""
    if not remaining or remaining[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    command, rest = remaining[0], remaining[1:]
    if command in ("-V", "--version"):
        print(f"uhkd {__version__}")
        return 0
    if command not in COMMANDS:
        return _usage_error(output, "", _unknown_command(command))
    if rest[:1] == ["verify"] and command == "cache":
        command, rest = "cache verify", rest[1:]
    if output.dry_run and command not in PLANS:
        return _usage_error(output, command, f"unknown option {DRY_RUN}; commands with it: {', '.join(PLANS)}")
    exit_with_parent()
    if not output.json or {"-h", "--help"} & {*rest}:
        return _run_command(output, command, rest)[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tables for people
            code, document = _run_command(output, command, rest)
    except Exception as error:  # a bug: Python prints the traceback
        document = json_output.error_document(command, "internal", f"{type(error).__name__}: {error}", 1)
        print(json_output.dumps(document), flush=True)
        raise
    if document is not None and is_rank_zero():
        print(json_output.dumps(document), flush=True)
    return code


def _help() -> str:
    commands = "".join(f"  {command:<12}{line}\n" for command, line in COMMANDS.items())
    dry_run = {DRY_RUN: f"check everything without training or writing ({', '.join(PLANS)})"}
    options = "".join(f"  {name:<12}{line}\n" for name, line in (OPTIONS | dry_run).items())
    return (
        "usage: uhkd COMMAND [OPTIONS]      options of a command: uhkd COMMAND --help\n\n"
        "Distil a large vision model into a small one of any other architecture, on your own images.\n\n"
        f"commands:\n{commands}\noptions of every command, before or after it:\n{options}\nexamples:\n{_EXAMPLES}\n"
        f"uhkd --version prints the version ({__version__}).\n"
    )


def _unknown_command(command: str) -> str:
    from uhkd.recipe.errors import did_you_mean

    hint = did_you_mean(command, COMMANDS, 1) or f"; the commands are {', '.join(COMMANDS)}"
    return f"unknown {'option' if command.startswith('-') else 'command'} {command!r}{hint}"


def _usage_error(output: OutputOptions, command: str, message: str) -> int:
    """Report a mistake before any command runs."""
    print(f"uhkd{command and f' {command}'}: error: {message}", file=sys.stderr)
    if output.json:
        print(json_output.dumps(json_output.error_document(command, "usage", message, 2)))
    return 2


def _run_command(output: OutputOptions, command: str, rest: list[str]) -> tuple[int, dict[str, Any] | None]:
    """Parse the options, import the command and run it; return its exit code and, with --json, its document.

    A user's mistake is printed in one message, with exit code 2.
    """
    parsed: Any = None
    start = time.monotonic()

    def failed(kind: str, code: int, message: str, line: str) -> tuple[int, dict[str, Any]]:
        if first_to_report(line):
            print(escape_lines(line), file=sys.stderr)
        return code, json_output.error_document(command, kind, message, code)

    try:
        from uhkd.cli.parser import parse

        parsed = parse(command, rest)
        if output.dry_run and hasattr(parsed, "dry_run"):  # push has this option in Python too
            parsed = parsed.model_copy(update={"dry_run": True})
        python = sys.version.split()[0]
        log_debug(f"uhkd {__version__} in {Path(__file__).parent}, Python {python}, {command}: {parsed}")
        if command not in _MODULES:
            from uhkd.cli.names import check_names

            check_names(parsed)
        module = import_module(_MODULES.get(command, "uhkd.commands"))
        result = getattr(module, PLANS[command] if output.dry_run else _FUNCTIONS.get(command, command))(parsed)
        log_debug(f"{command} took {time.monotonic() - start:.1f} s")
        document = json_output.result_document(command, result, parsed) if output.json else None
        return getattr(result, "exit_code", 0), document
    except SystemExit as stop:  # after the help of a command
        return stop.code if isinstance(stop.code, int) else 0, None
    except KeyboardInterrupt as stop:  # a training reports its last checkpoint in it
        message = f"{str(stop) or 'stopped'}{_resume_hint(command, rest, parsed, getattr(stop, 'folder', None))}"
        return failed("stopped", getattr(stop, "code", 130), message, f"\nuhkd {command}: {message}")
    except BrokenPipeError:
        raise
    except (UhkdError, OSError) as error:
        if os.environ.get("UHKD_TRACEBACK") == "1":
            raise
        if output.verbose:
            traceback.print_exc()
        kind = "usage" if parsed is None else "system" if isinstance(error, OSError) else "refused"
        from uhkd.cli.advice import fit_advice

        message = fit_advice(str(error), command)
        return failed(kind, 2, message, f"uhkd {command}: error: {message}{_traceback_hint(error)}")
    except Exception as error:
        if first_to_report(f"uhkd {command}: internal error {type(error).__name__}"):
            print(
                f"uhkd {command}: internal error, not a mistake in the command; please report it with the traceback below "
                "and the output of uhkd doctor",
                file=sys.stderr,
            )
        raise


def _resume_hint(command: str, rest: Sequence[str], parsed: Any, folder: Path | None) -> str:
    """Return how to resume a stopped training; `folder`: its run folder, if it was created."""
    if command in ("compare", "cache") and parsed is not None:
        return "; run the same command again to resume"
    if command not in ("finetune", "distill"):
        return ""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the process of rank 0 may still be writing
        return "; resume with the same torchrun command and --resume"
    if folder is None:
        return " before the run folder was created: nothing was written"
    added = [] if "--resume" in rest else ["--resume"]
    added += [] if getattr(parsed, "out", None) is not None else ["--out", str(folder)]
    return f"; resume with: uhkd {command} {shlex.join([*rest, *added])}"


def _traceback_hint(error: BaseException) -> str:
    """Return how to see the traceback, for an error that another library raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return "" if module.split(".")[0] == "uhkd" else "\n  (UHKD_TRACEBACK=1 shows the traceback)"


if __name__ == "__main__":
    sys.exit(main())
