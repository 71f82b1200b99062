"""A program, also for torchrun: trainings of students that do not use all of their parameters in every step.

    python -m torch.distributed.run --nproc-per-node 2 partial_use.py TEACHER OUT STUDENT:METHOD...

Each training has the run folder OUT/STUDENT-METHOD.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 60,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "optimizer": "adamw",
    "lr": 0.002,
    "thumbnails": False,
    "allow_weak_teacher": True,
}


class Spare(nn.Module):
    """A small CNN with a mask token, a layer and a norm that its forward pass never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 8))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(2, 16), nn.ReLU())
        self.spare, self.spare_norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Any:
        return self.head(self.features(image).mean((2, 3)))

    def features(self, image: Tensor) -> Tensor:
        return self.last(self.middle(self.stem(image)))


class Auxiliary(Spare):
    """Gives the logits of `spare` too in training mode, which no loss reads."""

    def forward(self, image: Tensor) -> Any:
        pooled = self.features(image).mean((2, 3))
        return (self.head(pooled), self.spare_norm(self.spare(pooled))) if self.training else self.head(pooled)


class Residual(nn.Module):
    """A residual block that leaves its branch out in every other step, by chance."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and bool(torch.rand(()) < 0.5) else x + self.branch(x)


class Skipping(Spare):
    """A network with a `Residual` block."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = Residual(self.middle)


class Checkpointed(Spare):
    """Computes the activations of its last stage again in the backward pass."""

    def features(self, image: Tensor) -> Tensor:
        before = self.middle(self.stem(image))
        return checkpoint(self.last, before, use_reentrant=True) if torch.is_grad_enabled() else self.last(before)


STUDENTS = {"spare": Spare, "auxiliary": Auxiliary, "skipping": Skipping, "checkpointed": Checkpointed}
NEVER = {"spare.weight", "spare.bias", "spare_norm.weight", "spare_norm.bias", "mask_token"}


def train(teacher: str, out: Path, student: str, method: str, **changes: Any) -> Any:
    """Train a student of this module, and return the result."""
    import uhkd

    torch.manual_seed(0)
    words = TINY | {"teacher": None if method == "scratch" else teacher, "method": method, **changes}
    return uhkd.distill(**words, student=STUDENTS[student](), out=out / f"{student}-{method}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for pair in sys.argv[3:]:
        train(sys.argv[1], Path(sys.argv[2]), *pair.split(":"))
