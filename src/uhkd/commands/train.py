"""`finetune` and `distill`: training by a recipe into a run folder."""

from typing import Any

from uhkd.commands.objects import merged, take_objects
from uhkd.recipe import DistillRecipe, FinetuneRecipe, build
from uhkd.training.fit import Result, finished, fit
from uhkd.training.oom import SETUP, memory_advice
from uhkd.training.setup import prepare


@memory_advice(SETUP)
def finetune(recipe: FinetuneRecipe | None = None, **options: Any) -> Result:
    """Train one network on labelled images.

    Args:
        recipe: a complete recipe; `options` take precedence.
        options: its fields by name (see `uhkd.recipe.FinetuneRecipe`). `model` may also be a `torch.nn.Module`, `data` a
            map-style `Dataset` of (image, label) or a pair of them (training, validation).

    Raises:
        UhkdError: recipe, data or networks cannot be used; the message names the remedy.
    """
    objects = take_objects(options, ("model", "data"))
    setup = prepare(build(FinetuneRecipe, merged(recipe, options)), **objects)
    return finished(setup, objects.get("model")) if setup.finished else fit(setup)


@memory_advice(SETUP)
def distill(recipe: DistillRecipe | None = None, **options: Any) -> Result:
    """Distill a teacher into a student of any other architecture.

    Args:
        recipe: a complete recipe; `options` take precedence.
        options: its fields by name (see `uhkd.recipe.DistillRecipe`). `teacher` and `student` may also be `torch.nn.Module`s,
            `teacher` a list of modules and names, and so each `teacher` in `teachers`; `data` a map-style `Dataset` of
            (image, label) or of images alone, or a pair of them (training, validation).

    Raises:
        UhkdError: recipe, data or networks cannot be used; the message names the remedy.
    """
    objects = take_objects(options, ("teacher", "student", "data"))
    student = objects.pop("student", None)
    setup = prepare(build(DistillRecipe, merged(recipe, options)), model=student, **objects)
    return finished(setup, student) if setup.finished else fit(setup)
