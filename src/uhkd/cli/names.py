"""Checks of names on a command line before the command imports torch, so that errors are reported at once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uhkd.commands.comparing.naming import finetune_options, look_up, pair_names
from uhkd.data.names import check_data_name
from uhkd.errors import UhkdError
from uhkd.models.names import check_name, check_run
from uhkd.recipe import CompareRecipe, DistillRecipe, RecipeError, StrictModel, TrainRecipe, find_recipe, load_yaml
from uhkd.recipe.arguments import EvalArguments, ExportArguments, InspectArguments, PredictArguments, PushArguments
from uhkd.recipe.method_table import names_of
from uhkd.runs import RunFolder, check_place


def check_names(recipe: StrictModel) -> None:
    """Check that the methods, data, networks and runs in a command's options can exist; the command itself opens them.

    Raises:
        UhkdError: with the command's own message, for a method, for a folder that cannot be written, or for all other names
            together.
    """
    if getattr(recipe, "resume", False):  # a finished run does not need its teacher and data
        return
    if isinstance(recipe, CompareRecipe):
        check_place(Path(recipe.out).resolve())
        problems = _comparison_problems(recipe)
    else:
        recipes = [item for item, _ in recipe.teacher_recipes()] if isinstance(recipe, DistillRecipe) else [recipe]
        for item in recipes:
            if isinstance(item, DistillRecipe | InspectArguments):
                _check_method(item)
        if isinstance(recipe, TrainRecipe) and recipe.out is not None:
            RunFolder(recipe.out).check({}, resume=False)
        problems = _problems(recipe, recipes)
    if problems := [*dict.fromkeys(problems)]:
        raise RecipeError(problems)


def _check_method(recipe: DistillRecipe | InspectArguments) -> None:
    names_of(recipe.method)
    if recipe.settings or recipe.weights:
        from uhkd.methods import parse_methods  # settings are defined by the method's signature, which needs torch

        parse_methods(recipe.method, recipe.settings, recipe.weights)


def _problems(recipe: StrictModel, recipes: Sequence[StrictModel]) -> Iterator[str]:
    """Yield the problems of a command's names; `recipes` has one recipe per teacher."""
    if isinstance(recipe, EvalArguments | PredictArguments | ExportArguments | PushArguments):
        yield from _errors(check_run, recipe.run)
    for field in ("data", "probe_data"):
        if (name := getattr(recipe, field, None)) is not None:
            yield from _errors(check_data_name, name)
    for item in recipes:
        # method scratch has no teacher, and a cache replaces its teacher
        unused = isinstance(item, DistillRecipe) and (item.method == "scratch" or item.teacher_cache is not None)
        if isinstance(teacher := getattr(item, "teacher", None), str) and not unused:
            yield from (f"teacher: {problem}" for problem in _errors(check_name, teacher))
    for field in ("student", "model"):
        if (name := getattr(recipe, field, None)) is not None:
            yield from _errors(check_name, name)


def _comparison_problems(recipe: CompareRecipe) -> Iterator[str]:
    """Yield problems of methods and teachers. Data is not checked: tables are written again after it has moved."""
    methods = {label: recipe.variants.get(label, {}).get("method", label) for label in recipe.methods}
    teachers = recipe.teachers * len(recipe.pairs) if len(recipe.teachers) == 1 else recipe.teachers
    for index, (pair, path) in enumerate(zip(pair_names(recipe.pairs), recipe.pairs, strict=True)):
        options = load_yaml(find_recipe(path))
        for label, method in methods.items():
            for problem in _errors(names_of, str(method)):
                yield from (f"{pair} by {label}: {line}" for line in problem.split("\n"))
        teacher = teachers[index] if teachers else options.get("teacher")
        if isinstance(teacher, str) and set(methods.values()) != {"scratch"} and finetune_options(teacher) is None:
            yield from _errors(lambda name, pair=pair: look_up(check_name, name, pair), teacher)


def _errors(check: Callable[[str], object], name: str) -> list[str]:
    try:
        check(name)
    except UhkdError as error:
        return [str(error)]
    return []
