"""`push`: upload an exported network with its model card to a hub."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from uhkd.commands.export import export_forms, sentences
from uhkd.console import escape, escape_lines, log_info, print_result, print_table
from uhkd.errors import UhkdError
from uhkd.export.card import card_text
from uhkd.export.snippets import hub_location, open_expression
from uhkd.models.pretrained import hub_within_reach
from uhkd.recipe import build
from uhkd.recipe.arguments import Form, PushArguments
from uhkd.runs import write_atomically
from uhkd.training.oom import MANY_IMAGES, memory_advice
from uhkd.training.run_evaluation import open_run

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@memory_advice(MANY_IMAGES)
def push(arguments: PushArguments | None = None, **options: Any) -> dict[str, Any]:
    """Export a run's network with the checks of `export`, and upload it with its card in one commit.

    Returns:
        `repo`, `private` (of a new repository), `files` (name: bytes), `card` (text), `measured` (see `export`), `url` and
        `commit` (None after a dry run, which contacts no server).

    Raises:
        UhkdError: as `export`; an invalid name or token; a hub that is unreachable or denies access; or, without `public`, a
            repository that is already public.
    """
    arguments = arguments or build(PushArguments, options)
    api = _hub_client(arguments)
    network, _ = open_run(arguments.run, "cpu")
    to = arguments.forms or (("timm",) if network.config.name.startswith("timm/") else ("safetensors",))
    with tempfile.TemporaryDirectory(prefix="uhkd-push-") as temporary:
        rows = export_forms(arguments.run, network, to, arguments, Path(temporary, "forms"))
        folder = Path(temporary, "repo")
        for form in rows:  # timm and safetensors share model.safetensors
            shutil.copytree(Path(temporary, "forms", form), folder, dirs_exist_ok=True)
        locations: dict[Form, str] = {k: hub_location(k, arguments.repo, rows[k]["path"].name) for k in rows}
        (temperature, *_) = (row["temperature"] for row in rows.values())
        card = card_text(arguments.run, network, locations, sentences(rows), arguments.license, temperature)
        write_atomically(folder / "README.md", card)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        log_info(f"to {api.endpoint}/{arguments.repo} ({'public' if arguments.public else 'private'}, if it is new):")
        table = Table("file", "MB")
        for name, size in sizes.items():
            table.add_row(name, f"{size / 1e6:.3f}")
        print_table(table)
        result = {
            "repo": arguments.repo,
            "private": not arguments.public,
            "files": sizes,
            "card": card,
            "measured": rows,
        }
        if arguments.dry_run:
            print_result(escape_lines(card).rstrip())
            log_info("dry run: no server was contacted")
            return result | {"url": None, "commit": None}
        commit = _upload(api, arguments, folder)
    log_info(f"uploaded: {commit.commit_url}")
    for form, location in locations.items():
        log_info(f"{form}: {open_expression(form, location)}")
    return result | {"url": f"{api.endpoint}/{arguments.repo}", "commit": commit.oid}


def _hub_client(arguments: PushArguments) -> Any:
    """Return the client of the hub, after checking repository name and token before any work is done."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(arguments.repo)
        valid = arguments.repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UhkdError("repo: expected OWNER/NAME of letters, numbers and ._-, as in me/my-student")
    if not arguments.dry_run and get_token() is None:
        raise UhkdError(f"there is no token for the hub: {_LOGIN}")
    return HfApi(library_name="uhkd")


def _upload(api: Any, arguments: PushArguments, folder: Path) -> Any:
    """Create the repository if it does not exist, and upload all files in one commit; return the commit."""
    with _hub_errors(api.endpoint, arguments.repo):
        api.create_repo(arguments.repo, private=not arguments.public, exist_ok=True)
        if not arguments.public and not api.model_info(arguments.repo).private:
            raise UhkdError(f"{arguments.repo} exists already and is public: add --public, or name another --repo")
        message = f"Written by uhkd push ({', '.join(arguments.forms) or 'weights'})"
        return api.upload_folder(repo_id=arguments.repo, folder_path=folder, commit_message=message)


@contextlib.contextmanager
def _hub_errors(endpoint: str, repo: str) -> Iterator[None]:
    """Convert errors of the hub and of the connection to UhkdError with advice."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub_within_reach():
            yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = (error.server_message or str(error)).strip().splitlines() or [f"status {status}"]
        advice = {
            401: f"the hub does not accept this token: {_LOGIN}",
            403: f"this token may not write to {repo}: use a token with write access, or another --repo",
            404: f"{repo} does not exist for this token: check its owner",
        }.get(status or 0, "nothing was changed by the last step")
        raise UhkdError(f"{endpoint} refuses {repo} ({escape(reason[0])}): {advice}") from error
    except Exception as error:
        # the HTTP library of the client has error types that are no OSError
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "requests"):
            raise
        raise UhkdError(
            f"{endpoint} cannot be reached: check the network, and that HF_HUB_OFFLINE is not set"
        ) from error
