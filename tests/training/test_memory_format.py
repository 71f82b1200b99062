"""The memory format of a training: channels last, except where oneDNN's kernels of this format are wrong."""

import copy

import pytest
import torch
from torch import nn

from uhkd.data import Batch
from uhkd.features import NetworkOutput
from uhkd.models import create
from uhkd.training.learner import StudentWithLosses


def learner(channels: list[int]) -> tuple[StudentWithLosses, Batch]:
    """A small CNN, whose stages begin with strided 1x1 convolutions of the channels of the stage before, and a batch."""
    torch.manual_seed(0)
    student = create("uhkd/resnet10", num_classes=3, image_size=16, options={"channels": channels})
    image = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    label = torch.arange(4) % 3
    batch = Batch(image, torch.eye(3)[label], label, torch.arange(4))
    return StudentWithLosses(student, nn.ModuleDict()).train().choose_memory_format(), batch


@pytest.mark.parametrize(
    ("capability", "channels", "contiguous"),
    [("AVX2", 4, True), ("AVX2", 7, True), ("AVX2", 8, False), ("AVX512", 4, False), ("DEFAULT", 4, False)],
)
def test_the_format_is_channels_last_except_for_few_channels_with_avx2(
    monkeypatch: pytest.MonkeyPatch, capability: str, channels: int, contiguous: bool
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    trained, batch = learner([channels] * 4)
    seen: list[torch.Tensor] = []
    trained.student.module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    trained(batch, NetworkOutput())
    convolutions = [m.weight for m in trained.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert trained.contiguous is contiguous and seen and len(convolutions) == 9
    for tensor in (*seen, *convolutions):
        assert tensor.is_contiguous() is contiguous
        assert tensor.is_contiguous(memory_format=torch.channels_last) is not contiguous


def test_gradients_of_strided_convolutions_of_few_channels_are_those_of_float64():
    trained, batch = learner([4, 4, 4, 4])
    reference = copy.deepcopy(trained).double()
    trained(batch, NetworkOutput())["ce"].backward()
    reference(batch._replace(image=batch.image.double()), NetworkOutput())["ce"].backward()
    for (name, p), q in zip(trained.named_parameters(), reference.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-5, msg=name)
