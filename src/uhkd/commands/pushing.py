"""`push`: an exported network with its card onto a hub of models."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.exporting import export_forms, sentence
from uhkd.commands.judging import open_run
from uhkd.console import escape, escape_lines, log_info, print_result, print_table
from uhkd.errors import UhkdError
from uhkd.export.card import card_text
from uhkd.export.snippets import on_hub, opened
from uhkd.features import FeatureExtractor
from uhkd.models.pretrained import hub_within_reach
from uhkd.recipe import build
from uhkd.recipe.arguments import Form, PushArguments
from uhkd.runs import write_atomically

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def push(arguments: PushArguments | None = None, **options: Any) -> dict[str, Any]:
    """Export a run's network, checked as by `export`, and upload it with its card in one commit.

    Returns `repo`, `private` (what a new repository is), `files` (name: bytes), `card` (text), `measured` (see `export`), and of
    what was uploaded `url` and `commit` (None after a dry run, which contacts nothing).

    Raises:
        UhkdError: as `export`; no valid name or token; a hub that cannot be reached or refuses; or a repository that is public
            already, without `public`.
    """
    arguments = arguments or build(PushArguments, options)
    api = _hub(arguments)
    network, _ = open_run(arguments.run, "cpu")
    to = arguments.forms or (("timm",) if network.card.name.startswith("timm/") else ("safetensors",))
    with tempfile.TemporaryDirectory(prefix="uhkd-push-") as place:
        found = export_forms(arguments.run, network, to, arguments, Path(place, "forms"))
        folder, card = _collect(arguments, network, found, Path(place, "repo"))
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        _show(arguments, sizes, api.endpoint)
        result = {
            "repo": arguments.repo,
            "private": not arguments.public,
            "files": sizes,
            "card": card,
            "measured": found,
        }
        if arguments.dry_run:
            print_result(escape_lines(card).rstrip())
            log_info("a dry run: nothing was contacted")
            return result | {"url": None, "commit": None}
        commit = _upload(api, arguments, folder)
    log_info(f"uploaded: {commit.commit_url}")
    for form, row in found.items():
        log_info(f"{form}: {opened(form, on_hub(form, arguments.repo, row['path'].name))}")
    return result | {"url": f"{api.endpoint}/{arguments.repo}", "commit": commit.oid}


def plan_push(arguments: PushArguments) -> dict[str, Any]:
    """What `push` would upload; see there."""
    return push(arguments.model_copy(update={"dry_run": True}))


def _hub(arguments: PushArguments) -> Any:
    """The hub's client, before any work is done in vain."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(arguments.repo)
    except HFValidationError:
        arguments = arguments.model_copy(update={"repo": ""})
    if arguments.repo.count("/") != 1:
        raise UhkdError("repo: expected OWNER/NAME of letters, numbers and ._-, as in me/my-student")
    if not arguments.dry_run and get_token() is None:
        raise UhkdError(f"there is no token of the hub: {_LOGIN}")
    return HfApi(library_name="uhkd")


def _collect(
    arguments: PushArguments, network: FeatureExtractor, found: dict[Form, dict[str, Any]], folder: Path
) -> tuple[Path, str]:
    """All forms side by side in one folder with one card; timm and safetensors share their file of weights."""
    folder.mkdir()
    for row in found.values():
        place: Path = row["path"] if row["path"].is_dir() else row["path"].parent
        for file in place.iterdir():
            shutil.copy2(file, folder / file.name)
    places: dict[Form, str] = {form: on_hub(form, arguments.repo, row["path"].name) for form, row in found.items()}
    measured: dict[Form, str] = {form: sentence(row) for form, row in found.items() if "accuracy" in row}
    card = card_text(arguments.run, network, places, measured, arguments.license)
    write_atomically(folder / "README.md", card)
    return folder, card


def _show(arguments: PushArguments, sizes: dict[str, int], endpoint: str) -> None:
    seen = "public" if arguments.public else "private"
    log_info(f"to {endpoint}/{arguments.repo} ({seen}, if it is new):")
    table = Table("file", "MB")
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e6:.3f}")
    print_table(table)


def _upload(api: Any, arguments: PushArguments, folder: Path) -> Any:
    """One commit: a reader of the repository sees all of it or nothing."""
    from huggingface_hub import CommitOperationAdd

    with _hub_errors(api.endpoint, arguments.repo):
        api.create_repo(arguments.repo, private=not arguments.public, exist_ok=True)
        if not arguments.public and not api.model_info(arguments.repo).private:
            raise UhkdError(
                f"{arguments.repo} is there already and everyone can see it: add --public, or name another --repo"
            )
        files = [CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())]
        return api.create_commit(
            arguments.repo, files, commit_message=f"Written by uhkd push ({', '.join(arguments.forms) or 'weights'})"
        )


@contextlib.contextmanager
def _hub_errors(endpoint: str, repo: str) -> Iterator[None]:
    """What a hub or the way to it refuses becomes one line of advice."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub_within_reach():
            yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        why = (error.server_message or str(error)).strip().splitlines() or [f"status {status}"]
        advice = {
            401: f"the hub does not know this token: {_LOGIN}",
            403: f"this token may not write to {repo}: use one with the right to write, or a name of your own",
            404: f"there is no {repo} for this token: does its owner exist?",
        }.get(status or 0, "nothing was changed by the last step")
        raise UhkdError(f"{endpoint} refuses {repo} ({escape(why[0])}): {advice}") from error
    except Exception as error:
        # the client's own library for HTTP has errors of its own, which are none of the system's
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "requests"):
            raise
        raise UhkdError(f"{endpoint} cannot be reached: is there a network, and HF_HUB_OFFLINE not set?") from error
