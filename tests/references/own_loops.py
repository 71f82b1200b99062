"""A program for torchrun: loops of one's own by two processes, plain DDP and Lightning, each process with its part of the batch.

    python -m torch.distributed.run --nproc-per-node 2 own_loops.py OUT.safetensors

Rank 0 writes gradients by name, and the statistics that Lightning's processes took ("lightning/RANK/NAME").
"""

import sys
import warnings

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import uhkd
from uhkd.features import FeatureExtractor
from uhkd.models import create

CLASSES, IMAGES = 5, 12


def whole() -> tuple[Tensor, Tensor]:
    """Images and labels, equal in every process."""
    return torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.arange(IMAGES) % CLASSES


def teacher() -> FeatureExtractor:
    """A tiny CNN, equal in every process."""
    torch.manual_seed(0)
    return create("uhkd/resnet10", num_classes=CLASSES, image_size=16, options={"channels": [8, 8, 16, 16]})


STUDENT = {"student": "uhkd/vit_micro", "num_classes": CLASSES, "image_size": 16}


def gradients(rank: int, world: int) -> dict[str, Tensor]:
    """After one step of `uhkd` by `world` processes of which this is one."""
    own = uhkd.Distillation(teacher(), **STUDENT).train()
    images, labels = whole()
    # each process offers other images: the first one's count
    own.calibrate([images if rank == 0 else images.flip(3)[:4]])
    model = DistributedDataParallel(own) if world > 1 else own
    loss, _ = model(images[rank::world], labels[rank::world])
    loss.backward()
    found = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    found |= {f"ftm.{name}": buffer for name, buffer in own.ftm.named_buffers()}
    return {name: value.clone().contiguous() for name, value in found.items()}


def by_lightning() -> dict[str, Tensor]:
    """Weights and statistics of this process after two steps of Lightning's DDP."""
    from pytorch_lightning import Trainer

    from uhkd.integrations.lightning import UHKDLightningModule

    module = UHKDLightningModule(teacher(), **STUDENT)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(*whole()), batch_size=3))
    return {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}


def main() -> None:
    """Measure both."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's advice on workers
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = gradients(rank, dist.get_world_size())
    own = by_lightning()
    each: list[dict[str, Tensor]] = [{}, {}]
    dist.all_gather_object(each, own)
    found |= {f"lightning/{i}/{name}": tensor for i, state in enumerate(each) for name, tensor in state.items()}
    if rank == 0:
        save_file(found, sys.argv[1])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
