"""Names of the pairs and teachers of a comparison; without torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from uhkd.errors import UhkdError
from uhkd.recipe import RecipeError, find_recipe, load_yaml
from uhkd.runs import RunFolder

T = TypeVar("T")


def pair_names(pairs: tuple[str, ...]) -> list[str]:
    """Return short names: as many trailing parts of the paths as make them distinct."""
    paths = [Path(pair).with_suffix("") if pair.endswith((".yaml", ".yml")) else Path(pair) for pair in pairs]
    # "." and ".." have no name, and would lead out of the folder of the comparison
    paths = [path.resolve() if path.name in ("", "..") else path for path in paths]
    for parts in range(1, 20):
        names = ["-".join(path.parts[-parts:]).replace("/", "") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise RecipeError([f"pairs: expected each once, found {', '.join(pairs)}"])


def finetune_options(name: str) -> dict[str, Any] | None:
    """Return the options of a recipe that trains a teacher, or None if `name` is a run or a network."""
    if RunFolder(name).started():
        if RunFolder(name).has_model():
            return None
        raise RecipeError([f"teachers: the run {name} is not finished; resume it, or choose another teacher"])
    try:
        recipe = load_yaml(find_recipe(name))
    except RecipeError:
        if Path(name).suffix in (".yaml", ".yml"):
            raise
        return None  # a name like timm/NAME
    if "model" not in recipe:
        raise RecipeError([f"teachers: {name} is not a recipe of finetune (it has no model)"])
    return {k: v for k, v in recipe.items() if k not in ("out", "resume")}


def look_up(parse: Callable[[str], T], name: str, pair: str) -> T:
    """Return `parse(name)` for the name of the teacher of a pair.

    Raises:
        RecipeError: in place of its UhkdError, with the pair and the possible values.
    """
    try:
        return parse(name)
    except UhkdError as error:
        choices = "a run folder, a network, or a recipe of finetune, which is trained first"
        raise RecipeError([f"{pair}: teacher: {error}; choose one with --teachers: {choices}"]) from None
