"""Load a teacher, fit a linear probe if its head does not fit the data, check its accuracy, and calibrate its FTM."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from scipy.stats import binomtest
from torch import Tensor, nn

from uhkd.console import escape, listed, log_info
from uhkd.data import Augmentation, BatchPlan, DataSplits, ImageSource, Loader, eval_loader, train_loader
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import EVAL_BATCH, Evaluation, evaluate
from uhkd.evaluation.probe import embed, fit_linear_probe
from uhkd.features import FeatureExtractor
from uhkd.methods import find_matching_loss
from uhkd.models import create, has_weights, native_size_of, wrap_module
from uhkd.recipe import CacheRecipe, DistillRecipe
from uhkd.runs import Checkpoint, RunFolder, write_tensors
from uhkd.training.checkpoint_checks import check_tensors
from uhkd.training.geometry import note_other_resize
from uhkd.training.inputs import Inputs, image_size, recorded_split
from uhkd.training.label_free import ProbeEvaluator
from uhkd.training.learner import StudentWithLosses
from uhkd.training.teacher import Autocast, Teacher, TeacherEnsemble, TeacherSource, at_chance, calibrate

_CALIBRATION_IMAGES = 1024


def load_teacher(recipe: DistillRecipe | CacheRecipe, module: nn.Module | None, inputs: Inputs) -> FeatureExtractor:
    """Return the recipe's teacher with its original head, or the given module.

    Without teacher_start, a run folder is loaded with its weights and any other name with pretrained ones.

    Raises:
        UhkdError: for a teacher that cannot be built.
    """
    assert isinstance(recipe.teacher, str), "the recipe checks that a method other than scratch has a teacher"
    levels = recipe.teacher_levels
    if module is not None:
        size = native_size_of(module) or inputs.data.native_size
        try:
            return wrap_module(module, num_classes=None, image_size=size, levels=levels)
        except UhkdError as error:
            raise UhkdError(f"teacher: {error}") from error
    run = RunFolder(recipe.teacher)
    if run.started() and run.read_recipe().get("data") == recipe.data:
        held_out, share = recorded_split(run), inputs.data.val_fraction
        if None not in (held_out, share) and held_out != share:
            log_info(
                f"  the teacher was trained with val_fraction {held_out:g}, this run has {share:g}: it may "
                "have seen validation images, and its accuracy below may be too good"
            )
    start = recipe.teacher_start or ("random" if has_weights(recipe.teacher) else "pretrained")
    start = inputs.start_of(recipe.teacher, start)
    try:
        teacher = create(
            recipe.teacher,
            num_classes=None,
            start=start,
            weights_key=recipe.teacher_weights_key,
            options=recipe.teacher_options,
            levels=levels,
        )
    except UhkdError as error:
        hint = ""
        if "start=" in str(error) and not recipe.teacher_start:
            hint = "; for a teacher: --teacher-start, or --teacher with a run folder"
        raise UhkdError(f"teacher: {error}{hint}") from error
    note_other_resize(recipe.teacher, teacher, recipe.resize)
    return teacher


def prepare_teacher(
    recipe: DistillRecipe | CacheRecipe,
    inputs: Inputs,
    module: nn.Module | None = None,
    *,
    skip_evaluation: bool = False,
    evaluator: ProbeEvaluator | None = None,
    number: int | None = None,
) -> tuple[FeatureExtractor, Evaluation | None]:
    """Return a teacher that fits the data's classes and is better than chance, and its evaluation on the validation images.

    Args:
        recipe: with the teacher's options.
        inputs: data, device and run folder.
        module: the teacher, in place of the recipe's name.
        skip_evaluation: whether the teacher's accuracy was measured before.
        evaluator: measures the teacher's embedding on images of its own if the data has no labels; None: not measured.
        number: of the teacher among several, from 1.

    Raises:
        UhkdError: when the head does not fit and may not be replaced, or the teacher is at chance level.
    """
    data, fabric = inputs.data, inputs.fabric
    teacher = load_teacher(recipe, module, inputs).to(fabric.device).eval()
    for note in teacher.notes:
        log_info(f"  teacher: {note}")
    if not data.classes:
        return teacher, _evaluate_by_probe(teacher, recipe, None if inputs.dry_run else evaluator)
    why = _head_mismatch(teacher, data)
    if recipe.teacher_head == "keep" and why:
        raise UhkdError(f"the teacher's head does not fit: {why}; use teacher_head=auto to train a linear probe")
    why = why or ("teacher_head=probe" if recipe.teacher_head == "probe" else "")
    if why:
        if teacher.shapes.embedding is None:
            raise UhkdError(
                f"the teacher's head does not fit ({why}) and it has no embedding for a linear probe; finetune it"
            )
        _add_probe(teacher, inputs, inputs.folder.probe_of(number), why)
    if skip_evaluation or inputs.dry_run:
        return teacher, None
    loader = _eval_loader(data.val, teacher, inputs)
    evaluation = evaluate(teacher, loader, fabric.device, fabric.autocast)
    if float(evaluation.logits.isfinite().float().mean()) < 0.5:
        raise UhkdError(
            f"the teacher {recipe.teacher} gives NaN or infinite values for most validation images; try precision=fp32"
        )
    accuracy = evaluation.metrics["accuracy"]
    log_info(f"teacher {recipe.teacher}: validation accuracy {accuracy:.2%}" + (" (linear probe)" if why else ""))
    unnamed = not why and not (teacher.config and teacher.config.classes)
    _check_above_chance(evaluation, recipe, recipe.data, data.classes if unnamed else ())
    return teacher, evaluation


def _eval_loader(images: ImageSource, teacher: FeatureExtractor, inputs: Inputs) -> Loader:
    return eval_loader(
        images,
        image_size(inputs.data, [teacher]),
        batch_size=EVAL_BATCH,
        workers=inputs.workers,
        resize=inputs.data.resize,
        device=inputs.fabric.device,
    )


def _check_above_chance(
    evaluation: Evaluation, recipe: DistillRecipe | CacheRecipe, data: str, unverified: Sequence[str] = ()
) -> None:
    """Raise UhkdError for a teacher at chance level; `unverified`: the data's classes, if its outputs may have another order."""
    labels, images = evaluation.labels, len(evaluation.labels)
    if recipe.allow_weak_teacher or not at_chance(evaluation.correct, labels):
        return
    interval = binomtest(evaluation.correct, images).proportion_ci(method="wilson")
    few = f"; {images} images are few, a larger --val-fraction gives more" if images < 100 else ""
    order = ""
    if unverified:
        first = listed([escape(name) for name in unverified])
        order = f"if it is trained already, check that output k is the k-th class of the data ({first}); else "
    raise UhkdError(
        f"the teacher {recipe.teacher} is at chance level on these images ({evaluation.metrics['accuracy']:.1%} of {images} "
        f"right, {evaluation.logits.shape[1]} classes; 95 % interval {interval.low:.1%} to {interval.high:.1%}, the commonest "
        f"class alone {labels.bincount().max().item() / images:.1%}{few}); {order}train it first: uhkd finetune "
        f"--model {recipe.teacher} --data {data} --out DIR, then --teacher DIR (or use it anyway with --allow-weak-teacher)"
    )


