"""The temperature of a run in an exported network: divided into the weights of its last layer, else into its output."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.features import FeatureExtractor
from uhkd.features.introspection import device_of, outputs_match, probe_images, side_effect_free
from uhkd.models.weights import head_names


def apply_temperature(network: FeatureExtractor, *, raw: bool = False) -> float:
    """Divide the last layer by the temperature in the network's config, in place, and return the temperature.

    Afterwards the config has temperature 1, unless the last layer is not linear: programs and `calibrated_logits` then divide
    their output. raw: forget the temperature instead, and return 1.
    """
    temperature = network.config.temperature
    if raw or _fold(network, temperature):
        network.config = replace(network.config, temperature=1.0)
    return 1.0 if raw else temperature


def calibrated_logits(network: FeatureExtractor, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
    """Return the logits of images in [0,1], divided by the temperature in the network's config; or its embedding."""
    return network.plain(image) / network.config.temperature


@torch.no_grad()
def _fold(network: FeatureExtractor, temperature: float) -> bool:
    """Divide the classifier layers and return whether all logits are divided by it; if not, the weights are unchanged."""
    module = network.module
    heads = [module.get_submodule(name) for name in head_names(module, network.config.num_classes)]
    if temperature == 1:
        return True
    if not heads or not all(isinstance(head, nn.Linear | nn.Conv2d) for head in heads):
        return False
    parameters = list({id(p): p for head in heads for p in head.parameters(recurse=False)}.values())
    before, image = [p.clone() for p in parameters], probe_images(network.input_size, device_of(module))
    with side_effect_free(module):
        expected = network.plain(image) / temperature
        for p in parameters:
            p.div_(temperature)
        if outputs_match(network.plain(image), expected):
            return True
    for p, value in zip(parameters, before, strict=True):  # weights used elsewhere too, or a layer after the head
        p.copy_(value)
    return False
