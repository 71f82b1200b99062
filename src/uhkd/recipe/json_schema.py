"""JSON Schema of recipes, for completion and checks of YAML files in editors."""

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
    """Return the JSON Schema (draft 2020-12) of a command's recipes with descriptions, bounds and defaults.

    No key is required, because a command line may add it. Rules between keys are not included.

    Raises:
        UhkdError: for a command without recipes.
    """
    if command not in RECIPES:
        raise UhkdError(f"{command!r} has no recipes: expected {', '.join(RECIPES)}")
    schema = RECIPES[command].model_json_schema()
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if name.endswith("levels"):  # block numbers are written without quotes
            field["anyOf"][0]["items"] = {"type": ["string", "integer"]}
        if name == "method":
            field["examples"] = list(METHODS)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Recipe of uhkd {command}"}
    return head | {key: value for key, value in schema.items() if key not in ("title", "required")}
