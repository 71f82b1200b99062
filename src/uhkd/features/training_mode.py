"""Check that a network gives the same kind of output in training as in eval mode."""

from typing import Any

from torch import Tensor, nn

from uhkd.console import first_line
from uhkd.errors import UhkdError
from uhkd.features.extractor import FeatureExtractor
from uhkd.features.hook_extractor import HookExtractor
from uhkd.features.introspection import device_of, first_tensor, output_hooks, probe_images, side_effect_free


def check_training_mode(network: FeatureExtractor) -> None:
    """Run a student once in training mode, without side effects on it.

    Auxiliary heads add outputs in training mode; the loss uses only the main one, which `network.notes` then records.

    Raises:
        UhkdError: it fails, gives another shape than in eval mode, or gives the output of another layer as its main one.
    """
    module, reader = network.module, network.reader
    name, (height, width) = type(module).__name__, network.input_size
    classifier = reader.classifier if isinstance(reader, HookExtractor) else None
    heads: list[Tensor] = []

    def record(_name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        heads.append(output)

    parts = {} if classifier is None else {classifier: module.get_submodule(classifier)}
    with side_effect_free(module), output_hooks(parts, record):
        module.train()
        try:
            output = module(network.prepare(probe_images(network.input_size, device_of(module))))
        except Exception as error:  # any failure of another library's code has the same meaning for the user
            reason = first_line(error).rstrip(".")
            raise UhkdError(
                f"{name} works in eval mode, but not in training mode on images of {height}x{width} px: {reason}"
            ) from error
    main, width_of_output = first_tensor(output), network.shapes.logits or network.shapes.embedding
    found = "no tensor" if main is None else f"a tensor of shape {tuple(main.shape)}"
    if main is None or (width_of_output is not None and (main.ndim != 2 or main.shape[1] != width_of_output)):
        raise UhkdError(f"{name} gives {found} in training mode, expected (images, {width_of_output}) as in eval mode")
    if heads and all(head.data_ptr() != main.data_ptr() for head in heads):
        raise UhkdError(
            f"the first output of {name} in training mode is not that of its last layer {classifier}, as in eval mode: "
            "return it first, or under the name logits, and outputs of auxiliary heads after it"
        )
    if not isinstance(output, Tensor) and _count(output) > 1:
        network.notes.append(
            f"{name} gives more outputs in training mode: only the first, its class scores, is trained"
        )


def _count(output: Any) -> int:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return sum(isinstance(value, Tensor) for value in values)
