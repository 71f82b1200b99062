"""Inspection of a network without side effects on it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PROBE_BATCH = 2  # two images, so that the batch axis differs from an axis of length one


@contextmanager
def side_effect_free(module: nn.Module) -> Iterator[None]:
    """Set eval mode without gradients; afterwards, restore the mode of every submodule, the buffers and the random state."""
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


@contextmanager
def output_hooks(
    parts: Mapping[str, nn.Module], record: Callable[[str, nn.Module, Any, Tensor], None]
) -> Iterator[None]:
    """Call `record(name, module, inputs, output)` with the main output tensor after each forward pass of the named modules."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                record(name, module, inputs, tensor)

        return hook

    with ExitStack() as stack:
        for name, part in parts.items():
            stack.callback(part.register_forward_hook(hook_of(name)).remove)
        yield


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; CPU for a module without any."""
    tensor = next(module.parameters(), None)
    tensor = next(module.buffers(), None) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the type of the first floating parameter; float32 for a module without any."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def probe_images(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return two fixed images (2,3,H,W) in [0,1] from a separate random generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(PROBE_BATCH, 3, *size, generator=generator).to(device)


def luminance(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the weighted mean of red, green and blue (ITU-R 601); the image itself where they are equal."""
    return (image * image.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)


def outputs_match(output: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of their type."""
    if output.shape != expected.shape:
        return False
    tolerance = min(1e3 * torch.finfo(output.dtype).eps, 0.05)
    output, expected = output.float(), expected.float()
    scale = max(float(expected.abs().amax()), 1e-6)
    return bool(torch.allclose(output, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True))


def first_tensor(output: object) -> Tensor | None:
    """Return the main tensor of a module's output: the attribute or key `logits`, the key `out`, or the first tensor."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, dict):
        output = [output[key] for key in ("logits", "out") if key in output] + list(output.values())
    if isinstance(output, (tuple, list)):
        return next((tensor for item in output if (tensor := first_tensor(item)) is not None), None)
    return None
