"""Outputs that are no class scores, and batch norm that a user has frozen."""

import pytest
import torch
from torch import Tensor, nn

import uhkd
from uhkd.models import wrap_module


def network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
        *more,
    )


class Softmax(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = network(), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(1).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match=r"Softmax gives probabilities .* remove it \(in forward\)"):
        wrap_module(Softmax(dtype), num_classes=4, image_size=16)
    with pytest.raises(ValueError, match="Sequential gives probabilities"):
        uhkd.Distillation(network(nn.Softmax(1)), network(), num_classes=4, image_size=16, method="kd")


def test_what_the_message_says_helps():
    module = network(nn.Softmax(1))
    with pytest.raises(ValueError, match=r"remove it \(module.set_submodule\('5', torch.nn.Identity\(\)\)\)"):
        wrap_module(module, num_classes=4, image_size=16)
    module.set_submodule("5", nn.Identity())
    assert wrap_module(module, num_classes=4, image_size=16).shapes.logits == 4


def test_log_probabilities_and_other_outputs_pass():
    (note,) = [n for n in wrap_module(network(nn.LogSoftmax(1)), num_classes=4, image_size=16).notes if "log-prob" in n]
    assert "used as logits" in note
    for more in (nn.ReLU(), nn.Identity()):
        assert not any("prob" in note for note in wrap_module(network(more), num_classes=4, image_size=16).notes)


def statistics(module: nn.Module) -> list[Tensor]:
    return [part.running_mean.clone() for part in module.modules() if isinstance(part, nn.BatchNorm2d)]  # pyright: ignore


def frozen(module: nn.Sequential) -> None:
    module[0].requires_grad_(False)


def set_to_eval(module: nn.Sequential) -> None:
    module.train()[0].eval()


def in_a_frozen_layer(module: nn.Sequential) -> None:
    module[1].requires_grad_(False)


@pytest.mark.parametrize(
    ("freeze", "kept"),
    [
        (frozen, [True, False]),
        (set_to_eval, [True, False]),
        (in_a_frozen_layer, [False, True]),
        (nn.Module.eval, [False, False]),
    ],
)
def test_frozen_batch_norm_keeps_its_statistics(freeze, kept: list[bool]):
    """Also after a validation; a module that is in eval mode as a whole is trained."""
    module = network()
    freeze(module)
    before = statistics(module)
    wrapped = wrap_module(module, num_classes=4, image_size=16)
    for step in (wrapped.train, wrapped.eval, wrapped.train):
        step()
        wrapped(torch.rand(4, 3, 16, 16))
    assert [torch.equal(a, b) for a, b in zip(before, statistics(module), strict=True)] == kept