def _evaluate_by_probe(
    teacher: FeatureExtractor, recipe: DistillRecipe | CacheRecipe, evaluator: ProbeEvaluator | None
) -> Evaluation | None:
    """Return the evaluation of a teacher's embedding on labelled images, if possible."""
    if recipe.teacher_head == "probe":
        raise UhkdError("teacher_head=probe trains a head on labels, and these images have none; leave it out")
    if evaluator is None or teacher.shapes.embedding is None:
        log_info(
            f"teacher {recipe.teacher}: without labels its accuracy is unknown"
            + ("; --probe-data LABELLED_IMAGES measures it" if isinstance(recipe, DistillRecipe) else "")
        )
        return None
    evaluation = evaluator.evaluation(teacher)
    accuracy = evaluation.metrics["accuracy"]
    log_info(f"teacher {recipe.teacher}: validation accuracy {accuracy:.2%} ({evaluator.description})")
    assert isinstance(recipe, DistillRecipe) and recipe.probe_data is not None
    _check_above_chance(evaluation, recipe, recipe.probe_data)
    return evaluation


def _head_mismatch(teacher: FeatureExtractor, data: DataSplits) -> str:
    """Return why the teacher's head does not fit the classes of the data; empty if it fits."""
    count, expected = teacher.shapes.logits, len(data.classes)
    if count != expected:
        return f"it has {'no classes' if count is None else f'{count} classes'}, the data {expected}"
    return "" if teacher.config is None else teacher.config.differing_class(data.classes)


