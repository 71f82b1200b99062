"""An exponential moving average of the student's weights, kept beside them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEMA:
    """a <- decay * a + (1 - decay) * w after every step, from the network's first weights on.

    Parameters and floating buffers alike, so that batch-norm statistics go with the weights; what counts steps stays the
    network's own. Layers of a method are not averaged: they are thrown away. Without a decay there is nothing to keep, and
    every method does nothing.

    Args:
        network: whose tensors are followed, and never replaced by others.
        decay: above 0 and below 1, or None.
    """

    tensors: dict[str, Tensor]  # the averages by the network's names

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        assert decay is None or 0 < decay < 1, decay
        state = {} if decay is None else network.state_dict()
        self._live = {name: value for name, value in state.items() if value.is_floating_point()}
        self.tensors = {name: value.clone() for name, value in self._live.items()}
        self._towards = get_ema_multi_avg_fn(decay or 0.0)

    def update(self) -> None:
        """Take in the weights of one more step."""
        if self.tensors:
            self._towards(list(self.tensors.values()), list(self._live.values()), 0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved averages; other entries are left alone."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """The network with averaged weights; its own come back afterwards."""
        held = {name: value.clone() for name, value in self._live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            _copy(held, self._live)

    def copy_to_model(self) -> None:
        """Leave the averages in the network for good."""
        _copy(self.tensors, self._live)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
