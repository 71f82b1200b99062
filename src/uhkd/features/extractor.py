"""TappedModel: a network together with the knowledge of where its signals are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.errors import UhkdError
from uhkd.features.hook_extractor import HookExtractor, hook_reader
from uhkd.features.introspection import device_of, dtype_of, first_tensor, probe_images, side_effect_free
from uhkd.features.outputs import FIELDS, NetworkOutput, OutputShapes
from uhkd.features.selection import Levels
from uhkd.features.timm_extractor import TimmExtractor, timm_reader

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue over ImageNet, for images in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviations."""

# A grid of one or two cells holds its mean and nothing else below the Nyquist frequency.
SMALLEST_GRID = 3


class UnsupportedImageSize(UhkdError):
    """A network cannot process images of the size asked for."""


class FeatureExtractor(nn.Module):
    """Any network as a source of Signals, fed with images in [0,1] that it resizes and normalises for itself.

    `levels` is how many taps to choose (fewer if the network has fewer; 0: none) or which: names, or numbers among the
    network's own taps. `prefix_tokens` fixes the number of leading tokens that are no image cells (None: found out).
    `head=False` says that the module's output is an embedding, not class scores.

    Raises:
        UhkdError: the module cannot process this image size, or has no such taps; the message names the nearest ones.
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
        levels: Levels = 4,
        prefix_tokens: int | None = None,
        head: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(levels, str):
            levels = (levels,)
        if isinstance(levels, int) and levels < 0:
            raise UhkdError(f"levels must be a number of taps >= 0 or a list of their names, found {levels}")
        if min(input_size) < 1:
            raise UhkdError(f"input_size must be two positive numbers of pixels, found {input_size}")
        self.module = module
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.interpolation = interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
        self.probe = None
        self.card: Any = None
        self.notes: list[str] = []
        # Kept in float32 on the module's device and out of the state: they belong to the card, not to the weights.
        device = device_of(module)
        self.register_buffer("_mean", torch.tensor(self.mean, device=device).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std, device=device).view(1, -1, 1, 1), persistent=False)
        with side_effect_free(module):
            self._reader, self.shapes = self._measure(levels, prefix_tokens, head)
        small = [n for n, s in zip(self.levels, self.shapes.maps, strict=True) if min(s[1:]) < SMALLEST_GRID]
        if small:
            height, width = self.input_size
            self.notes.append(
                f"at {height}x{width} px the maps of {', '.join(small)} are smaller than "
                f"{SMALLEST_GRID}x{SMALLEST_GRID}: too small for spectra"
            )

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the taps, shallow to deep."""
        return self._reader.levels

    def forward(self, image: Float[Tensor, "b 3 h w"], want: frozenset[str] = frozenset({"logits"})) -> NetworkOutput:
        """The wanted signals of images in [0,1] of any size, all from one pass of the module.

        Raises:
            UhkdError: a wanted signal does not exist here.
        """
        self._check(want)
        from_module = want if self.probe is None or "logits" not in want else want - {"logits"} | {"embedding"}
        signals = self._reader.read(self.module, self._prepare(image), from_module)
        if self.probe is None or "logits" not in want:
            return signals
        assert signals.embedding is not None
        embedding = signals.embedding if "embedding" in want else None
        return NetworkOutput(logits=self.probe(signals.embedding), maps=signals.maps, embedding=embedding)

    def plain(self, image: Float[Tensor, "b 3 h w"]) -> Tensor:
        """What the untouched module says of the prepared images: its own logits (B,K)."""
        output = first_tensor(self.module(self._prepare(image)))
        assert output is not None
        return output

    def set_probe(self, linear: nn.Linear) -> None:
        """A linear probe on the embedding replaces the head: from now on logits = linear(embedding).

        Raises:
            UhkdError: the network has no embedding, or one of another length.
        """
        if self.shapes.embedding is None:
            raise UhkdError(f"{type(self.module).__name__} has no pooled embedding to put a linear probe on")
        if linear.in_features != self.shapes.embedding:
            raise UhkdError(f"the probe takes {linear.in_features} numbers, the embedding has {self.shapes.embedding}")
        self.probe = linear
        self.shapes = replace(self.shapes, logits=linear.out_features)

    def spectral_levels(self, at_least: int = 2) -> tuple[str, ...]:
        """Names of the taps whose grid is large enough for spectra (3x3 or more).

        Raises:
            UhkdError: fewer than `at_least` of them; the message lists every grid.
        """
        grids = {name: shape[1:] for name, shape in zip(self.levels, self.shapes.maps, strict=True)}
        good = tuple(name for name, grid in grids.items() if min(grid) >= SMALLEST_GRID)
        if len(good) < at_least:
            listing = ", ".join(f"{name} {grid[0]}x{grid[1]}" for name, grid in grids.items()) or "none"
            height, width = self.input_size
            raise UhkdError(
                f"maps of {type(self.module).__name__} at {height}x{width} px are too small for spectra: "
                f"{at_least} levels of at least 3x3 needed, found {listing}; use larger images or shallower taps"
            )
        return good

    def _check(self, want: frozenset[str]) -> None:
        owner = type(self.module).__name__
        unknown = sorted(want - set(FIELDS))
        if unknown:
            raise UhkdError(f"unknown signals {', '.join(unknown)}: there are {', '.join(FIELDS)}")
        if "spectra" in want:
            raise UhkdError("a network gives no spectra: an FTM makes them from its maps; ask for maps")
        if "embedding" in want and self.shapes.embedding is None:
            raise UhkdError(f"{owner} has no embedding: no vector (B,D) enters a last linear layer")
        if "logits" in want and self.shapes.logits is None:
            raise UhkdError(
                f"{owner} has no logits: it ends without class scores; set a probe or ask for its embedding"
            )
        if "maps" in want and not self.shapes.maps:
            raise UhkdError(f"{owner} was made without taps (levels=0), so it gives no maps")

    def _prepare(self, image: Tensor) -> Tensor:
        """Images of the module's own size, normalisation and type."""
        if not image.is_floating_point():
            raise UhkdError(f"images must be floating numbers in [0,1], found {image.dtype}")
        # pixels keep their precision: mixed precision begins in the network, and resizing knows no bfloat16 on a CPU
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if tuple(image.shape[-2:]) != self.input_size:
                image = F.interpolate(image, self.input_size, mode=self.interpolation, antialias=True).clamp(0.0, 1.0)
            mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
            return ((image - mean) / std).to(dtype_of(self.module))

    def _measure(
        self, levels: Levels, prefix_tokens: int | None, head: bool
    ) -> tuple[TimmExtractor | HookExtractor, OutputShapes]:
        """The first reader that agrees with the plain forward, and the shapes it gives."""
        image = self._prepare(probe_images(self.input_size, device_of(self.module)))
        owner, (height, width) = type(self.module).__name__, self.input_size
        try:
            plain = first_tensor(self.module(image))
        except Exception as error:  # whatever a foreign forward raises, the user's question is the same
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UnsupportedImageSize(
                f"{owner} cannot process images of {height}x{width} px: {reason.rstrip('.')}"
            ) from error
        reader: TimmExtractor | HookExtractor | None = None
        if prefix_tokens is None:
            try:
                reader = timm_reader(self.module, image, plain, levels, head=head)
            except ValueError:  # not one of timm's taps: it may still name a submodule
                reader = None
        if reader is None:
            reader = hook_reader(self.module, image, levels, prefix_tokens=prefix_tokens, head=head)
        has = {"maps": bool(reader.levels), "logits": reader.has_logits, "embedding": reader.has_embedding}
        signals = reader.read(self.module, image, frozenset(name for name, there in has.items() if there))
        maps = tuple((int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in signals.maps or ())
        embedding = None if signals.embedding is None else int(signals.embedding.shape[1])
        classes = None if signals.logits is None else int(signals.logits.shape[1])
        return reader, OutputShapes(maps, embedding, classes, reader.tokens)
