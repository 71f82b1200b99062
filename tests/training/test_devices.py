"""What would go wrong on a GPU, seen without one: tensors that only pretend to lie on a GPU know shapes and devices, not values.

Operations that mix devices fail with them, and so do those that read a value and would make a GPU wait. Forward passes only: the
backward pass asks for a real device.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from uhkd.data import Batch
from uhkd.evaluation.metrics import predict_logits
from uhkd.features import PairShapes
from uhkd.methods import DistillationLoss, build_losses, method_names
from uhkd.models import create
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.teacher import Teacher

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast without a GPU

CLASSES = 6
PAIRS = [("uhkd/vit_micro", "uhkd/resnet10"), ("uhkd/resnet10", "uhkd/mixer_micro")]


def pretend_gpu(*modules: nn.Module | None) -> FakeTensorMode:
    """Put modules on a GPU that is not there."""
    mode = FakeTensorMode()
    for module in (part for whole in modules if whole is not None for part in whole.modules()):
        for name, own in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            value = own.detach()
            with mode:
                moved = mode.from_tensor(value).to("cuda")
                setattr(
                    module, name, nn.Parameter(moved, own.requires_grad) if isinstance(own, nn.Parameter) else moved
                )
    return mode


def batch(device: str) -> Batch:
    return Batch(
        image=torch.rand(8, 3, 32, 32, device=device),
        target=torch.rand(8, CLASSES, device=device).softmax(1),
        label=torch.randint(CLASSES, (8,), device=device),
        index=torch.arange(8, device=device),
    )


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("method", [*method_names(), "rsd+dist"])
def test_a_step_stays_on_its_device_and_does_not_wait_for_it(method: str, student: str, teacher: str):
    network, taught = create(student, num_classes=CLASSES), create(teacher, num_classes=CLASSES)
    distillers = build_losses(method, PairShapes(network.shapes, taught.shapes, CLASSES, 100), {}, {})
    learner = StudentWithLosses(network, distillers)
    targets = [d.needs.target for d in distillers.values() if isinstance(d, DistillationLoss) and d.needs.target]
    sealed = Teacher(taught, next(iter(targets), None))
    sealed._ready = True  # else it asks once, and there is no value that could answer
    with pretend_gpu(learner, taught, sealed.ftm):
        seen = batch("cuda")
        terms = learner(seen, sealed.outputs(seen, learner.teacher_needs))
        loss = weighted_sum(terms, learner.weights())
    assert {value.device.type for value in (loss, *terms.values())} == {"cuda"}


def test_predictions_and_labels_come_back_to_the_cpu():
    network = create("uhkd/resnet10", num_classes=CLASSES)
    with pretend_gpu(network):
        logits, labels = predict_logits(network, [batch("cuda"), batch("cuda")], torch.device("cuda"))
    assert labels is not None
    assert logits.device.type == labels.device.type == "cpu"
    assert logits.shape == (16, CLASSES) and labels.shape == (16,)


def test_the_pretended_gpu_sees_what_a_real_one_would():
    layer = nn.Linear(2, 2)
    with pretend_gpu(layer):
        with pytest.raises(RuntimeError, match="device"):
            torch.add(layer(torch.ones(1, 2, device="cuda")), torch.ones(1, 2))
        with pytest.raises(DataDependentOutputException):
            layer(torch.ones(1, 2, device="cuda")).sum().item()
