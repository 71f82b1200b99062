"""Names of models: which there are, what a name refers to, and which one was probably meant."""

import difflib
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uhkd.errors import UhkdError
from uhkd.models.cifar_variants import VARIANTS
from uhkd.models.families import PREFIX, check_available, families, is_hub_name
from uhkd.models.listing import exists, listing, may_exist
from uhkd.runs import RunFolder

Library = Literal["uhkd", "torchvision", "timm", "transformers", "folder", "run"]
LOCAL_DIR = "local-dir:"


@dataclass(frozen=True)
class ModelName:
    """What a model name refers to: an architecture of a library, a timm model folder, or a run folder of ours.

    In transformers: a family, a folder of save_pretrained, or a name of the hub.
    """

    library: Library
    name: str


def model_names(pattern: str = "*") -> list[str]:
    """Names that `create` knows and that match a shell pattern, with or without the library in front."""
    names = _listed()
    library, slash, _ = pattern.partition("/")
    if not slash or fnmatch.fnmatch("transformers", library):  # else its import, of seconds, is saved
        names += [PREFIX + name for name in families()]
    return [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[1], pattern)]


def _listed() -> list[str]:
    return [f"{library}/{name}" for library, known in listing().items() for name in known]


def parse(name: str) -> ModelName:
    """What a model name refers to.

    Raises:
        UhkdError: no model, model folder or run folder of this name; the message names the nearest ones.
    """
    library, _, rest = name.partition("/")
    bare = rest if library == "timm" else name
    if bare.startswith(LOCAL_DIR):
        return _model_folder(bare.removeprefix(LOCAL_DIR))
    if library == "transformers" and rest and not RunFolder(Path(name)).exists():
        return _in_transformers(rest)
    if library in ("uhkd", "torchvision", "timm") and rest:
        return _in_library(library, rest, name)
    if _is_timm(name):
        return ModelName("timm", name)
    if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
        return _run_folder(name)
    raise UhkdError(_unknown(name))


def check_name(name: str) -> None:
    """Refuse a name that `parse` would refuse, as far as is known without importing a library.

    Raises:
        UhkdError: as `parse`.
    """
    library, _, rest = name.partition("/")
    package = "torchvision" if library == "torchvision" else "timm"
    architecture = (rest if library == package else name).partition(".")[0]
    if library != "transformers" and not may_exist(package, architecture):
        parse(name)


def _in_library(library: str, rest: str, name: str) -> ModelName:
    if library == "timm" and _is_timm(rest):
        return ModelName("timm", rest)
    if library == "torchvision" and exists("torchvision", rest):
        return ModelName("torchvision", rest)
    if library == "uhkd" and rest in VARIANTS:
        return ModelName("uhkd", rest)
    raise UhkdError(_unknown(name))


def _in_transformers(name: str) -> ModelName:
    check_available(PREFIX + name)
    path = Path(name).expanduser()
    if name in families() or (path / "config.json").is_file():
        return ModelName("transformers", name if name in families() else str(path))
    if path.exists() or name.startswith((".", "/", "~")):
        raise UhkdError(
            f"'{path}' is no folder of transformers: expected config.json in it, as save_pretrained writes it"
        )
    if is_hub_name(name):
        return ModelName("transformers", name)
    near = difflib.get_close_matches(name.lower(), families(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(PREFIX + item for item in near)}?" if near else "no family is near it"
    raise UhkdError(
        f"unknown model '{PREFIX}{name}': {hint} "
        "(`uhkd models 'transformers/*'` lists the families; a folder of save_pretrained or a "
        "name of the hub, OWNER/MODEL, also work)"
    )


def _is_timm(name: str) -> bool:
    """Whether timm knows an architecture and, if one is given after a dot, its set of weights."""
    architecture, _, tag = name.partition(".")
    if not exists("timm", architecture):
        return False
    import timm

    return not tag or name in timm.list_pretrained(f"{architecture}.*")


def _unknown(name: str) -> str:
    wanted = name.lower()
    everything = _listed()
    bare = {full.split("/")[1]: full for full in reversed(everything)}
    near = difflib.get_close_matches(wanted, everything, n=3, cutoff=0.6)
    near += [bare[short] for short in difflib.get_close_matches(wanted.split("/")[-1], list(bare), n=4, cutoff=0.6)]
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    if tag and architecture in listing()["timm"]:
        import timm

        near = [f"timm/{full}" for full in timm.list_pretrained(f"{architecture}.*")][:4] or [f"timm/{architecture}"]
    near = near_folders(name) + near
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "no name is near it"
    return f"unknown model '{name}': {hint} (`uhkd models` lists all; a folder of a run or {LOCAL_DIR}PATH also work)"


def check_run(folder: str | Path) -> RunFolder:
    """The run folder at a path, with a finished network in it.

    Raises:
        UhkdError: when there is none.
    """
    run = RunFolder(Path(folder).expanduser())
    if run.exists():
        return run
    if run.started():
        raise UhkdError(f"the run '{folder}' is not finished; go on with it by its own command and --resume")
    if not run.path.exists():
        near = near_folders(str(folder))
        hint = f"did you mean {' or '.join(near)}?" if near else "give a folder that finetune or distill wrote"
        raise UhkdError(f"no such folder: {folder}; {hint}")
    raise UhkdError(
        f"'{folder}' is no run folder of uhkd: it lacks {run.card.name} or {run.weights.name}; "
        "give a folder that finetune or distill wrote"
    )


def near_folders(name: str) -> list[str]:
    """Folders of models beside a path where nothing lies, nearest first, written as the path is."""
    path = Path(name)
    parent = path.expanduser().parent
    others = (item for item in parent.iterdir() if _holds_model(item)) if parent.is_dir() else ()
    near = difflib.get_close_matches(path.name, [item.name for item in others], n=3)
    return [str(path.with_name(other)) for other in near]


def _holds_model(path: Path) -> bool:
    return RunFolder(path).exists() or (path / "config.json").is_file()


def _model_folder(text: str) -> ModelName:
    path = Path(text).expanduser()
    if not (path / "config.json").is_file():
        raise UhkdError(f"'{path}' is no timm model folder: expected config.json and model.safetensors in it")
    return ModelName("folder", str(path))


def _run_folder(text: str) -> ModelName:
    path = Path(text).expanduser()
    if RunFolder(path).exists():
        return ModelName("run", str(path))
    if not path.exists():
        parent = path.parent
        others = [item.name for item in parent.iterdir()] if parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, n=3) or sorted(others)[:3]
        nothing = f"there is nothing in '{parent}'" if parent.is_dir() else f"there is no folder '{parent}' either"
        hint = f"nearest in '{parent}': {', '.join(near)}" if near else nothing
        raise UhkdError(f"there is no '{path}'; {hint}")
    if (path / "config.json").is_file():
        raise UhkdError(f"'{path}' is no run folder of uhkd; for a timm model folder write '{LOCAL_DIR}{path}'")
    kind = "a file" if path.is_file() else "no run folder of uhkd"
    raise UhkdError(f"'{path}' is {kind}: give a run folder or a model name, and weights files as start")
