"""OFA: one for all (Hao et al. 2023, arXiv 2310.19444, section 3). Exits project feature maps to logits."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import (
    NOTHING,
    DistillationLoss,
    Requirements,
    at_least_float32,
    check_positive,
    hard_labels,
    require_batch,
    teacher_shapes,
)

Head = Literal["auto", "conv", "tokens"]
_GRID = 7  # tokens are merged while the grid is at least twice this


def enhanced_loss(
    student: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    label: Int[Tensor, " b"],
    eps: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the mean over the batch of -sum_k [(q_k + 1[k = label])^eps - 1[k = label]] log p_k, in at least float32.

    q, p: softened class probabilities of teacher and student. With eps = 1 it is their cross-entropy, minimal where both are
    equal; a larger eps enhances the target class of a confident teacher.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    # not F.one_hot, which reads the labels on the host and so waits for the GPU
    target = (label[:, None] == torch.arange(student.shape[1], device=label.device)).to(teacher.dtype)
    shares = (F.softmax(teacher / temperature, 1) + target) ** eps - target
    return -(shares * F.log_softmax(student / temperature, 1)).sum(1).mean()


class OFA(DistillationLoss):
    """Give each stage of the student an exit to logits, and train the exits on the teacher's logits by `enhanced_loss`.

    Exits follow the authors' code. For maps of a CNN: one separable convolution with stride 2 for each following stage,
    pooling and a linear layer. For tokens: patch merging to a grid near 7 x 7, transformer blocks, the mean token and a
    linear layer. Differences: the mean token always replaces the class token, which is no part of a map; odd grids are
    zero-padded before merging; a level is projected to the width of the embedding if its width differs.

    Args:
        eps: exponent >= 1 for the exits and the final logits, or one for each exit and a last one for the logits.
        temperature: T > 0, 1 in all tables; the loss has no factor T^2.
        head: kind of the exits; "auto": "tokens" for a network that computes on tokens or channels-last maps, else "conv".

    Raises:
        UhkdError: for settings out of range, or a student without feature maps; in training, for images without labels, or
            for a single image (convolutional exits).
    """

    default_weights: ClassVar = {"stages": 1.0, "logits": 1.0}
    main_term = "stages"
    is_logit_method = True
    needs_labels = True
    tunable = ("eps", (1.2, 1.5))

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        eps: float | tuple[float, ...] = 1.0,
        temperature: float = 1.0,
        head: Head = "auto",
    ) -> None:
        super().__init__(weights)
        maps, teacher = shapes.student.maps, teacher_shapes(shapes, "ofa")
        check_positive(temperature, "temperature")
        self.temperature = temperature
        self.eps = eps if isinstance(eps, tuple) else (float(eps),) * (len(maps) + 1)
        if len(self.eps) != len(maps) + 1 or min(self.eps) < 1:
            raise UhkdError(
                f"eps must be >= 1: one number, or {len(maps)} for the exits and one for the logits; got {eps}"
            )
        if self.is_active("stages"):
            if not maps:
                raise UhkdError("ofa puts exits on feature maps, and the student has none")
            self.head = ("tokens" if shapes.student.tokens else "conv") if head == "auto" else head
            width = shapes.student.embedding or maps[-1][0]
            build = _conv_exit if self.head == "conv" else _token_exit
            # the authors' code takes the wider embedding of both networks for convolutions, the student's for tokens
            inner = max(width, teacher.embedding or 0) if self.head == "conv" else width
            self.exits = nn.ModuleList(
                build(shape, len(maps) - 1 - i, inner, shapes.num_classes) for i, shape in enumerate(maps)
            )
            self.exits.apply(_initialise)
        fields = {"stages": "maps", "logits": "logits"}
        student = frozenset(field for term, field in fields.items() if self.is_active(term))
        self.needs = Requirements(student, frozenset({"logits"}) if student else NOTHING)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the active terms of {"stages": sum of the exits' losses, "logits": loss of the final logits}."""
        if not self.needs.student:
            return {}
        label, terms = hard_labels(batch, "ofa"), {}
        assert teacher.logits is not None

        def loss(logits: Tensor, eps: float) -> Tensor:
            assert teacher.logits is not None
            return enhanced_loss(logits, teacher.logits, label, eps, self.temperature)

        if self.is_active("stages"):
            assert student.maps is not None
            if self.training and self.head == "conv":
                require_batch(len(label), "ofa", "has batch norm in its exits")
            levels = zip(self.exits, student.maps, self.eps[:-1], strict=True)
            terms["stages"] = torch.stack([loss(exit_(x), eps) for exit_, x, eps in levels]).sum()
        if self.is_active("logits"):
            assert student.logits is not None
            terms["logits"] = loss(student.logits, self.eps[-1])
        return terms


def _conv_exit(shape: tuple[int, int, int], following: int, width: int, classes: int) -> nn.Module:
    """Map (B,C,H,W) -> logits (B,K): a separable convolution per following stage (to 2C, at last `width`), pool, linear."""
    channels = shape[0]
    layers: list[nn.Module] = []
    for i in range(following):
        out = width if i == following - 1 else 2 * channels
        layers.append(_separable(channels, out))
        channels = out
    if not layers:
        layers.append(nn.Conv2d(channels, width, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _separable(channels: int, out: int) -> nn.Sequential:
    """Two 3x3 depthwise convolutions, each followed by a 1x1 convolution, batch norm and ReLU; the grid is halved."""

    def half(to: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, to, 1, bias=False), nn.BatchNorm2d(to), nn.ReLU()]

    return nn.Sequential(*half(channels, 2), *half(out, 1))


def _token_exit(shape: tuple[int, int, int], following: int, width: int, classes: int) -> nn.Module:
    """Map (B,C,H,W) -> logits (B,K): patch merging, a transformer block per following stage (>= 1), mean token, linear."""
    channels, *grid = shape
    layers: list[nn.Module] = []
    while min(grid) >= 2 * _GRID:
        grid = [(n + 1) // 2 for n in grid]
        last = min(grid) < 2 * _GRID
        layers.append(_PatchMerging(channels, width, nn.Identity() if last and layers else nn.GELU()))
        channels = width
    if channels != width:
        layers.append(_ChannelMix(channels, width))
    heads = next(n for n in (4, 2, 1) if width % n == 0)
    # LayerNorm with torch's epsilon, as in the timm version of the authors; newer versions have another
    blocks = [Block(dim=width, num_heads=heads, norm_layer=nn.LayerNorm) for _ in range(max(following, 1))]
    return nn.Sequential(*layers, _Tokens(), *blocks, _MeanToken(), nn.Linear(width, classes))


class _PatchMerging(nn.Module):
    """Merge 2x2 neighbours, as in Swin: (B,C,H,W) -> (B,D,ceil(H/2),ceil(W/2))."""

    def __init__(self, channels: int, out: int, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.mix, self.act = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, out, bias=False), act

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)).movedim(1, 3)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.act(self.mix(self.norm(torch.cat(corners, 3)))).movedim(3, 1)


class _ChannelMix(nn.Linear):
    """A linear layer over the channels of (B,C,H,W)."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return super().forward(input.movedim(1, 3)).movedim(3, 1)


class _Tokens(nn.Module):
    """(B,C,H,W) -> (B,H*W,C)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        return x.flatten(2).transpose(1, 2)


class _MeanToken(nn.Module):
    """(B,N,C) -> (B,C)."""

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
        return x.mean(1)


def _initialise(module: Any) -> None:
    """Initialise as in the authors' code."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
