"""Names of models: list them, resolve them, and suggest the nearest name for an unknown one."""

import difflib
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uhkd.errors import UhkdError
from uhkd.models.cifar_variants import VARIANTS
from uhkd.models.families import PREFIX, check_available, families, is_hub_name
from uhkd.models.listing import exists, listing, may_exist
from uhkd.recipe import did_you_mean, near_paths
from uhkd.runs import RunFolder

Library = Literal["uhkd", "torchvision", "timm", "transformers", "folder", "run"]
LOCAL_DIR = "local-dir:"
LIBRARIES = ("uhkd", "torchvision", "timm", "transformers")


@dataclass(frozen=True)
class ModelName:
    """A resolved model name: an architecture of a library, a timm model folder, or a run folder.

    `name` for transformers: a family, a folder written by save_pretrained, or a hub name OWNER/MODEL.
    """

    library: Library
    name: str


def model_names(pattern: str = "*") -> list[str]:
    """Return the names that `create` accepts and that match a shell pattern, with or without the library prefix."""
    names = _listed()
    library, slash, _ = pattern.partition("/")
    if not slash or fnmatch.fnmatch("transformers", library):  # otherwise skip its import, which takes seconds
        names += [PREFIX + name for name in families()]
    return [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[1], pattern)]


def _listed() -> list[str]:
    return [f"{library}/{name}" for library, names in listing().items() for name in names]


def parse_name(name: str) -> ModelName:
    """Resolve a model name.

    Raises:
        UhkdError: no model, model folder or run folder has this name; the message suggests the nearest ones.
    """
    library, _, rest = name.partition("/")
    bare = rest if library == "timm" else name
    if bare.startswith(LOCAL_DIR):
        folder = Path(bare.removeprefix(LOCAL_DIR)).expanduser()
        if not (folder / "config.json").is_file():
            raise UhkdError(f"'{folder}' is no timm model folder: expected config.json and model.safetensors in it")
        return ModelName("folder", str(folder))
    if library == "transformers" and rest and not RunFolder(Path(name)).has_model():
        return _parse_transformers(rest)
    if library == "timm" and _is_timm(rest):
        return ModelName("timm", rest)
    if library == "torchvision" and rest and exists("torchvision", rest):
        return ModelName("torchvision", rest)
    if library == "uhkd" and rest in VARIANTS:
        return ModelName("uhkd", rest)
    if library not in ("uhkd", "torchvision", "timm") or not rest:
        if _is_timm(name):
            return ModelName("timm", name)
        if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
            return ModelName("run", str(check_run(name).path))
    raise UhkdError(_unknown(name))


def offers_pretrained(name: str) -> bool:
    """Return whether a network has pretrained weights: of its library, of the hub, or in the folder that it is.

    Raises:
        UhkdError: no network has this name.
    """
    reference = parse_name(name)
    if reference.library == "timm":
        import timm

        return timm.is_model_pretrained(reference.name)
    if reference.library == "transformers":
        from uhkd.models.transformers.folder import has_safetensors

        folder = (Path(reference.name) / "config.json").is_file()
        return has_safetensors(reference.name) if folder else reference.name not in families()
    return reference.library != "uhkd"


def check_name(name: str) -> None:
    """Reject a name that `parse_name` would reject, as far as this is possible without importing a library.

    Raises:
        UhkdError: as `parse_name`.
    """
    library, _, rest = name.partition("/")
    package = "torchvision" if library == "torchvision" else "timm"
    architecture = (rest if library == package else name).partition(".")[0]
    if library != "transformers" and not may_exist(package, architecture):
        parse_name(name)


def _parse_transformers(name: str) -> ModelName:
    check_available(PREFIX + name)
    path = Path(name).expanduser()
    if name in families():
        return ModelName("transformers", name)
    if (path / "config.json").is_file():
        return ModelName("transformers", str(path))
    if path.exists() or name.startswith((".", "/", "~")):
        raise UhkdError(
            f"'{path}' is no model folder of transformers: expected config.json in it, as save_pretrained writes it"
        )
    if is_hub_name(name):
        return ModelName("transformers", name)
    raise UhkdError(
        f"transformers has no family '{name}' of image classifiers{did_you_mean(name, families())} "
        "(`uhkd models 'transformers/*'` lists the families; a folder written by save_pretrained or a hub name OWNER/MODEL "
        "also works)"
    )


def _is_timm(name: str) -> bool:
    """Return whether timm has an architecture and, if there is a tag after a dot, pretrained weights of this tag."""
    architecture, _, tag = name.partition(".")
    if not exists("timm", architecture):
        return False
    import timm

    return not tag or name in timm.list_pretrained(f"{architecture}.*")


def _unknown(name: str) -> str:
    names = _listed()
    bare = {full.split("/")[1]: full for full in reversed(names)}
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    near += [bare[short] for short in difflib.get_close_matches(name.lower().split("/")[-1], bare, n=4, cutoff=0.6)]
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    if tag and architecture in listing()["timm"]:
        import timm

        near = [f"timm/{full}" for full in timm.list_pretrained(f"{architecture}.*")][:4] or [f"timm/{architecture}"]
    folders, path = near_folders(name), Path(name)
    if path.name != name and path.parts[0] not in LIBRARIES:
        if folders or path.parent.is_dir():
            return _no_folder(name)
        end = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "no folder or model has a similar name"
        hub = f"of the hub: {PREFIX}OWNER/NAME"
        return f"neither a folder nor a model is called '{name}': {end} (`uhkd models` lists models; {hub})"
    near = folders + near
    hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "no model has a similar name"
    return f"unknown model '{name}': {hint} (`uhkd models` lists all; a run folder or {LOCAL_DIR}PATH also works)"


def _no_folder(name: str) -> str:
    near = near_folders(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "give a folder that finetune or distill wrote"
    return f"no such folder: {name}; {hint}"


def check_run(folder: str | Path) -> RunFolder:
    """Return the run folder at a path, which must contain a trained network.

    Raises:
        UhkdError: no folder, no run folder, or an unfinished run.
    """
    run = RunFolder(Path(folder).expanduser())
    if run.has_model():
        return run
    if run.started():
        raise UhkdError(f"the run '{folder}' is not finished: run its command again with --resume")
    if not run.path.exists():
        raise UhkdError(_no_folder(str(folder)))
    if run.path.is_file():
        raise UhkdError(f"'{folder}' is a file: give a run folder (an option start takes weights files)")
    if (config := run.path / "config.json").is_file():
        form = PREFIX if '"model_type"' in config.read_text(encoding="utf-8", errors="replace") else LOCAL_DIR
        raise UhkdError(f"'{folder}' is no run folder of uhkd, but a model folder: write '{form}{folder}'")
    raise UhkdError(
        f"'{folder}' is no run folder of uhkd: it lacks {run.config.name} or {run.weights.name}; "
        "give a folder that finetune or distill wrote"
    )


def near_folders(name: str) -> list[str]:
    """Return the run and model folders with names similar to a missing path, nearest first, written as the path is."""
    return near_paths(name, _is_model_folder)


def _is_model_folder(path: Path) -> bool:
    run = RunFolder(path).started() and not (path / "cache.json").exists()
    return run or RunFolder(path).has_model() or (path / "config.json").is_file()
