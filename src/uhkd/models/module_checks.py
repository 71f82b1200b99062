"""Checks of an object that a user passes as a network."""

from collections.abc import Mapping

import torch
from torch import nn

from uhkd.errors import UhkdError


def check_module(module: object) -> None:
    """Check that an object is a network whose layers can be read and trained, and not a wrapper around one.

    Raises:
        UhkdError: with what to pass instead.
    """
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    if isinstance(module, type):
        raise UhkdError(f"expected a network, found the class {name}: build it first, {name}(...)")
    if not isinstance(module, nn.Module):
        state = "; build the network and load these weights with load_state_dict" if isinstance(module, Mapping) else ""
        raise UhkdError(f"expected a network (torch.nn.Module) or its name, found a {name}{state}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UhkdError(
            "the network is TorchScript, whose layers cannot be read: pass the Python module it was made of"
        )
    compiled = "its layers cannot be read through torch.compile"
    if isinstance(getattr(module, "_orig_mod", None), nn.Module):
        raise UhkdError(f"{compiled}: pass the network itself (module._orig_mod); compile=True compiles the training")
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise UhkdError(f"{compiled}: leave out module.compile(); compile=True compiles the training")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UhkdError(f"the network is wrapped by {name}: pass module.module; torchrun trains on several GPUs")
    tensors = (*module.parameters(), *module.buffers())
    if any(map(nn.parameter.is_lazy, tensors)):
        raise UhkdError(f"{name} has lazy layers without weights yet: run it on a batch of images first")
    if any(tensor.is_meta for tensor in tensors):
        raise UhkdError(
            f"{name} is on the meta device, without weights: module.to_empty(device='cpu'), then load weights"
        )
