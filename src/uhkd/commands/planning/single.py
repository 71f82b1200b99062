"""One training or one cache, settled and not begun."""

from pathlib import Path
from typing import Any

from uhkd.commands.caching import check_folder
from uhkd.commands.planning.networks import student_of, teacher_of
from uhkd.commands.planning.settled import described, described_data, disk, existing, parameters_of, shown_plan
from uhkd.commands.storing import layout_of, room
from uhkd.data import Data, steps_per_epoch
from uhkd.methods import check
from uhkd.recipe import CacheRecipe, DistillRecipe, FinetuneRecipe, TrainRecipe, as_recorded
from uhkd.stored import Shards, Stored
from uhkd.taps import TappedModel
from uhkd.training import check_loggers
from uhkd.training.cache_checks import follow, open_stored
from uhkd.training.label_free import open_probe_data, weights_without_labels
from uhkd.training.setup import (
    choose_augmentation,
    choose_device,
    choose_workers,
    fit_batch,
    open_recipe_data,
    run_folder,
    tell_augmentation,
    tell_machine,
)
from uhkd.training.students import check_labels
from uhkd.training.teachers import Voice, balance_of, distillers_of, settle_balance, student_classes

_COPIES = {"adamw": 2, "lamb": 2, "sgd": 1}  # numbers that an optimizer keeps beside each weight
BESIDE = 5_000_000  # bytes of metrics, diagnostics and pictures of a short run


def plan_training(recipe: FinetuneRecipe | DistillRecipe) -> dict[str, Any]:
    """What `finetune` or `distill` would do: resolved recipe, machine, networks, steps, disk.

    Raises:
        ValueError: for what the verb itself would refuse before its first step, but for a teacher at chance level: that is
            known only after it has seen the validation images.
    """
    distilling = isinstance(recipe, DistillRecipe)
    for one, _ in recipe.taught() if isinstance(recipe, DistillRecipe) else ():
        check(one.method, one.settings, one.weights)
    check_loggers(recipe.log)
    device, precision = choose_device(recipe)
    folder = run_folder(recipe, recipe.method if distilling else "finetune")
    if not (recipe.resume and folder.started()):
        folder.check({}, resume=recipe.resume)
    tell_machine(recipe, device, precision)
    data = open_recipe_data(recipe)
    if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
        recipe = follow(recipe, folder)
    if isinstance(recipe, DistillRecipe):
        recipe = settle_balance(recipe, folder if recipe.resume and folder.started() else None)
    recipe = fit_batch(recipe, data).resolved().model_copy(update={"precision": precision, "out": str(folder.path)})
    if recipe.resume:
        folder.check(recipe.model_dump(mode="json"), resume=True, defaults=recipe.defaults(), translate=as_recorded)
    voices = []
    if isinstance(recipe, DistillRecipe):
        open_probe_data(recipe, data)
        voices = _voices(recipe, data)
    if not distilling:
        check_labels(data)
    classes = student_classes(data, voices)[0] if distilling else len(data.classes)
    student = student_of(recipe, data, classes)
    own: dict[str, Any] = {"student" if distilling else "model": described(student)}
    extra, networks = 0, [student]
    if heard := [voice.source for voice in voices if voice.source is not None]:
        assert isinstance(recipe, DistillRecipe)
        distillers = distillers_of(voices, student, classes, data)
        balance_of(recipe, voices, distillers, classes, labels=bool(data.classes))
        extra = sum(p.numel() for p in distillers.parameters())
        taught = [source.as_json() if isinstance(source, Stored) else described(source) for source in heard]
        own |= {"teacher": taught[0]} if len(heard) == 1 else {"teachers": taught}
        methods = dict.fromkeys(voice.recipe.method for voice in voices)
        own["method"] = {"name": " and ".join(methods), "extra_parameters": extra}
        networks += [source for source in heard if isinstance(source, TappedModel)]
    augmentation = choose_augmentation(recipe, data, networks)
    tell_augmentation(augmentation)
    steps = steps_per_epoch(len(data.train), recipe.batch_size)
    most = training_bytes(parameters_of(student), extra, recipe)
    settled = own | {
        "out": str(folder.path),
        "device": device,
        "precision": precision,
        "workers": choose_workers(recipe, data, device),
        "data": described_data(data),
        "image_size": list(augmentation.size),
        "batch_size": recipe.batch_size,
        "steps_per_epoch": steps,
        "steps": steps * recipe.epochs,
        "images_seen": steps * recipe.epochs * recipe.batch_size,
        "disk": disk(folder.path, most),
        "recipe": recipe.model_dump(mode="json"),
    }
    return shown_plan("resume" if recipe.resume and folder.started() else "train", settled)


def _voices(recipe: DistillRecipe, data: Data) -> list[Voice]:
    """The recipe's teachers as its student would hear them, with random weights in place of pretrained ones."""
    voices = []
    for one, share in recipe.taught():
        source = None
        if one.teacher_cache is not None:
            source = open_stored(one, data)
        elif one.method != "scratch":
            source = teacher_of(one, data)
        weights = one.weights if data.classes else weights_without_labels(one, source)
        voices.append(Voice(one, source, weights, share, {}))
    return voices


def plan_cache(asked: CacheRecipe) -> dict[str, Any]:
    """What `cache` would store: teacher, fields, records, shards to write, disk.

    Raises:
        ValueError: as `plan_training`, and where the records do not fit on the disk.
    """
    folder = Path(asked.out)
    check_folder(folder)
    device, precision = choose_device(asked)
    tell_machine(asked, device, precision)
    data = open_recipe_data(asked)
    teacher = teacher_of(asked, data)
    layout, _ = layout_of(asked, teacher)
    augmentation = choose_augmentation(asked, data, [teacher])
    tell_augmentation(augmentation)
    begun = Stored.exists(folder)
    shards = Stored(folder).shards if begun else Shards(folder, len(data.train), layout.size, "")
    told = room(existing(folder), shards, layout, asked.views)
    missing = shards.missing(asked.views)
    settled = {
        "teacher": described(teacher),
        "out": str(folder),
        "device": device,
        "precision": precision,
        "data": described_data(data),
        "views": asked.views,
        "fields": list(layout.holds),
        "bytes_a_record": layout.size,
        "records": asked.views * len(data.train),
        "shards_to_write": len(missing),
        "room": told,
        "disk": disk(folder, sum(map(shards.bytes_of, missing))),
        "recipe": asked.model_dump(mode="json"),
    }
    return shown_plan("go on with a cache" if begun else "store", settled)


def training_bytes(parameters: int, extra: int, recipe: TrainRecipe) -> int:
    """About what a run takes on the disk at most: two checkpoints while one replaces the other, weights, and what is beside.

    parameters: of the student; extra: of the method's own layers. Weights are kept in float32.
    """
    averaged = parameters if recipe.ema_decay else 0
    checkpoint = 4 * ((parameters + extra) * (1 + _COPIES[recipe.optimizer]) + averaged)
    return int(2 * checkpoint + 4 * parameters + BESIDE)
