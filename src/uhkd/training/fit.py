"""Train a prepared setup and write its run folder: weights, metrics, sizes, thumbnails and figures."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uhkd.console import log_info, pluralize, print_result
from uhkd.data import steps_per_epoch
from uhkd.evaluation.metrics import Evaluation, forward_flops, latency
from uhkd.features import FeatureExtractor
from uhkd.reporting import thumbnails
from uhkd.reporting.plots import draw
from uhkd.runs import RunFolder, environment, read_or_replace, write_tensors
from uhkd.training.ema import check_decay
from uhkd.training.load_teacher import load_or_calibrate_ftm, save_probe
from uhkd.training.progress import format_metrics
from uhkd.training.setup import Setup, log_loss
from uhkd.training.signals import TrainingInterrupted
from uhkd.training.students import load_finished_model
from uhkd.training.summary import final_summary, usage_hints
from uhkd.training.temperature import fit_temperature
from uhkd.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """A finished training: the network in eval mode, metrics (with keep=best of the best epoch, else the last), folder."""

    student: FeatureExtractor
    metrics: dict[str, float]
    run: RunFolder

    def to_json(self) -> dict[str, Any]:
        """Return the content of result.json and the path of the run."""
        return {"run": str(self.run.path), **(self.run.read_result() if self.run.result.is_file() else {})}


def fit(setup: Setup) -> Result:
    """Train and write the run folder; of several processes only the first writes.

    Raises:
        UhkdError: as `Trainer.train`, or if the folder cannot be written.
    """
    recipe, data, folder, fabric = setup.recipe, setup.data, setup.folder, setup.fabric
    student = setup.learner.student
    with _name_folder(folder), folder.lock() if fabric.is_global_zero else contextlib.nullcontext():
        _begin(setup)
        averaged = f", weights averaged with decay {recipe.ema_decay}" if recipe.ema_decay else ""
        log_info(
            f"training {count_parameters(student) / 1e6:.2f} M parameters for {pluralize(recipe.epochs, 'epoch')}, batch "
            f"{recipe.batch_size}, {recipe.optimizer} lr {recipe.learning_rate:g}{averaged}; writing to {folder.path}"
        )
        if recipe.ema_decay:
            check_decay(recipe.ema_decay, recipe.epochs * steps_per_epoch(len(data.train), recipe.batch_size))
        balance = setup.facts.get("balance", "constant")
        log_loss(setup.learner.weights(setup.ce_weight), labels=bool(data.classes), balance=balance)
        trainer = Trainer(setup)
        rows = trainer.train()
        last = {k: v.clone() for k, v in student.module.state_dict().items()} if trainer.best.keep else {}
        metrics, facts = trainer.best.choose(rows)
        setup.frozen.release()
        student.eval()
        if not data.classes:
            student.requires_grad_(True)  # layers without a loss were frozen
        if fabric.is_global_zero:
            setup.facts |= facts
            _finish(setup, metrics, last)
    return Result(student, metrics, folder)


@contextlib.contextmanager
def _name_folder(folder: RunFolder) -> Iterator[None]:
    """Add the run folder to the message of an interruption after a step."""
    try:
        yield
    except TrainingInterrupted as stop:
        raise TrainingInterrupted(f"{stop} in {folder.path}", stop.code, folder.path) from None


def finished(setup: Setup, module: nn.Module | None) -> Result:
    """Return the result of a finished run; nothing is trained. module: network to load the weights into."""
    folder = setup.folder
    log_info(f"{folder.path} is finished: there is nothing to resume, and this is its result")
    network = load_finished_model(folder, module)
    return Result(network.to(setup.fabric.device).eval(), folder.read_result()["metrics"], folder)


def _begin(setup: Setup) -> None:
    """Write the recipe and the probes of the teachers, and load or compute the statistics of the teachers' spectra."""
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


