"""Names on a command line, looked up before the command imports torch: a slip is answered at once."""

from collections.abc import Callable, Iterator

from uhkd.arguments import EvalArguments, ExportArguments, InspectArguments, PredictArguments, PushArguments
from uhkd.commands.comparing.naming import finetune_words, look_up, pair_names
from uhkd.data.words import check_word
from uhkd.models.naming import check_name, check_run
from uhkd.recipe import CacheRecipe, CompareRecipe, DistillRecipe, RecipeError, Schema, find_recipe, load_yaml
from uhkd.recipe.method_table import entry_of, split_names


def check_names(asked: Schema) -> None:
    """See that the methods, data, networks and runs that a command is given may be there; it then looks for itself.

    Raises:
        RecipeError: with every name that cannot be meant, in the words of the command.
    """
    if getattr(asked, "resume", False):  # a finished run has no more need of what it was made from
        return
    if problems := [*dict.fromkeys(_of_comparison(asked) if isinstance(asked, CompareRecipe) else _of_one(asked))]:
        raise RecipeError(problems)


def _of_one(asked: Schema) -> Iterator[str]:
    if isinstance(asked, EvalArguments | PredictArguments | ExportArguments | PushArguments):
        yield from _refused(check_run, asked.run)
    if isinstance(asked, DistillRecipe):
        students = [one for one, _ in asked.taught()]
    else:
        students = [asked] if isinstance(asked, InspectArguments | CacheRecipe) else []
    for one in students:
        if not isinstance(one, CacheRecipe):
            yield from _of_method(one)
    for field in ("data", "probe_data"):
        if (word := getattr(asked, field, None)) is not None:
            yield from _refused(check_word, word)
    for one in students:
        # scratch has no teacher, and stored signals stand for theirs
        alone = isinstance(one, DistillRecipe) and (one.method == "scratch" or one.teacher_cache is not None)
        if not alone and isinstance(one.teacher, str):
            yield from (f"teacher: {problem}" for problem in _refused(check_name, one.teacher))
    for field in ("student", "model"):
        if (word := getattr(asked, field, None)) is not None:
            yield from _refused(check_name, word)


def _of_method(asked: DistillRecipe | InspectArguments) -> list[str]:
    problems = [problem for name in split_names(asked.method) for problem in _refused(entry_of, name)]
    if problems or not (asked.settings or asked.weights):
        return problems
    from uhkd.methods import check  # the signature of the method says its settings: that takes torch, and no more

    return _refused(lambda method: check(method, asked.settings, asked.weights), asked.method)


def _of_comparison(asked: CompareRecipe) -> Iterator[str]:
    """Of methods and teachers: its data may have moved when all is trained and only the tables are written again."""
    methods = {label: asked.variants.get(label, {}).get("method", label) for label in asked.methods}
    said = asked.teachers * len(asked.pairs) if len(asked.teachers) == 1 else asked.teachers
    for i, (pair, place) in enumerate(zip(pair_names(asked.pairs), asked.pairs, strict=True)):
        own = load_yaml(find_recipe(place))
        for label, method in methods.items():
            for name in split_names(str(method)):
                yield from (f"{pair} by {label}: {problem}" for problem in _refused(entry_of, name))
        teacher = said[i] if said else own.get("teacher")
        if isinstance(teacher, str) and set(methods.values()) != {"scratch"} and finetune_words(teacher) is None:
            yield from _refused(lambda word, pair=pair: look_up(check_name, word, pair), teacher)


def _refused(check: Callable[[str], object], word: str) -> list[str]:
    try:
        check(word)
    except ValueError as error:
        return [str(error)]
    return []
