"""A step of every method on tiny networks; run as a program, every method is compiled and must not break its graph."""

import copy
from typing import Any

import torch
from torch import Tensor

from uhkd.data import Batch
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods import build_losses, method_names
from uhkd.models import create
from uhkd.training.learner import StudentWithLosses
from uhkd.training.teacher import Teacher, calibrate

CLASSES, IMAGES = 5, 100
SETTINGS: dict[str, dict[str, Any]] = {"crd": {"negatives": 16}}
OTHER_FORMS: list[tuple[str, dict[str, Any]]] = [
    ("uhkd", {"form": "log-amplitude"}),
    ("uhkd", {"channels": 8}),
    ("uhkd", {"fam": "mlp"}),
    ("uhkd", {"fam": "rotation"}),
    ("uhkd", {"radius": 3}),
    ("ofa", {"head": "conv"}),
    ("ofa", {"head": "tokens"}),
]
CASES = [(name, SETTINGS.get(name, {})) for name in method_names()] + OTHER_FORMS


def assemble(
    method: str, settings: dict[str, Any], weights: dict[str, float] | None = None
) -> tuple[StudentWithLosses, Teacher, Batch]:
    """A student of tokens, a CNN that teaches it, and a batch, as the engine puts them together."""
    torch.manual_seed(0)
    student, network = (
        create(f"uhkd/{name}", num_classes=CLASSES, image_size=16) for name in ("vit_micro", "resnet10")
    )
    distillers = build_losses(method, PairShapes(student.shapes, network.shapes, CLASSES, IMAGES), settings, weights)
    target = next((d.needs.target for d in distillers.values() if d.needs.target is not None), None)
    teacher = Teacher(network, target)
    image = torch.rand(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    label = torch.arange(4)
    batch = Batch(image, torch.eye(CLASSES)[label], label, torch.arange(4))
    if target is not None:
        calibrate(teacher, [batch], torch.device("cpu"))
    return StudentWithLosses(student, distillers).train().choose_memory_format(), teacher, batch


def apart(said: NetworkOutput) -> NetworkOutput:
    """The same numbers as leaves, as a graph of its own takes them."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_()

    fields = (tuple(map(leaf, x)) if isinstance(x, tuple) else x if x is None else leaf(x) for x in said)
    return NetworkOutput(*fields)


def check_compiled(method: str, settings: dict[str, Any]) -> None:
    """The compiled forward of a training step gives the same terms, and its graph holds all of it."""
    learner, teacher, batch = assemble(method, settings)
    said = teacher.outputs(batch, learner.teacher_needs)
    heard = apart(learner.student(batch.image, learner.student_needs | {"logits"}))
    distiller = learner.distillers[method]
    torch._dynamo.reset()
    torch.manual_seed(1)
    plain = copy.deepcopy(distiller)(heard, said, batch)
    torch.manual_seed(1)
    compiled = torch.compile(distiller, fullgraph=True, backend="eager")(heard, said, batch)
    torch.testing.assert_close(compiled, plain)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        try:
            check_compiled(*case)
        except Exception as error:  # dynamo's errors have no common base
            print(f"{case}: {error}")
