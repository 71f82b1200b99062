"""The temperature of a finished training, fitted on its held-out images by the final weights."""

import torch

from uhkd.console import log_info
from uhkd.data import eval_loader
from uhkd.evaluation.metrics import EVAL_BATCH, evaluate
from uhkd.evaluation.temperature import Calibration, calibrate
from uhkd.reporting.health import calibration_messages
from uhkd.runs import ProgressFile
from uhkd.training.setup import Setup


def fit_temperature(setup: Setup) -> Calibration | None:
    """Fit and log the temperature of a trained student; None without a classifier or without labels.

    The logits are computed anew, because the final weights need not be those of the last validation.
    """
    data, student, device = setup.data, setup.learner.student, setup.fabric.device
    if not data.classes or setup.evaluator is not None or student.shapes.logits is None:
        return None
    loader = eval_loader(data.val, setup.val_size, batch_size=EVAL_BATCH, workers=setup.workers, device=device)
    evaluation = evaluate(student, loader, device, setup.fabric.autocast)
    if not torch.isfinite(evaluation.logits).all():
        log_info("warning: no temperature was fitted, because some logits of the held-out images are not finite")
        return None
    calibration = calibrate(evaluation.logits, evaluation.labels)
    log_info(str(calibration))
    messages, progress = calibration_messages(calibration.to_json()), ProgressFile.read(setup.folder.path)
    for message in messages:
        log_info(f"warning: {message}")
    if messages and progress is not None:  # for `uhkd watch`
        progress.model_copy(update={"health": [*messages, *progress.health]}).write(setup.folder.path)
    return calibration