def _finish(setup: Setup, metrics: dict[str, float], last: dict[str, Tensor]) -> None:
    """Write weights, config, diagnostics, figures and, last, the result; print the result and the next commands.

    metrics: of the weights that the student has. last: weights of the last epoch, where these are others; tensors of any shape.
    """
    recipe, data, folder, student = setup.recipe, setup.data, setup.folder, setup.learner.student
    calibration = fit_temperature(setup)
    temperature = 1.0 if calibration is None else calibration.temperature
    classes = data.classes or student.config.classes
    config = replace(student.config, classes=classes, temperature=temperature).to_json()
    teacher = setup.networks[0] if len(setup.networks) == 1 else None
    facts = setup.facts | {
        "seed": recipe.seed,
        "metrics": metrics,
        "parameters": count_parameters(student.module),
        "extra_parameters": count_parameters(setup.learner.distillers),
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "train_images": len(data.train),
        "environment": read_or_replace(folder.read_environment, environment, folder.environment),
        "sizes": {"student": sizes(student)} | ({} if teacher is None else {"teacher": sizes(teacher)}),
    }
    trained = setup.facts.get("best_epoch", {"last": metrics})["last"]
    with folder.writing("the trained network", f"the checkpoint of step {trained['step']} is kept"):
        if last:
            write_tensors(folder.last_weights, last)
        folder.write_model(config, student.module.state_dict())
        arrays = read_or_replace(folder.read_arrays, dict, folder.diagnostics)
        folder.write_arrays(arrays | _teacher_arrays(setup) | _write_thumbnails(setup))
        # in a file of its own, because it differs from run to run
        folder.write_json(folder.latency.name, _latency({"student_ms": student, "teacher_ms": teacher}))
        if calibration is not None:
            folder.write_json(folder.calibration.name, calibration.to_json())
        figures = ", ".join(path.name for path in draw(folder))
        folder.write_result(facts)
    folder.drop_checkpoints()
    for line in final_summary(facts):
        print_result(line)
    log_info(f"run folder {folder.path} with {figures}")
    if last:
        log_info(f"weights of the last epoch: {folder.last_weights} ({', '.join(format_metrics(trained))})")
    if config["name"].startswith("module/"):
        log_info(f'its weights: uhkd.models.load_state("{folder.weights}"), into a module of your own')
    else:
        for line in usage_hints(folder.path, facts, headless=not student.shapes.logits, data=recipe.data):
            log_info(line)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def sizes(network: FeatureExtractor) -> dict[str, int | None]:
    """Return parameters and bytes of a network (with its probe, if any), and the FLOPs of one image (None if unknown)."""
    modules = [network.module, *([] if network.probe is None else [network.probe])]
    try:
        flops = forward_flops(network)
    except Exception as error:  # a user's network can fail in any way; the training itself is complete
        log_info(f"  the FLOPs of {type(network.module).__name__} could not be counted ({type(error).__name__})")
        flops = None
    return {
        "parameters": sum(map(count_parameters, modules)),
        "bytes": sum(x.numel() * x.element_size() for module in modules for x in module.state_dict().values()),
        "flops": flops,
    }


def predictions(evaluation: Evaluation, of: str) -> dict[str, np.ndarray]:
    """Return predicted class and its probability for every image: OF_prediction (N,) and OF_confidence (N,)."""
    confidence, prediction = evaluation.logits.softmax(1).max(1)
    return {f"{of}_prediction": prediction.numpy(), f"{of}_confidence": confidence.half().numpy()}


def _teacher_arrays(setup: Setup) -> dict[str, np.ndarray]:
    """Return the predictions of a single teacher, if there are labels."""
    evaluation = setup.teachers[0].evaluation if len(setup.teachers) == 1 and setup.data.classes else None
    return {} if evaluation is None else predictions(evaluation, "teacher")


def _latency(networks: Mapping[str, FeatureExtractor | None]) -> dict[str, float]:
    """Return the latency of one image in ms of each network that exists and can be measured."""
    found: dict[str, float] = {}
    for name, network in networks.items():
        if network is not None:
            with torch.random.fork_rng(devices=[]):
                try:
                    found[name] = latency(network)
                except Exception as error:  # as in `sizes`
                    log_info(f"  the latency of {network.config.name} could not be measured ({type(error).__name__})")
    return found


def _write_thumbnails(setup: Setup) -> dict[str, np.ndarray]:
    """Write thumbnails.jpg, if configured, and return the indices of its images, val_shown (M,)."""
    images = setup.data.val
    if not setup.recipe.thumbnails:
        return {}
    indices = thumbnails.choose(images.labels, len(images))
    try:
        thumbnails.write_sheet(images, indices, setup.val_size, setup.folder.thumbnails, setup.data.resize)
    except Exception as error:  # a full disk or a user's images; the training itself is complete
        log_info(f"  no thumbnails were written: {error}")
        return {}
    return {"val_shown": indices}
