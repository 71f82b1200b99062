"""The networks of a plan, built as the verb would build them, with random weights in place of pretrained ones."""

import torch

from uhkd.data import Data
from uhkd.models import brings_weights, create
from uhkd.recipe import CacheRecipe, DistillRecipe, FinetuneRecipe, TrainRecipe
from uhkd.taps import TappedModel
from uhkd.telling import say


def student_of(recipe: TrainRecipe, data: Data, classes: int) -> TappedModel:
    """The network that would be trained, with a head for `classes` (0: none), random weights in place of pretrained ones."""
    if isinstance(recipe, DistillRecipe):
        name, start, options, levels = (
            recipe.student,
            recipe.student_start,
            recipe.student_options,
            recipe.student_levels,
        )
    else:
        assert isinstance(recipe, FinetuneRecipe)
        name, start, options, levels = recipe.model, recipe.start, recipe.options, recipe.levels
    network = create(
        name,
        num_classes=classes,
        start=_unfetched(name, start),
        image_size=recipe.image_size,
        options=options,
        levels=levels or 4,
    )
    for note in network.notes:
        say(f"  {note}")
    return network


def teacher_of(recipe: DistillRecipe | CacheRecipe, data: Data) -> TappedModel:
    assert isinstance(recipe.teacher, str)
    start = recipe.teacher_start or ("random" if brings_weights(recipe.teacher) else "pretrained")
    teacher = create(
        recipe.teacher,
        num_classes=None,
        start=_unfetched(recipe.teacher, start),
        options=recipe.teacher_options,
        levels=recipe.teacher_levels or 4,
    )
    classes, wanted = teacher.shapes.logits, len(data.classes)
    if not wanted:  # without labels it is heard as it is
        return teacher
    if classes != wanted and recipe.teacher_head == "keep":
        raise ValueError(
            f"the teacher's head does not fit: it has {classes or 'no'} classes, the data {wanted}; use "
            "teacher_head=auto to train a linear probe"
        )
    if classes != wanted or recipe.teacher_head == "probe":
        if teacher.shapes.embedding is None:
            raise ValueError("the teacher's head does not fit and it has no embedding for a linear probe; finetune it")
        say(f"  a linear probe would be trained on the teacher's embedding of {len(data.train):,} images")
        teacher.set_probe(torch.nn.Linear(teacher.shapes.embedding, wanted))
    return teacher


def _unfetched(name: str, start: str) -> str:
    if start != "pretrained":
        return start
    say(f"  {name}: pretrained weights would be fetched, or taken from the weights cache (uhkd doctor names it)")
    return "random"
