"""Check that a network gives the same kind of output in training as in eval mode."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features.extractor import FeatureExtractor
from uhkd.features.hook_extractor import HookExtractor
from uhkd.features.introspection import device_of, first_tensor, probe_images, side_effect_free


def check_training_mode(network: FeatureExtractor) -> None:
    """Run a student once in training mode, without side effects on it.

    Auxiliary heads add outputs in training mode; the loss uses only the main one, which `network.notes` then records.

    Raises:
        UhkdError: it fails, gives another shape than in eval mode, or gives the output of another layer as its main one.
    """
    module, reader = network.module, network.reader
    name, (height, width) = type(module).__name__, network.input_size
    classifier = reader.classifier if isinstance(reader, HookExtractor) else None
    heads: list[Tensor | None] = []
    outputs: list[Any] = []
    with side_effect_free(module), ExitStack() as stack:
        if classifier is not None:
            layer = module.get_submodule(classifier)
            hook = layer.register_forward_hook(lambda *call: heads.append(first_tensor(call[2])))
            stack.callback(hook.remove)
        stack.callback(module.register_forward_hook(lambda *call: outputs.append(call[2])).remove)
        module.train()
        try:
            with torch.enable_grad():
                main = network.plain(probe_images(network.input_size, device_of(module)))
        except Exception as error:  # any failure of another library's code has the same meaning for the user
            reason = first_line(error).rstrip(".")
            raise UhkdError(
                f"{name} works in eval mode, but not in training mode on images of {height}x{width} px: {reason}"
            ) from error
    if not main.requires_grad and any(parameter.requires_grad for parameter in module.parameters()):
        raise UhkdError(f"the output of {name} has no gradient: remove no_grad or detach from its forward")
    expected = network.shapes.logits or network.shapes.embedding
    if expected is not None and (main.ndim != 2 or main.shape[1] != expected):
        raise UhkdError(
            f"{name} gives {tuple(main.shape)} in training mode, expected (images, {expected}) as in eval mode"
        )
    if heads and all(head is not main for head in heads):
        raise UhkdError(
            f"the first output of {name} in training mode is not that of its last layer {classifier}, as in eval mode: "
            "return it first, or under the name logits, and outputs of auxiliary heads after it"
        )
    values = outputs[-1].values() if isinstance(outputs[-1], Mapping) else outputs[-1]
    if not isinstance(values, Tensor) and sum(isinstance(value, Tensor) for value in values) > 1:
        network.notes.append(
            f"{name} gives more outputs in training mode: only the first, its class scores, is trained"
        )
