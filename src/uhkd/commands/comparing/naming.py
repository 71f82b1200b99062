"""What the pairs and teachers of a comparison are called, and what a teacher's word means; without torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from uhkd.recipe import RecipeError, find_recipe, load_yaml
from uhkd.runs import RunFolder

Found = TypeVar("Found")


def pair_names(pairs: tuple[str, ...]) -> list[str]:
    """Short names, with as much of the path as tells them apart."""
    paths = [Path(pair).with_suffix("") if pair.endswith((".yaml", ".yml")) else Path(pair) for pair in pairs]
    # "." and ".." have no name of their own, and would lead out of the comparison's folder
    paths = [path.resolve() if path.name in ("", "..") else path for path in paths]
    for parts in range(1, 20):
        names = ["-".join(path.parts[-parts:]).replace("/", "") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise RecipeError([f"pairs: expected each once, found {', '.join(pairs)}"])


def finetune_options(name: str) -> dict[str, Any] | None:
    """The words of a recipe that trains a teacher, or None where `name` is a network that is there already."""
    if RunFolder(name).started():
        if RunFolder(name).exists():
            return None
        raise RecipeError([f"teachers: the run {name} is not finished; resume it, or give another teacher"])
    try:
        recipe = load_yaml(find_recipe(name))
    except RecipeError:
        if Path(name).suffix in (".yaml", ".yml"):
            raise
        return None  # timm/NAME and the like
    if "model" not in recipe:
        raise RecipeError([f"teachers: {name} is no recipe of finetune (it has no model)"])
    return {k: v for k, v in recipe.items() if k not in ("out", "resume")}


def look_up(look: Callable[[str], Found], name: str, pair: str) -> Found:
    """What `look` finds by the name of a pair's teacher.

    Raises:
        RecipeError: in place of its ValueError, with the pair and what else may be given.
    """
    try:
        return look(name)
    except ValueError as error:
        raise RecipeError(
            [
                f"{pair}: teacher: {error}; give one with --teachers: a run folder, a network, or a recipe of finetune by which "
                "it is trained first"
            ]
        ) from None
