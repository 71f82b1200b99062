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
            `teacher` a list of modules and names, and so each `teacher` in `teachers`; `data` a map-style `Dataset` of
            (image, label) or of images alone, or a pair of them (training, validation).

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
    found = {k: words[k] for k in names if k in words and not isinstance(words[k], str | os.PathLike | None)}
    if "teacher" in names and (several := _several(words)):
        found["teacher"] = [None if _is_word(one) else one for one in several]
        described = [one if _is_word(one) else f"module/{type(one).__name__}" for one in several]
        if words.get("teachers"):
            pairs = zip(words["teachers"], described, strict=True)
            words["teachers"] = [{**one, "teacher": name} for one, name in pairs]
        else:
            words["teacher"] = described
        return found | _described({k: v for k, v in found.items() if k != "teacher"}, words)
    return _described(found, words)


def _is_word(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _several(words: dict[str, Any]) -> list[Any]:
    """The teachers of a list of them, or of mappings that name them."""
    listed = words.get("teachers") or ()
    if (
        isinstance(listed, list | tuple)
        and listed
        and all(isinstance(one, dict) and "teacher" in one for one in listed)
    ):
        return [one["teacher"] for one in listed]
    return list(words["teacher"]) if isinstance(words.get("teacher"), list | tuple) else []


def _described(found: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """The objects; the words hold what they are called instead."""
    words |= {
        k: f"module/{type(v).__name__}" if k != "data" else f"object/{type(v).__name__}" for k, v in found.items()
    }
    return found
