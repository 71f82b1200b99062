"""Small architectures for 32-px images, built from timm's classes (`uhkd/...`)."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from uhkd.errors import UhkdError

if TYPE_CHECKING:
    import torch.nn


def patch_for(size: tuple[int, int], largest: int, smallest: int) -> int:
    """Return the largest patch (a power of two up to `largest`) that divides both sides into at least `smallest` cells each.

    Raises:
        UhkdError: the image is smaller than 4 px (or `smallest` px) a side.
    """
    patch = largest
    while patch > 1 and (size[0] % patch or size[1] % patch or min(size) // patch < smallest):
        patch //= 2
    if min(size) // patch < min(smallest, 4):
        raise UhkdError(f"images of {size[0]}x{size[1]} px are too small: at least {min(smallest, 4)} px a side needed")
    return patch


def _vit(
    size: tuple[int, int], num_classes: int, dim: int, depth: int, heads: int, **options: Any
) -> "torch.nn.Module":
    from timm.models.vision_transformer import VisionTransformer

    settings = {"patch_size": patch_for(size, 4, 4), "embed_dim": dim, "depth": depth, "num_heads": heads, **options}
    return VisionTransformer(img_size=size, num_classes=num_classes, **settings)


def _mixer(
    size: tuple[int, int], num_classes: int, dim: int, depth: int, residual: bool, **options: Any
) -> "torch.nn.Module":
    from timm.models.mlp_mixer import Affine, MixerBlock, MlpMixer, ResBlock

    settings = {"patch_size": patch_for(size, 4, 4), "embed_dim": dim, "num_blocks": depth}
    if residual:
        settings |= {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4}
    else:
        settings |= {"block_layer": MixerBlock}
    return MlpMixer(num_classes=num_classes, img_size=size, **(settings | options))  # pyright: ignore[reportArgumentType]


def _swin(size: tuple[int, int], num_classes: int, dim: int, **options: Any) -> "torch.nn.Module":
    from timm.models.swin_transformer import SwinTransformer

    settings: dict[str, Any] = {"patch_size": patch_for(size, 2, 16), "embed_dim": dim, "window_size": 4}
    settings |= {"depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.0}
    return SwinTransformer(img_size=size, num_classes=num_classes, **(settings | options))  # pyright: ignore[reportArgumentType]


def _resnet(
    size: tuple[int, int], num_classes: int, width: int, depth: int, stem_stride: int = 1, **options: Any
) -> "torch.nn.Module":
    """`stem_stride`: 1 keeps the full grid of a 32-px image; 2 suits 64 to 96 px at a quarter of the cost."""
    from timm.models.resnet import BasicBlock, ResNet
    from torch import nn

    settings: dict[str, Any] = {"layers": (depth,) * 4, "channels": tuple(width * 2**i for i in range(4))}
    block: Any = BasicBlock  # timm annotates the class as if it were an instance
    model = ResNet(block, num_classes=num_classes, **(settings | options))
    # timm's stem downsamples by four, for 224 px; a 3x3 stem without pooling keeps the full grid of a small image
    stem = model.conv1
    assert isinstance(stem, nn.Conv2d)
    model.conv1 = nn.Conv2d(3, stem.out_channels, 3, stride=stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


VARIANTS: "dict[str, Callable[..., torch.nn.Module]]" = {
    "vit_micro": partial(_vit, dim=96, depth=4, heads=3),
    "vit_tiny": partial(_vit, dim=192, depth=12, heads=3),
    "mixer_micro": partial(_mixer, dim=128, depth=4, residual=False),
    "mixer_small": partial(_mixer, dim=256, depth=8, residual=False),
    "resmlp_micro": partial(_mixer, dim=128, depth=4, residual=True),
    "resmlp_small": partial(_mixer, dim=256, depth=8, residual=True),
    "swin_pico": partial(_swin, dim=48),
    "swin_nano": partial(_swin, dim=64),
    "resnet10": partial(_resnet, width=32, depth=1),
    "resnet18": partial(_resnet, width=64, depth=2),
}
# parameters at 32 px with a head of 1000 classes; stored here so that listing them imports neither torch nor timm
PARAMETERS = {
    "vit_micro": 555_592,
    "vit_tiny": 5_553_832,
    "mixer_micro": 697_704,
    "mixer_small": 4_615_400,
    "resmlp_micro": 682_088,
    "resmlp_small": 4_520_168,
    "swin_pico": 5_496_788,
    "swin_nano": 9_589_156,
    "resnet10": 1_495_656,
    "resnet18": 11_681_832,
}


def build_variant(name: str, *, size: tuple[int, int], num_classes: int, options: dict[str, Any]) -> "torch.nn.Module":
    """Build one of VARIANTS for images of `size` (height, width); `options` override the arguments of its timm class."""
    return VARIANTS[name](size, num_classes, **options)
