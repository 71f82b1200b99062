"""The typed recipe: one schema for YAML files, command-line flags and Python keyword arguments."""

from uhkd.recipe.balance import balance_settings
from uhkd.recipe.base import (
    AugmentationOptions,
    DataOptions,
    DeviceOptions,
    Levels,
    Resize,
    SourceOptions,
    StrictModel,
    TeacherOptions,
)
from uhkd.recipe.cache import MOST_VIEWS, CacheRecipe
from uhkd.recipe.compare import CompareRecipe
from uhkd.recipe.errors import RecipeError, build, did_you_mean
from uhkd.recipe.files import find_recipe, load_yaml, recipe_names, scalar, to_yaml
from uhkd.recipe.near_paths import near_paths, path_hint
from uhkd.recipe.old_names import MANIFEST_KEYS, RESULT_KEYS, TASK_KEYS, as_recorded, rename_keys
from uhkd.recipe.train import DistillRecipe, FinetuneRecipe, TrainRecipe

__all__ = [
    "MANIFEST_KEYS",
    "MOST_VIEWS",
    "RESULT_KEYS",
    "TASK_KEYS",
    "AugmentationOptions",
    "CacheRecipe",
    "CompareRecipe",
    "DataOptions",
    "DeviceOptions",
    "DistillRecipe",
    "FinetuneRecipe",
    "Levels",
    "RecipeError",
    "Resize",
    "SourceOptions",
    "StrictModel",
    "TeacherOptions",
    "TrainRecipe",
    "as_recorded",
    "balance_settings",
    "build",
    "did_you_mean",
    "find_recipe",
    "load_yaml",
    "near_paths",
    "path_hint",
    "recipe_names",
    "rename_keys",
    "scalar",
    "to_yaml",
]
