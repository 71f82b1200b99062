"""A program for torchrun: the gradients of every method by several processes, each with its part of one batch.

    python -m torch.distributed.run --nproc-per-node 2 processes.py OUT.safetensors METHOD...

Rank 0 writes the gradients of student and method, and buffers of the method, by name ("METHOD/NAME").
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

sys.path.insert(0, str(Path(__file__).parents[1]))

from references.steps import CLASSES, SETTINGS, assemble
from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.recipe import DistillRecipe
from uhkd.training import weighted_sum
from uhkd.training.ema import ModelEMA
from uhkd.training.running_metrics import RunningMetrics
from uhkd.training.step import TrainStep

IMAGES = 8


def whole_batch() -> Batch:
    """Images, soft targets and all, equal in every process."""
    image = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    label = torch.arange(IMAGES) % CLASSES
    target = 0.8 * torch.eye(CLASSES)[label] + 0.2 * torch.eye(CLASSES)[label.flip(0)]
    return Batch(image.contiguous(memory_format=torch.channels_last), target, label, torch.arange(IMAGES))


def draw_by_image(crd: Any) -> None:
    """Negatives that depend on the image alone, in place of random ones."""

    def forward(student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        drawn = (7 * batch.index[:, None] + 3 * torch.arange(16)) % len(crd.student_bank)
        return {"contrast": crd.loss(student, teacher, batch.index, drawn)}

    crd.forward = forward


def gradients(method: str, rank: int, world: int) -> dict[str, Tensor]:
    """After one step's backward pass, by `world` processes of which this is one."""
    learner, teacher, _ = assemble(method, SETTINGS.get(method, {}))
    if method == "crd":
        draw_by_image(learner.distillers["crd"])
    own = Batch(*(None if field is None else field[rank::world] for field in whole_batch()))
    model = torch.nn.parallel.DistributedDataParallel(learner) if world > 1 else learner
    terms = model(own, teacher.outputs(own, learner.teacher_needs))
    weighted_sum(terms, learner.weights()).backward()
    found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    found |= dict(learner.distillers.named_buffers())
    return {f"{method}/{name}": value.clone().contiguous() for name, value in found.items()}


def accumulated(method: str, parts: int, *, always: bool = False) -> tuple[dict[str, Tensor], int]:
    """Gradients of one of the engine's own steps in `parts` parts, and how often the processes sent gradients for it.

    always: they are sent after every part, as if nothing kept them from it.
    """
    learner, teacher, _ = assemble(method, SETTINGS.get(method, {}))
    if method == "crd":
        draw_by_image(learner.distillers["crd"])
    recipe = DistillRecipe.model_construct(
        method=method, grad_accum_steps=parts, seed=0, nonfinite="stop", clip_grad=None, batch_size=IMAGES, weights={}
    )
    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy="ddp")
    fabric.launch()
    # a rate of nothing: what is looked at are gradients, in the place where an optimizer meets them
    model, optimizer = fabric.setup(learner, torch.optim.SGD(learner.parameters(), lr=0.0))
    sent, found = [0], {}

    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent[0] += 1
        return allreduce_hook(dist.group.WORLD, bucket)

    def note(*_: object) -> None:
        found.update({name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None})

    model._forward_module.register_comm_hook(None, count)
    optimizer.optimizer.register_step_pre_hook(note)
    if always:
        fabric.no_backward_sync = lambda *_, **__: contextlib.nullcontext()
    average, totals = ModelEMA(learner.student, None), RunningMetrics(torch.device("cpu"))
    step = TrainStep(recipe, learner, teacher, fabric, model, optimizer, average, totals)
    batch = whole_batch()
    own = Batch(*(None if x is None else x[dist.get_rank() :: dist.get_world_size()] for x in batch))
    step(own, 0, learner.weights())
    return found, sent[0]


ACCUMULATED = (
    "kd",
    "rkd",
    "crd",
    "uhkd",
)  # a loss image by image, two of a whole batch, and one with batch statistics of its own


def main() -> None:
    """Measure every method asked for."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for method in sys.argv[2:]:
        found |= gradients(method, dist.get_rank(), dist.get_world_size())
    for method in ACCUMULATED:
        for how, parts, always in (("once", 2, False), ("always", 2, True), ("whole", 1, False)):
            grads, sent = accumulated(method, parts, always=always)
            found |= {f"accumulated/{method}/{how}/{name}": value.contiguous() for name, value in grads.items()}
            found[f"accumulated/{method}/{how}/sent"] = torch.tensor(sent)
    if dist.get_rank() == 0:
        save_file(found, sys.argv[1])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
