"""Train what was set up, from a new run folder to a finished one: weights, metrics, costs, and a few images."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from uhkd.console import log_info, pluralize, print_result
from uhkd.data import DataSplits
from uhkd.evaluation.metrics import Evaluation, forward_flops, latency
from uhkd.features import FeatureExtractor
from uhkd.reporting import thumbnails
from uhkd.reporting.plots import draw
from uhkd.runs import RunFolder
from uhkd.training.load_teacher import load_or_calibrate_ftm, save_probe
from uhkd.training.setup import Setup, log_loss
from uhkd.training.students import load_finished_model
from uhkd.training.summary import final_summary, usage_hints
from uhkd.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """A finished training: the network in eval mode, its last metrics, and the run folder."""

    student: FeatureExtractor
    metrics: dict[str, float]
    run: RunFolder

    def as_json(self) -> dict[str, Any]:
        """Return what result.json holds, and the path of the run."""
        return {"run": str(self.run.path), **(self.run.read_result() if self.run.result.is_file() else {})}


def fit(setup: Setup) -> Result:
    """Train and write the run folder; of several processes the first alone writes.

    Raises:
        UhkdError: as `Trainer.train`, or if the folder cannot be written.
    """
    recipe, data, folder, fabric = setup.recipe, setup.data, setup.folder, setup.fabric
    student = setup.learner.student
    with folder.lock() if fabric.is_global_zero else contextlib.nullcontext():
        _begin(setup)
        averaged = f", weights averaged with decay {recipe.ema_decay}" if recipe.ema_decay else ""
        millions = sum(p.numel() for p in student.parameters()) / 1e6
        log_info(
            f"training {millions:.2f} M parameters for {pluralize(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, "
            f"{recipe.optimizer} lr {recipe.learning_rate:g}{averaged}; writing to {folder.path}"
        )
        log_loss(setup.learner.weights(setup.ce_weight), labels=bool(data.classes))
        rows = Trainer(setup).train()
        student.eval()
        if not data.classes:
            student.requires_grad_(True)  # what no loss reached was frozen
        if fabric.is_global_zero:
            _finish(setup, rows[-1])
    return Result(student, rows[-1], folder)


def finished(setup: Setup, module: nn.Module | None) -> Result:
    """Return the result of a run that needs no resuming; nothing is trained again. module: to load the weights into."""
    folder = setup.folder
    log_info(f"{folder.path} is finished: there is nothing to resume, and this is its result")
    network = load_finished_model(folder, module)
    return Result(network.to(setup.fabric.device).eval(), folder.read_result()["metrics"], folder)


def _begin(setup: Setup) -> None:
    """Write the recipe, and prepare the teachers' spectra."""
    folder, networks = setup.folder, setup.networks
    if setup.fabric.is_global_zero:
        with folder.writing("the run's recipe", "nothing was trained yet"):
            folder.begin(setup.recipe.model_dump(mode="json"))
            for number, network in enumerate(networks, 1):
                save_probe(network, folder, number if len(networks) > 1 else None)
    setup.fabric.barrier()
    for teacher in setup.live_teachers:
        if teacher.ftm is not None:
            load_or_calibrate_ftm(teacher, setup, setup.augmentation, setup.recipe.seed)


def _finish(setup: Setup, metrics: dict[str, float]) -> None:
    """Write weights, card, diagnostics, figures and, last, the result; print the result and the next commands."""
    recipe, data, folder, student = setup.recipe, setup.data, setup.folder, setup.learner.student
    card = replace(student.card, classes=data.classes or student.card.classes).to_json()
    live = setup.networks[0] if len(setup.networks) == 1 else None
    facts = setup.facts | {
        "seed": recipe.seed,
        "metrics": metrics,
        "parameters": sum(p.numel() for p in student.module.parameters()),
        "extra_parameters": sum(p.numel() for p in setup.learner.distillers.parameters()),
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "train_images": len(data.train),
        "environment": folder.read_environment(),
        "sizes": {"student": sizes(student)} | ({} if live is None else {"teacher": sizes(live)}),
    }
    # the teacher's answers are noted where there is one with labels to judge it by
    evaluation = setup.teachers[0].evaluation if len(setup.teachers) == 1 and data.classes else None
    with folder.writing("the trained network", f"the checkpoint of step {metrics['step']} is kept"):
        folder.write_model(card, student.module.state_dict())
        _write_rest(folder, data, setup.val_size, live, evaluation, thumbnails_too=recipe.thumbnails)
        figures = ", ".join(path.name for path in draw(folder))
        folder.write_json(folder.result.name, facts)  # the last: it marks the run as finished
    folder.drop_checkpoints()
    for line in final_summary(facts):
        print_result(line)
    log_info(f"run folder {folder.path} with {figures}")
    if card["name"].startswith("module/"):
        log_info(f'its weights: uhkd.models.load_state("{folder.weights}"), into a module of your own')
    else:
        for line in usage_hints(folder.path, facts, headless=not student.shapes.logits):
            log_info(line)


def sizes(network: FeatureExtractor) -> dict[str, int | None]:
    """Parameters and bytes of a network (with its probe, if it has one), and the FLOPs of one image."""
    state = network.module.state_dict() | ({} if network.probe is None else network.probe.state_dict())
    parameters = [*network.module.parameters(), *(() if network.probe is None else network.probe.parameters())]
    try:
        flops = forward_flops(network)
    except Exception as error:  # a user's own network can fail in any way, and this training is done
        log_info(f"  the FLOPs of {type(network.module).__name__} could not be counted ({type(error).__name__})")
        flops = None
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(x.numel() * x.element_size() for x in state.values()),
        "flops": flops,
    }


def predictions(evaluation: Evaluation, of: str) -> dict[str, np.ndarray]:
    """Return predicted class and its probability for every image: OF_prediction (N,) and OF_confidence (N,)."""
    confidence, prediction = evaluation.logits.softmax(1).max(1)
    return {f"{of}_prediction": prediction.numpy(), f"{of}_confidence": confidence.half().numpy()}


def _write_rest(
    folder: RunFolder,
    data: DataSplits,
    size: tuple[int, int],
    teacher: FeatureExtractor | None,
    evaluation: Evaluation | None,
    *,
    thumbnails_too: bool,
) -> None:
    """Add to diagnostics.npz the teacher's predictions and latency, and val_shown (M,): which images the thumbnails show."""
    arrays = {} if evaluation is None else predictions(evaluation, "teacher")
    if teacher is not None:
        with torch.random.fork_rng(devices=[]):
            try:
                arrays["teacher_latency_ms"] = np.array([latency(teacher)])
            except Exception as error:  # as above
                log_info(f"  the teacher's latency could not be measured ({type(error).__name__})")
    if thumbnails_too:
        chosen = thumbnails.choose(data.val.labels, len(data.val))
        try:
            thumbnails.write_sheet(data.val, chosen, size, folder.thumbnails)
            arrays["val_shown"] = chosen
        except (
            Exception
        ) as error:  # a disk, or images of a user's own; the training is done, and a picture less is no loss
            log_info(f"  no thumbnails were written: {error}")
    folder.write_arrays(folder.read_arrays() | arrays)
