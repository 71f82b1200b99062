"""Default levels of networks of unusual shapes: one level a stage, four by depth where two grids repeat equal blocks."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from uhkd.models import wrap_module


class Block(nn.Sequential):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


class Stage(nn.Module):
    """A block of its own class, so that containers are not taken for blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = Block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Branches(nn.Module):
    """Three parallel branches, concatenated; the last is a chain of two blocks."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.one, self.two = Stage(before), Stage(before)
        self.three = nn.Sequential(Stage(before), Stage(before))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.two(x), self.three(x)], 1)


class Head(nn.Module):
    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean((2, 3)))


def two_grids(blocks: int) -> nn.Module:
    chains = [nn.Sequential(*(Stage(8) for _ in range(blocks))) for _ in range(2)]
    return Head(nn.Sequential(Block(3, 8, 2), chains[0], Block(8, 8, 2), chains[1]), 8)


def vgg() -> nn.Module:
    widths = (3, 8, 16, 16, 16)
    return Head(nn.Sequential(*(nn.Sequential(Block(a, b), nn.MaxPool2d(2)) for a, b in pairwise(widths))), 16)


def branches() -> nn.Module:
    return Head(nn.Sequential(Block(3, 4, 2), Branches(4), nn.MaxPool2d(2), Branches(12)), 36)


class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 8, 2)
        self.right, self.left = nn.Sequential(Stage(8), Stage(8)), nn.Sequential(Stage(8), Stage(8))
        self.right2, self.left2, self.fc = Block(8, 8, 2), Block(8, 8, 2), nn.Linear(8, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.fc((self.right2(self.right(x)) + self.left2(self.left(x))).mean((2, 3)))


NETWORKS = {
    "equal blocks on two grids": (
        lambda: two_grids(6),
        ("body.1.2", "body.1.5", "body.3.2", "body.3.5"),
        [16, 16, 8, 8],
    ),
    "few equal blocks on two grids": (lambda: two_grids(1), ("body.1", "body"), [16, 8]),
    "a pooling after each stage": (vgg, ("body.0.0", "body.1.0", "body.2.0", "body.3.0"), [32, 16, 8, 4]),
    "parallel branches": (branches, ("body.1", "body"), [16, 8]),
    "two networks side by side": (SideBySide, ("left", "left2"), [16, 8]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_default_levels(name: str):
    make, levels, sides = NETWORKS[name]
    network = wrap_module(make(), num_classes=10, image_size=32)
    assert [shape[1] for shape in network.shapes.maps or ()] == sides
    assert network.levels == levels


@pytest.mark.parametrize("name", NETWORKS)
def test_a_level_is_the_output_of_the_module_of_its_name(name: str):
    make = NETWORKS[name][0]
    network = wrap_module(make(), num_classes=10, image_size=32).eval()
    outputs: dict[str, Tensor] = {}
    for level in network.levels:
        layer = network.module.get_submodule(level)
        layer.register_forward_hook(lambda _m, _i, out, level=level: outputs.update({level: out}))
    maps = network(torch.rand(2, 3, 32, 32), frozenset({"maps"})).maps
    assert maps is not None
    for level, given in zip(network.levels, maps, strict=True):
        assert torch.equal(outputs[level], given)


@pytest.mark.parametrize(
    ("make", "size", "last"),
    [
        (torchvision.models.vgg11_bn, 64, "features.27"),
        (torchvision.models.alexnet, 96, "features.11"),
        (lambda **words: torchvision.models.inception_v3(init_weights=False, **words), 96, "Mixed_6e"),
    ],
)
def test_the_last_level_is_no_pooled_copy_and_no_branch(make, size: int, last: str):
    network = wrap_module(make(num_classes=10), num_classes=10, image_size=size)
    assert network.levels[-1] == last
    sides = [shape[1] for shape in network.shapes.maps or ()]
    assert sides == sorted(set(sides), reverse=True)
