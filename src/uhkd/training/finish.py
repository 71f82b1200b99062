"""What a finished training notes for its readers: sizes and costs, what the teacher said, and a few images."""

import numpy as np
import torch

from uhkd import thumbnails
from uhkd.data import Data
from uhkd.evaluation import Evaluation, forward_flops, latency
from uhkd.runs import RunFolder
from uhkd.taps import TappedModel
from uhkd.training.setup import say


def sizes(network: TappedModel) -> dict[str, int | None]:
    """Parameters and bytes of a network (with its probe, if it has one), and the FLOPs of one image."""
    state = network.module.state_dict() | ({} if network.probe is None else network.probe.state_dict())
    parameters = [*network.module.parameters(), *(() if network.probe is None else network.probe.parameters())]
    try:
        flops = forward_flops(network)
    except Exception as error:  # a user's own network can fail in any way, and this training is done
        say(f"  the FLOPs of {type(network.module).__name__} could not be counted ({type(error).__name__})")
        flops = None
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(x.numel() * x.element_size() for x in state.values()),
        "flops": flops,
    }


def said(evaluation: Evaluation, of: str) -> dict[str, np.ndarray]:
    """Named class and its probability for every image: OF_prediction (N,) and OF_confidence (N,)."""
    confidence, prediction = evaluation.logits.softmax(1).max(1)
    return {f"{of}_prediction": prediction.numpy(), f"{of}_confidence": confidence.half().numpy()}


def note_rest(
    folder: RunFolder,
    data: Data,
    size: tuple[int, int],
    teacher: TappedModel | None,
    judged: Evaluation | None,
    *,
    show: bool,
) -> None:
    """Add to diagnostics.npz what the teacher said, its latency and, with `show`, val_shown (M,): which images were kept."""
    arrays = {} if judged is None else said(judged, "teacher")
    if teacher is not None:
        with torch.random.fork_rng(devices=[]):
            try:
                arrays["teacher_latency_ms"] = np.array([latency(teacher)])
            except Exception as error:  # as above
                say(f"  the teacher's latency could not be measured ({type(error).__name__})")
    if show:
        chosen = thumbnails.choose(data.val.labels, len(data.val))
        try:
            thumbnails.write_sheet(data.val, chosen, size, folder.thumbnails)
            arrays["val_shown"] = chosen
        except (
            Exception
        ) as error:  # a disk, or images of a user's own; the training is done, and a picture less is no loss
            say(f"  no thumbnails were written: {error}")
    folder.write_arrays(folder.read_arrays() | arrays)
