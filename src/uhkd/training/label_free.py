"""Training without labels: the weights of the terms, and the evaluation of the student."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from uhkd.cache import TeacherCache
from uhkd.console import log_info
from uhkd.data import Columns, DataSplits, ImageSource, eval_loader, open_data
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import EVAL_BATCH, Evaluation, predict_logits
from uhkd.evaluation.probe import Probe, embed, probe
from uhkd.features import FeatureExtractor
from uhkd.methods import label_free_weights
from uhkd.recipe import DistillRecipe
from uhkd.training.inputs import image_size
from uhkd.training.summary import KINDS


def weights_without_labels(recipe: DistillRecipe, teacher: FeatureExtractor | TeacherCache | None) -> dict[str, float]:
    """Return the recipe's weights, with weight 0 for terms on logits if the teacher has none.

    Raises:
        UhkdError: for a method that needs labels, or logits that the teacher does not have.
    """
    logits = (
        teacher.manifest.record_format.logits
        if isinstance(teacher, TeacherCache)
        else teacher and teacher.shapes.logits
    )
    weights = label_free_weights(recipe.method, recipe.settings, recipe.weights, logits=logits is not None)
    if omitted := sorted(weights.keys() - recipe.weights.keys()):
        log_info(f"  the teacher has no logits: the terms {', '.join(omitted)} are omitted")
    return weights


def log_frozen(count: int, needs: frozenset[str]) -> None:
    """Log the number of parameters of the student that `freeze_unused` froze."""
    hint = "" if "embedding" in needs else "; a method on embeddings trains them (rsd, rkd or cc, as in uhkd+rsd)"
    reason = "receive no gradient, because no loss term depends on them; they are frozen"
    log_info(f"  {count:,} parameters of the student {reason}{hint}")


@dataclass(frozen=True)
class ProbeEvaluator:
    """Fits a probe on a network's frozen embeddings of labelled training images, and evaluates it on another split.

    Args:
        kind: of the probe.
        data: the labelled images.
        queries: the split to evaluate on.
        fabric: device and precision.
        workers: loader processes.
    """

    kind: Probe
    data: DataSplits
    queries: ImageSource
    fabric: Fabric
    workers: int = 0

    @property
    def description(self) -> str:
        """Probe and data by name."""
        return f"{KINDS[self.kind]} on {self.data.name}"

    def evaluation(self, network: FeatureExtractor) -> Evaluation:
        """Return the evaluation of a network on `queries`; the probe is not saved."""
        size, device = image_size(self.data, [network]), self.fabric.device
        options = {"batch_size": EVAL_BATCH, "workers": self.workers, "device": device}
        train, queries = (
            embed(network, eval_loader(split, size, resize=self.data.resize, **options), device, self.fabric.autocast)
            for split in (self.data.train, self.queries)
        )
        return probe(self.kind, train, queries, len(self.data.classes))

    def __call__(self, network: FeatureExtractor) -> dict[str, float]:
        return self.evaluation(network).metrics


def make_probe_evaluator(
    recipe: DistillRecipe, data: DataSplits, fabric: Fabric, workers: int
) -> ProbeEvaluator | None:
    """Return the evaluator of a training without labels, if the recipe names labelled images (probe_data).

    Raises:
        UhkdError: for probe_data in a training with labels, or probe_data without labels.
    """
    if recipe.probe_data is None:
        return None
    if data.classes:
        raise UhkdError(
            f"probe_data evaluates a training without labels, and data {data.name} has labels: leave out --probe-data, or "
            "ignore the labels with --unlabelled"
        )
    columns = Columns(recipe.probe_data, recipe.image_column, recipe.label_column)
    opened = open_data(columns, val_fraction=recipe.val_fraction, skip_bad_images=recipe.skip_bad_images)
    opened = replace(opened, resize=recipe.resize)
    if not opened.classes:
        raise UhkdError(f"probe_data {opened.name} has no labels: expected class folders, or another labelled set")
    log_info(
        f"evaluated by a {KINDS[recipe.probe]} on {len(opened.train)} labelled images of {opened.name}, measured on "
        f"{len(opened.val)} validation images, {len(opened.classes)} classes"
    )
    return ProbeEvaluator(recipe.probe, opened, opened.val, fabric, workers)


def describe_probe(evaluator: ProbeEvaluator, student: FeatureExtractor) -> dict[str, Any]:
    """Return the facts about the probe for result.json; measure and log the student's accuracy before its first step."""
    start = evaluator(student)["accuracy"]
    log_info(f"the student before its first step: validation accuracy {start:.2%} ({KINDS[evaluator.kind]})")
    return {
        "kind": evaluator.kind,
        "data": evaluator.data.name,
        "classes": len(evaluator.data.classes),
        "start": start,
        "by": evaluator.description,
    }


def make_agreement_evaluator(
    teacher: FeatureExtractor | TeacherCache | None, classes: int, data: DataSplits, fabric: Fabric, workers: int
) -> Callable[[FeatureExtractor], dict[str, float]]:
    """Return the evaluator of a student without labelled images.

    It measures on which share of the validation images, 0..1, a network predicts the same class as its live teacher; without a
    live teacher with logits it measures nothing.
    """
    if not classes or not isinstance(teacher, FeatureExtractor):
        return lambda network: {}

    def predict_classes(network: FeatureExtractor) -> Tensor:
        size, device = image_size(data, [network]), fabric.device
        options = {"batch_size": EVAL_BATCH, "workers": workers, "device": device}
        loader = eval_loader(data.val, size, resize=data.resize, **options)
        return predict_logits(network, loader, device, fabric.autocast)[0].argmax(1)

    predictions = predict_classes(teacher)
    return lambda network: {"agreement": float((predict_classes(network) == predictions).float().mean())}
