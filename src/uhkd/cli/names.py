"""Names on a command line, looked up before the command imports torch: a slip is answered at once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uhkd.commands.comparing.naming import finetune_options, look_up, pair_names
from uhkd.data.names import check_data_name
from uhkd.models.names import check_name, check_run
from uhkd.recipe import (
    CacheRecipe,
    CompareRecipe,
    DistillRecipe,
    RecipeError,
    StrictModel,
    TrainRecipe,
    find_recipe,
    load_yaml,
)
from uhkd.recipe.arguments import EvalArguments, ExportArguments, InspectArguments, PredictArguments, PushArguments
from uhkd.recipe.method_table import names_of
from uhkd.runs import RunFolder, check_place


def check_names(recipe: StrictModel) -> None:
    """See that the methods, data, networks and runs that a command is given may be there; it then looks for itself.

    Raises:
        UhkdError: in the words of the command, for a method, for a folder that cannot be written, or with all other names that
            cannot be meant.
    """
    if getattr(recipe, "resume", False):  # a finished run has no more need of what it was made from
        return
    if isinstance(recipe, CompareRecipe):
        check_place(Path(recipe.out).resolve())
        problems = _of_comparison(recipe)
    else:
        students = [one for one, _ in recipe.teacher_recipes()] if isinstance(recipe, DistillRecipe) else [recipe]
        for one in students:
            if isinstance(one, DistillRecipe | InspectArguments):
                _check_method(one)
        if isinstance(recipe, TrainRecipe) and recipe.out is not None:
            RunFolder(recipe.out).check({}, resume=False)
        problems = _of_one(recipe, students)
    if problems := [*dict.fromkeys(problems)]:
        raise RecipeError(problems)


def _check_method(recipe: DistillRecipe | InspectArguments) -> None:
    names_of(recipe.method)
    if recipe.settings or recipe.weights:
        from uhkd.methods import (
            parse_methods,  # the signature of a method says its settings: that takes torch, and no more
        )

        parse_methods(recipe.method, recipe.settings, recipe.weights)


def _of_one(recipe: StrictModel, students: Sequence[StrictModel]) -> Iterator[str]:
    if isinstance(recipe, EvalArguments | PredictArguments | ExportArguments | PushArguments):
        yield from _refused(check_run, recipe.run)
    for field in ("data", "probe_data"):
        if (name := getattr(recipe, field, None)) is not None:
            yield from _refused(check_data_name, name)
    for one in students:
        # scratch has no teacher, and stored signals stand for theirs
        alone = isinstance(one, DistillRecipe) and (one.method == "scratch" or one.teacher_cache is not None)
        if (
            isinstance(one, DistillRecipe | InspectArguments | CacheRecipe)
            and isinstance(one.teacher, str)
            and not alone
        ):
            yield from (f"teacher: {problem}" for problem in _refused(check_name, one.teacher))
    for field in ("student", "model"):
        if (name := getattr(recipe, field, None)) is not None:
            yield from _refused(check_name, name)


def _of_comparison(recipe: CompareRecipe) -> Iterator[str]:
    """Of methods and teachers: its data may have moved when all is trained and only the tables are written again."""
    methods = {label: recipe.variants.get(label, {}).get("method", label) for label in recipe.methods}
    teachers = recipe.teachers * len(recipe.pairs) if len(recipe.teachers) == 1 else recipe.teachers
    for i, (pair, place) in enumerate(zip(pair_names(recipe.pairs), recipe.pairs, strict=True)):
        own = load_yaml(find_recipe(place))
        for label, method in methods.items():
            for problem in _refused(names_of, str(method)):
                yield from (f"{pair} by {label}: {line}" for line in problem.split("\n"))
        teacher = teachers[i] if teachers else own.get("teacher")
        if isinstance(teacher, str) and set(methods.values()) != {"scratch"} and finetune_options(teacher) is None:
            yield from _refused(lambda name, pair=pair: look_up(check_name, name, pair), teacher)


def _refused(check: Callable[[str], object], name: str) -> list[str]:
    try:
        check(name)
    except ValueError as error:
        return [str(error)]
    return []
