"""JSON Schema of recipes, by which editors complete and check YAML files."""

from typing import Any

from uhkd.errors import UhkdError
from uhkd.recipe.base import StrictModel
from uhkd.recipe.cache import CacheRecipe
from uhkd.recipe.compare import CompareRecipe
from uhkd.recipe.method_table import METHODS
from uhkd.recipe.train import DistillRecipe, FinetuneRecipe

RECIPES: dict[str, type[StrictModel]] = {
    "finetune": FinetuneRecipe,
    "distill": DistillRecipe,
    "cache": CacheRecipe,
    "compare": CompareRecipe,
}


def editor_schema(command: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a verb's recipes, each key with its description, bounds and default.

    No key is required, as a command line may add what a file leaves out. Rules between keys are not in it; the verb knows them.

    Raises:
        UhkdError: for a verb without recipes.
    """
    if command not in RECIPES:
        raise UhkdError(f"no recipes of {command!r}: expected {', '.join(RECIPES)}")
    made = RECIPES[command].model_json_schema()
    made.pop("required", None)
    for name, field in made["properties"].items():
        field.pop("title", None)
        if name.endswith("_levels") or name == "levels":  # block numbers are written without quotes
            field["anyOf"][0]["items"] = {"type": ["string", "integer"]}
        if name == "method":
            field["examples"] = list(METHODS)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Recipe of uhkd {command}"}
    return head | {key: value for key, value in made.items() if key != "title"}
