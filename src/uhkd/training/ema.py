"""Exponential moving average of the student's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from uhkd.console import log_info


class ModelEMA:
    """Averages a <- decay * a + (1 - decay) * w after every step, initialized with the first weights of the network.

    Averages parameters and floating-point buffers, so that batch-norm statistics match the averaged weights. Integer buffers,
    which count steps, stay those of the network. With `decay` None every method does nothing.

    Args:
        network: module to average; its tensors must be changed in place only.
        decay: between 0 and 1, exclusive, or None.
    """

    tensors: dict[str, Tensor]  # the averages by the network's names

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        assert decay is None or 0 < decay < 1, decay
        state = {} if decay is None else network.state_dict()
        self._live = {name: value for name, value in state.items() if value.is_floating_point()}
        self.tensors = {name: value.clone() for name, value in self._live.items()}
        self._average = get_ema_multi_avg_fn(decay or 0.0)

    def update(self) -> None:
        """Add the current weights to the averages."""
        if self.tensors:
            self._average(list(self.tensors.values()), list(self._live.values()), 0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy saved averages; other entries are ignored."""
        copy_tensors(tensors, self.tensors)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Use the averages as the network's weights; the trained weights are restored afterwards."""
        trained = {name: value.clone() for name, value in self._live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            copy_tensors(trained, self._live)

    def copy_to_model(self) -> None:
        """Copy the averages into the network."""
        copy_tensors(self.tensors, self._live)


def check_decay(decay: float, steps: int) -> None:
    """Warn if an average over a training of `steps` steps still holds more than a tenth of the first weights."""
    rest = decay**steps
    if rest > 0.1:
        log_info(
            f"warning: ema_decay {decay:g} averages over about {1 / (1 - decay):,.0f} steps, and the training has {steps:,}: "
            f"{rest:.0%} of the saved weights will be the initial ones; use at most --ema-decay {0.01 ** (1 / steps):.3g}"
        )


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy tensors, of any shape, into those of the same names in `target`."""
    for name, value in target.items():
        value.copy_(source[name])
