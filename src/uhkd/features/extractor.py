"""FeatureExtractor: a network together with the layers that give its outputs."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features.hook_extractor import HookExtractor, build_hook_extractor
from uhkd.features.introspection import device_of, dtype_of, first_tensor, luminance, probe_images, side_effect_free
from uhkd.features.output_checks import check_finite_output, probabilities_note
from uhkd.features.outputs import FIELDS, NetworkOutput, OutputShapes
from uhkd.features.selection import LayerSelection
from uhkd.features.timm_extractor import TimmExtractor, build_timm_extractor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue over ImageNet, for images in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue over ImageNet."""

_OTHER_CHANNELS = re.compile(r"expected input\[2, 3, .*\] to have (\d+) channels")
# An axis of one or two cells has no frequency between 0 and Nyquist.
SMALLEST_GRID = 3


class UnsupportedImageSize(UhkdError):
    """A network cannot process images of the requested size."""


class FeatureExtractor(nn.Module):
    """Any network as a source of `NetworkOutput`s. It resizes and normalises its input images, which are in [0,1].

    A network that takes one channel (`grey`) gets the `luminance` of the normalised images.

    Args:
        module: the network.
        input_size: (height, width) in pixels that the network gets.
        mean: normalisation per channel.
        std: likewise.
        interpolation: "bilinear" or "bicubic", for resizing; others become "bicubic".
        levels: number of layers to choose (fewer if the network has fewer; 0: none), or the layers: names, or indices.
        head: whether the output of the module is class scores; False: an embedding.

    Raises:
        UhkdError: if the module cannot process this image size, or has no such layers; the message lists the nearest.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shapes: OutputShapes
    probe: nn.Linear | None

    def __init__(
        self,
        module: nn.Module,
        *,
        input_size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bicubic",
        levels: LayerSelection = 4,
        head: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(levels, str):
            levels = (levels,)
        if isinstance(levels, int) and levels < 0:
            raise UhkdError(f"levels must be a number of layers >= 0 or a list of their names, found {levels}")
        if min(input_size) < 1:
            raise UhkdError(f"input_size must be two positive numbers of pixels, found {input_size}")
        self.module = module
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.interpolation = interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
        self.probe = None
        self.grey = False
        self.config: Any = None
        self.notes: list[str] = []
        self.frozen_norms: tuple[nn.Module, ...] = ()
        # Buffers in float32 on the module's device; not in the state dict: they are part of the config, not of the weights.
        device = device_of(module)
        self.register_buffer("_mean", torch.tensor(self.mean, device=device).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std, device=device).view(1, -1, 1, 1), persistent=False)
        with side_effect_free(module):
            self._reader, self.shapes = self._measure(levels, head)
        if self.grey:
            self.notes.append(f"{type(module).__name__} takes one channel: it gets the luminance of the images")
        small = [n for n, s in zip(self.levels, self.shapes.maps, strict=True) if min(s[1:]) < SMALLEST_GRID]
        if isinstance(levels, int) and levels and not self.levels:
            self.notes.append(
                f"{type(module).__name__} has no feature maps (no layer gives (B,C,H,W) or tokens on a grid): only methods that "
                "read logits or embeddings can train it"
            )
        if small:
            height, width = self.input_size
            self.notes.append(
                f"at {height}x{width} px the maps of {', '.join(small)} are smaller than "
                f"{SMALLEST_GRID}x{SMALLEST_GRID}: methods on spectra match only their means"
            )

    @property
    def reader(self) -> TimmExtractor | HookExtractor:
        """Return what reads the outputs of the module."""
        return self._reader

    @property
    def levels(self) -> tuple[str, ...]:
        """Return the names of the layers, shallow to deep."""
        return self._reader.levels

    def forward(self, image: Float[Tensor, "b 3 h w"], fields: frozenset[str] = frozenset({"logits"})) -> NetworkOutput:
        """Return the requested fields for images in [0,1] of any size, all from one forward pass of the module.

        Raises:
            UhkdError: for a field that the network does not have.
        """
        self._check_fields(fields)
        probe = self.probe if "logits" in fields else None
        requested = fields if probe is None else fields - {"logits"} | {"embedding"}
        output = self._reader.read(self.module, self._prepare(image), requested)
        if probe is None:
            return output
        assert output.embedding is not None
        embedding = output.embedding if "embedding" in fields else None
        return NetworkOutput(logits=probe(output.embedding), maps=output.maps, embedding=embedding)

    def plain(self, image: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Return the module's output (B,K) for the prepared images, without hooks or probe."""
        output = first_tensor(self.module(self._prepare(image)))
        assert output is not None
        return output

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; `frozen_norms` stay in eval mode."""
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def keep_frozen_norms(self) -> None:
        """Keep the running statistics of batch norms that are frozen now: in eval mode in a module that is in training mode, or
        in a layer without trainable parameters.
        """
        own = [part for part in self.module.modules() if self.module.training and not part.training]
        own += [part for part in self.module.modules() if _is_frozen(part)]
        norms = {id(norm): norm for part in own for norm in part.modules() if isinstance(norm, _NormBase)}
        self.frozen_norms = tuple(norms.values())

    def set_probe(self, linear: nn.Linear) -> None:
        """Replace the head by a linear probe: logits = linear(embedding).

        Raises:
            UhkdError: if the network has no embedding, or one of another width.
        """
        if self.shapes.embedding is None:
            raise UhkdError(f"{type(self.module).__name__} has no pooled embedding to put a linear probe on")
        if linear.in_features != self.shapes.embedding:
            raise UhkdError(f"the probe takes {linear.in_features} numbers, the embedding has {self.shapes.embedding}")
        self.probe = linear
        self.shapes = replace(self.shapes, logits=linear.out_features)

    def _check_fields(self, fields: frozenset[str]) -> None:
        owner = type(self.module).__name__
        unknown = sorted(fields - set(FIELDS))
        if unknown:
            raise UhkdError(f"unknown fields {', '.join(unknown)} (known: {', '.join(FIELDS)})")
        if "spectra" in fields:
            raise UhkdError("a network has no spectra: an FTM computes them from its maps; request maps")
        if "embedding" in fields and self.shapes.embedding is None:
            raise UhkdError(f"{owner} has no embedding: no vector (B,D) enters a last linear layer")
        if "logits" in fields and self.shapes.logits is None:
            raise UhkdError(
                f"{owner} has no logits: its output has no class scores; set a probe or request its embedding"
            )
        if "maps" in fields and not self.shapes.maps:
            raise UhkdError(f"{owner} was built without layers to read (levels=0), so it has no maps")

    def _prepare(self, image: Tensor) -> Tensor:
        """Return images of the module's size, normalisation and type."""
        if not image.is_floating_point():
            raise UhkdError(f"images must be floating numbers in [0,1], found {image.dtype}")
        # no autocast: pixels keep their precision, and resizing does not support bfloat16 on a CPU
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if tuple(image.shape[-2:]) != self.input_size:
                image = F.interpolate(image, self.input_size, mode=self.interpolation, antialias=True).clamp(0.0, 1.0)
            mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
            image = (image - mean) / std
            return (luminance(image) if self.grey else image).to(dtype_of(self.module))

    def _measure(self, levels: LayerSelection, head: bool) -> tuple[TimmExtractor | HookExtractor, OutputShapes]:
        """Return the first extractor whose logits equal those of the forward pass, and the output shapes."""
        owner, (height, width) = type(self.module).__name__, self.input_size
        try:
            image = self._prepare(probe_images(self.input_size, device_of(self.module)))
            plain = first_tensor(self.module(image))
        except Exception as error:  # any failure of another library's code has the same meaning for the user
            if not self.grey:
                self.grey = True
                with suppress(UnsupportedImageSize):
                    return self._measure(levels, head)
                self.grey = False
            if channels := _OTHER_CHANNELS.search(str(error)):
                raise UhkdError(
                    f"{owner} takes images of {channels[1]} channels, and images are read as RGB or grey: build it with three "
                    "input channels (timm: in_chans=3) or one"
                ) from error
            reason = first_line(error).rstrip(".")
            raise UnsupportedImageSize(f"{owner} cannot process images of {height}x{width} px: {reason}") from error
        check_finite_output(plain, owner)
        try:
            reader = build_timm_extractor(self.module, image, plain, levels, head=head)
        except UhkdError:  # not one of timm's layers, but it can be another submodule
            reader = None
        if reader is None:
            reader = build_hook_extractor(self.module, image, levels, head=head)
        available = {"maps": bool(reader.levels), "logits": reader.has_logits, "embedding": reader.has_embedding}
        output = reader.read(self.module, image, frozenset(field for field, has in available.items() if has))
        if output.logits is not None and (note := probabilities_note(output.logits, self.module)):
            self.notes.append(note)
        maps = tuple((int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in output.maps or ())
        embedding = None if output.embedding is None else int(output.embedding.shape[1])
        classes = None if output.logits is None else int(output.logits.shape[1])
        return reader, OutputShapes(maps, embedding, classes, reader.tokens)


def _is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters, none of them trainable."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
