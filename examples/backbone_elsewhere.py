"""A backbone distilled without labels, in a detector and in a segmenter of torchvision: plain weights, loaded by name.

    uhkd distill --teacher timm/vit_small_patch14_reg4_dinov2.lvd142m --teacher-options img_size=224 \
        --student torchvision/resnet18 --data path/to/images --unlabelled --method uhkd+rkd --out runs/backbone
    python examples/backbone_elsewhere.py runs/backbone
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation.fcn import FCN, FCNHead

CHANNELS = [64, 128, 256, 512]  # of resnet18's four stages


def body(run: Path) -> nn.Module:
    """torchvision's own resnet18 with the weights of a run of `--student torchvision/resnet18`; its classifier stays new."""
    network = resnet18(weights=None)
    missing, unexpected = network.load_state_dict(load_file(run / "model.safetensors"), strict=False)
    assert not unexpected and all(name.startswith("fc.") for name in missing), (missing, unexpected)
    return network


def detector(run: Path, num_classes: int, size: int = 800) -> FasterRCNN:
    """Faster R-CNN on a feature pyramid; class 0 is the background. size: pixels of the shorter side."""
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body(run), stages, CHANNELS, out_channels=256)
    return FasterRCNN(backbone, num_classes, min_size=size, max_size=2 * size)


def segmenter(run: Path, num_classes: int) -> FCN:
    """A fully convolutional network: {"out": (B, num_classes, H, W)}."""
    backbone = IntermediateLayerGetter(body(run), {"layer4": "out"})
    return FCN(backbone, FCNHead(CHANNELS[-1], num_classes))


def detection_step(model: FasterRCNN, images: list[Tensor], boxes: list[dict[str, Tensor]]) -> Tensor:
    """The loss of one training step: the sum of its four terms."""
    return torch.stack(list(model(images, boxes).values())).sum()


def segmentation_step(model: FCN, images: Tensor, masks: Tensor) -> Tensor:
    """The loss of one training step: cross-entropy of every pixel."""
    return nn.functional.cross_entropy(model(images)["out"], masks)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    image, box = (
        torch.rand(3, 128, 128),
        {"boxes": torch.tensor([[16.0, 16.0, 96.0, 96.0]]), "labels": torch.tensor([1])},
    )
    loss = detection_step(detector(run, num_classes=2, size=128).train(), [image, image], [box, box])
    print(f"detection loss of random images {loss.item():.3f}")
    loss = segmentation_step(
        segmenter(run, num_classes=3).train(), torch.stack([image, image]), torch.ones(2, 128, 128).long()
    )
    print(f"segmentation loss of random images {loss.item():.3f}")
