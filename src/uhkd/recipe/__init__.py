"""The typed recipe: one schema for YAML files, command-line flags and Python keyword arguments."""

from uhkd.recipe.comparison import CompareRecipe
from uhkd.recipe.files import find_recipe, load_yaml, recipe_names, scalar, to_yaml
from uhkd.recipe.problems import RecipeError, build, did_you_mean
from uhkd.recipe.schema import DistillRecipe, FinetuneRecipe, Levels, Schema, TrainRecipe

__all__ = [
    "CompareRecipe",
    "DistillRecipe",
    "FinetuneRecipe",
    "Levels",
    "RecipeError",
    "Schema",
    "TrainRecipe",
    "build",
    "did_you_mean",
    "find_recipe",
    "load_yaml",
    "recipe_names",
    "scalar",
    "to_yaml",
]