def _add_probe(teacher: FeatureExtractor, inputs: Inputs, file: Path, why: str) -> None:
    assert teacher.shapes.embedding is not None
    data, fabric = inputs.data, inputs.fabric
    probe = nn.Linear(teacher.shapes.embedding, len(data.classes))
    if inputs.dry_run:
        log_info(f"  a linear probe would be trained on the teacher's embedding of {len(data.train):,} images")
    elif file.is_file():
        try:
            state = load_file(file)
            check_tensors(state, probe.state_dict(), state)
        except Exception as error:  # a damaged file can fail in any way
            raise UhkdError(f"{file} is damaged ({error}); delete it to have the probe trained again") from error
        probe.load_state_dict(state)
        log_info("linear probe of the teacher: loaded from the run folder")
    else:
        log_info(f"training a linear probe on the teacher's embedding of {len(data.train)} training images: {why}")
        loader = _eval_loader(data.train, teacher, inputs)
        probe = fit_linear_probe(*embed(teacher, loader, fabric.device, fabric.autocast), len(data.classes))
    teacher.set_probe(probe.to(fabric.device))


def save_probe(teacher: FeatureExtractor, folder: RunFolder, number: int | None = None) -> None:
    """Write the teacher's probe into the run folder, if it has one; number: of the teacher among several."""
    if teacher.probe is not None and not folder.probe_of(number).exists():
        write_tensors(folder.probe_of(number), teacher.probe.state_dict())


def build_teacher_module(
    networks: Sequence[FeatureExtractor], learner: StudentWithLosses, autocast: Autocast
) -> TeacherSource:
    """Return the source of the outputs of teacher networks, each with the fields that its losses and the balance need."""
    each = []
    for index, network in enumerate(networks):
        losses = [loss for loss in learner.losses.values() if loss.teacher_index == index]
        target = next((loss.needs.target for loss in losses if loss.needs.target), None)
        prefix = f"ftm.{index + 1}." if len(networks) > 1 else "ftm."
        needs = frozenset().union(*(loss.needs.teacher for loss in losses))
        if learner.balance is not None and learner.balance.reads_logits_of(index):
            needs |= {"logits"}
        each.append((Teacher(network, target, autocast, prefix), needs))
    if len(each) == 1:
        return each[0][0]
    matching = (loss.teacher_index for loss in learner.losses.values() if find_matching_loss(loss) is not None)
    return TeacherEnsemble(each, next(matching, 0))


def load_or_calibrate_ftm(teacher: Teacher, inputs: Inputs, augmentation: Augmentation, seed: int) -> None:
    """Load the statistics of the FTM from the checkpoint, or compute them in one pass over training images."""
    assert teacher.ftm is not None
    expected = teacher.state()

    def saved(checkpoint: Checkpoint) -> dict[str, Tensor]:
        return {k: v for k, v in checkpoint.tensors.items() if k.startswith(teacher.prefix)}

    checkpoint = inputs.folder.read_checkpoint(lambda read: check_tensors(saved(read), expected, expected))
    if checkpoint is not None:
        teacher.ftm.load_state_dict({k.removeprefix(teacher.prefix): v for k, v in saved(checkpoint).items()})
        return
    calibrate_ftm(teacher, inputs, augmentation, seed)
    # order and signs of principal channels may differ between devices
    teacher.ftm.load_state_dict(inputs.fabric.broadcast(teacher.ftm.state_dict()))


def calibrate_ftm(teacher: Teacher, inputs: Inputs, augmentation: Augmentation, seed: int) -> None:
    """Compute the statistics of the FTM in one pass over training images of view 0, without mixing."""
    data, device = inputs.data, inputs.fabric.device
    loader = train_loader(
        data.train,
        replace(augmentation, mixup=0.0, cutmix=0.0),
        BatchPlan(seed, batch_size=min(EVAL_BATCH, len(data.train)), epochs=1),
        num_classes=len(data.classes),
        workers=inputs.workers,
        device=device,
    )
    assert teacher.ftm is not None
    used = calibrate(teacher, loader, device, min(_CALIBRATION_IMAGES, len(data.train)))
    log_info(f"spectra of {len(teacher.ftm.shapes)} levels standardised over {used} training images")
