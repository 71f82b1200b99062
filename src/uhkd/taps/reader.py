"""What a way of reading signals off a module must offer."""

from typing import Protocol

from torch import Tensor, nn

from uhkd.taps.signals import Signals


class Reader(Protocol):
    """Reads the asked signals off one forward pass of a module; knows names, not weights."""

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the taps, shallow to deep."""
        ...

    @property
    def has_logits(self) -> bool:
        """Whether the module ends in class scores."""
        ...

    @property
    def has_embedding(self) -> bool:
        """Whether there is one vector per image before the classifier."""
        ...

    def read(self, module: nn.Module, image: Tensor, want: frozenset[str]) -> Signals:
        """Signals of a prepared image in one pass of the module."""
        ...
