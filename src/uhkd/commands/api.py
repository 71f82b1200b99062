"""`uhkd.finetune`, `uhkd.distill`, `uhkd.cache`: a recipe's words as keyword arguments, or objects of the user's own."""

import os
from collections.abc import Iterable
from typing import Any

from uhkd.commands import caching, training
from uhkd.commands.training import Result
from uhkd.recipe import CacheRecipe, DistillRecipe, FinetuneRecipe, Schema, build
from uhkd.stored import Stored


def finetune(recipe: FinetuneRecipe | None = None, **words: Any) -> Result:
    """Train one network on labels.

    Args:
        recipe: a whole recipe; words given beside it take precedence.
        words: its fields by name (see `uhkd.recipe.FinetuneRecipe`). `model` may also be a `torch.nn.Module`, `data` a
            map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        ValueError: for anything that cannot be used as asked; the message says what to do.
    """
    objects = _objects(words, ("model", "data"))
    return training.finetune(build(FinetuneRecipe, _onto(recipe, words)), **objects)


def distill(recipe: DistillRecipe | None = None, **words: Any) -> Result:
    """Train a student to imitate a teacher of any other architecture.

    Args:
        recipe: a whole recipe; words given beside it take precedence.
        words: its fields by name (see `uhkd.recipe.DistillRecipe`). `teacher` and `student` may also be `torch.nn.Module`s,
            `data` a map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        ValueError: for anything that cannot be used as asked; the message says what to do.
    """
    objects = _objects(words, ("teacher", "student", "data"))
    return training.distill(build(DistillRecipe, _onto(recipe, words)), **objects)


def cache(recipe: CacheRecipe | None = None, **words: Any) -> Stored:
    """Store logits, embedding and FTM spectra of `views` views of every training image; `distill` then needs no teacher.

    Killed and started again it goes on, shard by shard; the same command beside it adds a process; shards that are missing or
    damaged are made anew, they alone; more `views` are added to those that are there.

    Args:
        recipe: a whole recipe; words given beside it take precedence.
        words: its fields by name (see `uhkd.recipe.CacheRecipe`). `teacher` may also be a `torch.nn.Module`, `data` a
            map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        ValueError: for anything that cannot be used as asked; the message says what to do.
    """
    objects = _objects(words, ("teacher", "data"))
    return caching.cache(build(CacheRecipe, _onto(recipe, words)), **objects)


def _onto(recipe: Schema | None, words: dict[str, Any]) -> dict[str, Any]:
    return words if recipe is None else recipe.model_dump(exclude_unset=True) | words


def _objects(words: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Take objects out of the words and leave a description, so that the recipe stays plain data."""
    found = {k: words[k] for k in names if k in words and not isinstance(words[k], str | os.PathLike)}
    words |= {
        k: f"module/{type(v).__name__}" if k != "data" else f"object/{type(v).__name__}" for k, v in found.items()
    }
    return found
