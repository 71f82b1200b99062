"""Training without labels: the weights of its terms, and what tells how good the student is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric

from uhkd.cache import TeacherCache
from uhkd.console import log_info
from uhkd.data import DataSplits, ImageSource, eval_loader, open_data
from uhkd.errors import UhkdError
from uhkd.evaluation.metrics import EVAL_BATCH, Evaluation, predict_logits
from uhkd.evaluation.probe import Probe, embed, probe
from uhkd.features import FeatureExtractor
from uhkd.methods import label_free_weights
from uhkd.recipe import DistillRecipe
from uhkd.training.inputs import image_size
from uhkd.training.summary import KINDS


def weights_without_labels(recipe: DistillRecipe, teacher: FeatureExtractor | TeacherCache | None) -> dict[str, float]:
    """The recipe's weights; without logits to imitate, the terms on them are left out.

    Raises:
        UhkdError: for a method that learns from labels, or from logits that are not there.
    """
    logits = teacher.manifest.layout.logits if isinstance(teacher, TeacherCache) else teacher and teacher.shapes.logits
    weights = label_free_weights(recipe.method, recipe.settings, recipe.weights, logits=logits is not None)
    if left := sorted(weights.keys() - recipe.weights.keys()):
        log_info(f"  the teacher has no class scores: left out are the terms {', '.join(left)}")
    return weights


def log_frozen(numbers: int, needs: frozenset[str]) -> None:
    """Say what of the student no term reaches, as `freeze_unused` counted it."""
    if numbers:
        end = (
            ""
            if "embedding" in needs
            else "; a method that reads embeddings reaches them (rsd, rkd or cc, as in uhkd+rsd)"
        )
        log_info(f"  {numbers:,} parameters of the student lie behind all that is imitated and stay as they begin{end}")


@dataclass(frozen=True)
class ProbeEvaluator:
    """Fits a probe on a network's frozen embeddings of the labelled training images, and measures it on another part."""

    kind: Probe
    data: DataSplits
    queries: ImageSource
    fabric: Fabric
    workers: int = 0

    def evaluation(self, network: FeatureExtractor) -> Evaluation:
        """Of the part asked for; nothing of the probe is kept."""
        size, device = image_size(self.data, [network]), self.fabric.device
        loaded = {"batch_size": EVAL_BATCH, "workers": self.workers, "device": device}
        known, queries = (
            embed(network, eval_loader(part, size, **loaded), device, self.fabric.autocast)
            for part in (self.data.train, self.queries)
        )
        return probe(self.kind, known, queries, len(self.data.classes))

    def __call__(self, network: FeatureExtractor) -> dict[str, float]:
        return self.evaluation(network).metrics


def make_probe_evaluator(
    recipe: DistillRecipe, data: DataSplits, fabric: Fabric, workers: int
) -> ProbeEvaluator | None:
    """The judge of a training without labels, if the recipe brings labelled images.

    Raises:
        UhkdError: as `open_probe_data`.
    """
    opened = open_probe_data(recipe, data)
    return None if opened is None else ProbeEvaluator(recipe.probe, opened, opened.val, fabric, workers)


def open_probe_data(recipe: DistillRecipe, data: DataSplits) -> DataSplits | None:
    """The labelled images that judge a training without labels, if the recipe brings any.

    Raises:
        UhkdError: for probe_data beside labels, or without any.
    """
    if recipe.probe_data is None:
        return None
    if data.classes:
        raise UhkdError(
            f"probe_data judges a training without labels, and data {data.name} has labels: leave out --probe-data, or leave "
            "the labels aside by --unlabelled"
        )
    opened = open_data(recipe.probe_data, val_fraction=recipe.val_fraction, skip_bad_images=recipe.skip_bad_images)
    if not opened.classes:
        raise UhkdError(
            f"probe_data {opened.name} has no labels to judge by: expected class folders, or another labelled set"
        )
    log_info(
        f"judged by a {KINDS[recipe.probe]} on {len(opened.train)} labelled images of {opened.name}, measured on "
        f"{len(opened.val)} validation images, {len(opened.classes)} classes"
    )
    return opened


def describe_probe(evaluator: ProbeEvaluator, student: FeatureExtractor) -> dict[str, Any]:
    """What a run notes of its judge, with the accuracy of the student before its first step, which is said too."""
    start = evaluator(student)["accuracy"]
    log_info(f"the student before its first step: validation accuracy {start:.2%} ({KINDS[evaluator.kind]})")
    by = f"{KINDS[evaluator.kind]} on {evaluator.data.name}"
    return {
        "kind": evaluator.kind,
        "data": evaluator.data.name,
        "classes": len(evaluator.data.classes),
        "start": start,
        "by": by,
    }


@dataclass(frozen=True)
class TeacherAgreement:
    """How often a network names the class that its teacher names, on the same images."""

    predictions: torch.Tensor
    data: DataSplits
    fabric: Fabric
    workers: int

    def __call__(self, network: FeatureExtractor) -> dict[str, float]:
        predicted = predict_classes(network, self.data, self.fabric, self.workers)
        return {"agreement": float((predicted == self.predictions).float().mean())}


def predict_classes(network: FeatureExtractor, data: DataSplits, fabric: Fabric, workers: int) -> torch.Tensor:
    """The class that a network names for each validation image, (N,)."""
    size, device = image_size(data, [network]), fabric.device
    loader = eval_loader(data.val, size, batch_size=EVAL_BATCH, workers=workers, device=device)
    return predict_logits(network, loader, device, fabric.autocast)[0].argmax(1)


def make_agreement_evaluator(
    teacher: FeatureExtractor | TeacherCache | None, classes: int, data: DataSplits, fabric: Fabric, workers: int
) -> Callable[[FeatureExtractor], dict[str, float]]:
    """What judges a student without labelled images: a live teacher's own answers, if there are any, or nothing."""
    if classes and isinstance(teacher, FeatureExtractor):
        return TeacherAgreement(predict_classes(teacher, data, fabric, workers), data, fabric, workers)
    return lambda network: {}
