"""Names on a command line, looked up before the command imports torch: a slip is answered at once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uhkd.commands.comparing.naming import finetune_words, look_up, pair_names
from uhkd.data.names import check_word
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


def check_names(asked: StrictModel) -> None:
    """See that the methods, data, networks and runs that a command is given may be there; it then looks for itself.

    Raises:
        ValueError: in the words of the command, for a method, for a folder that cannot be written, or with all other names that
            cannot be meant.
    """
    if getattr(asked, "resume", False):  # a finished run has no more need of what it was made from
        return
    if isinstance(asked, CompareRecipe):
        check_place(Path(asked.out).resolve())
        problems = _of_comparison(asked)
    else:
        students = [one for one, _ in asked.taught()] if isinstance(asked, DistillRecipe) else [asked]
        for one in students:
            if isinstance(one, DistillRecipe | InspectArguments):
                _check_method(one)
        if isinstance(asked, TrainRecipe) and asked.out is not None:
            RunFolder(asked.out).check({}, resume=False)
        problems = _of_one(asked, students)
    if problems := [*dict.fromkeys(problems)]:
        raise RecipeError(problems)


def _check_method(asked: DistillRecipe | InspectArguments) -> None:
    names_of(asked.method)
    if asked.settings or asked.weights:
        from uhkd.methods import check  # the signature of a method says its settings: that takes torch, and no more

        check(asked.method, asked.settings, asked.weights)


def _of_one(asked: StrictModel, students: Sequence[StrictModel]) -> Iterator[str]:
    if isinstance(asked, EvalArguments | PredictArguments | ExportArguments | PushArguments):
        yield from _refused(check_run, asked.run)
    for field in ("data", "probe_data"):
        if (word := getattr(asked, field, None)) is not None:
            yield from _refused(check_word, word)
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
        if (word := getattr(asked, field, None)) is not None:
            yield from _refused(check_name, word)


def _of_comparison(asked: CompareRecipe) -> Iterator[str]:
    """Of methods and teachers: its data may have moved when all is trained and only the tables are written again."""
    methods = {label: asked.variants.get(label, {}).get("method", label) for label in asked.methods}
    said = asked.teachers * len(asked.pairs) if len(asked.teachers) == 1 else asked.teachers
    for i, (pair, place) in enumerate(zip(pair_names(asked.pairs), asked.pairs, strict=True)):
        own = load_yaml(find_recipe(place))
        for label, method in methods.items():
            for problem in _refused(names_of, str(method)):
                yield from (f"{pair} by {label}: {line}" for line in problem.split("\n"))
        teacher = said[i] if said else own.get("teacher")
        if isinstance(teacher, str) and set(methods.values()) != {"scratch"} and finetune_words(teacher) is None:
            yield from _refused(lambda word, pair=pair: look_up(check_name, word, pair), teacher)


def _refused(check: Callable[[str], object], word: str) -> list[str]:
    try:
        check(word)
    except ValueError as error:
        return [str(error)]
    return []
