"""Looking at a network without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PROBE_BATCH = 2  # two images, so that the batch axis can be told from an axis of length one


@contextmanager
def side_effect_free(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; mode of every submodule, buffers and random state are as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    device = device_of(module)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for buffer, saved in buffers:
                buffer.copy_(saved)


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; CPU for a module that has none."""
    tensor = next(module.parameters(), None)
    tensor = next(module.buffers(), None) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def dtype_of(module: nn.Module) -> torch.dtype:
    """Floating type of the first floating parameter; float32 for a module that has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def probe_images(size: tuple[int, int], device: torch.device) -> Tensor:
    """Two fixed images (2,3,H,W) in [0,1], drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(PROBE_BATCH, 3, *size, generator=generator).to(device)


def outputs_match(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree up to the rounding of their type."""
    if one.shape != other.shape:
        return False
    share = min(1e3 * torch.finfo(one.dtype).eps, 0.05)
    one, other = one.float(), other.float()
    scale = max(float(other.abs().amax()), 1e-6)
    return bool(torch.allclose(one, other, rtol=0.0, atol=share * scale, equal_nan=True))


def first_tensor(output: object) -> Tensor | None:
    """The main tensor of whatever a module returned: `.logits`, "logits", "out", or the first tensor found."""
    if isinstance(output, Tensor):
        return output
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, dict):
        output = [output[key] for key in ("logits", "out") if key in output] + list(output.values())
    if isinstance(output, (tuple, list)):
        return next((tensor for item in output if (tensor := first_tensor(item)) is not None), None)
    return None
