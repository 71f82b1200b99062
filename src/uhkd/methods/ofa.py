"""OFA: one for all (Hao et al. 2023, arXiv 2310.19444, section 3): exits project features into the space of logits."""

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
_GRID = 7  # tokens are merged while twice this grid is left


def enhanced_loss(
    student: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    label: Int[Tensor, " b"],
    eps: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Mean over the batch of -sum_k [(q_k + 1[k = label])^eps - 1[k = label]] log p_k, in at least float32.

    q, p: softened classes of teacher and student. With eps = 1 the cross-entropy between them, at its minimum where both
    agree; a larger eps enhances the target class of a confident teacher.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    # not F.one_hot, which looks at the labels and makes the host wait for them
    target = (label[:, None] == torch.arange(student.shape[1], device=label.device)).to(teacher.dtype)
    shares = (F.softmax(teacher / temperature, 1) + target) ** eps - target
    return -(shares * F.log_softmax(student / temperature, 1)).sum(1).mean()


class OFA(DistillationLoss):
    """The student's stages each get an exit to logits, and every exit learns from the teacher's logits by `enhanced_loss`.

    Exits as in the authors' code: for maps of a CNN, separable convolutions that halve the grid once for each stage that
    follows, then pooling and a linear layer; for tokens, patch merging to a grid near 7 x 7, transformer blocks, their mean
    and a linear layer; `head` "auto" tells them apart by how the network itself holds its maps. Class tokens are no part of
    maps, so tokens always meet in their mean, where theirs reads the class token; odd grids are padded by zeros before merging,
    and a level whose width is not the embedding's is projected to it.

    Args:
        eps: exponent >= 1 for exits and final logits alike, or one for each exit and the last for the logits.
        temperature: T > 0, 1 in all tables; the loss has no factor T^2.
        head: the kind of exit.

    Raises:
        UhkdError: for settings out of range, or a student without taps; in training, for images without labels or (exits of
            convolutions) a single image.
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
                raise UhkdError("ofa puts exits on feature maps, and found no taps in the student")
            self.head = ("tokens" if shapes.student.tokens else "conv") if head == "auto" else head
            width = shapes.student.embedding or maps[-1][0]
            build = _conv_exit if self.head == "conv" else _token_exit
            # theirs takes the wider of both sides for convolutions, the student's for tokens
            inner = max(width, teacher.embedding or 0) if self.head == "conv" else width
            self.exits = nn.ModuleList(
                build(shape, len(maps) - 1 - i, inner, shapes.num_classes) for i, shape in enumerate(maps)
            )
            self.exits.apply(_initialise)
        wanted = any(map(self.is_active, self.weights))
        logits = frozenset({"logits"}) if wanted else NOTHING
        needed = (logits if self.is_active("logits") else NOTHING) | ({"maps"} if self.is_active("stages") else NOTHING)
        self.needs = Requirements(needed, logits)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """{"stages": sum of the exits' losses, "logits": that of the final logits}, those whose weight is not 0."""
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
            exits = [exit_(x) for exit_, x in zip(self.exits, student.maps, strict=True)]
            terms["stages"] = torch.stack([loss(x, eps) for x, eps in zip(exits, self.eps, strict=False)]).sum()
        if self.is_active("logits"):
            assert student.logits is not None
            terms["logits"] = loss(student.logits, self.eps[-1])
        return terms


def _conv_exit(shape: tuple[int, int, int], following: int, width: int, classes: int) -> nn.Module:
    """Map (B,C,H,W) -> logits: one separable convolution a following stage (channels doubled, at last `width`), pool, linear."""
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
    """Two depthwise 3x3 convolutions, each mixed by a 1x1 one, with batch norm and ReLU; halves the grid."""

    def half(to: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, to, 1, bias=False), nn.BatchNorm2d(to), nn.ReLU()]

    return nn.Sequential(*half(channels, 2), *half(out, 1))


def _token_exit(shape: tuple[int, int, int], following: int, width: int, classes: int) -> nn.Module:
    """Map (B,C,H,W) -> logits: patch merging, one transformer block a following stage (at least one), mean of tokens, linear."""
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
    # LayerNorm with torch's epsilon, as in the timm that the authors pin; newer ones have another
    blocks = [Block(dim=width, num_heads=heads, norm_layer=nn.LayerNorm) for _ in range(max(following, 1))]
    return nn.Sequential(*layers, _Tokens(), *blocks, _MeanToken(), nn.Linear(width, classes))


class _PatchMerging(nn.Module):
    """Four neighbours in one: (B,C,H,W) -> (B,D,ceil(H/2),ceil(W/2)), as in Swin."""

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
    """The authors' first weights."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
