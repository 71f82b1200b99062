"""The network to train: its first weights, what its method reaches of it, and its state when a finished run is opened again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from uhkd.data import Data
from uhkd.models import ModelCard, create, load_run, own_size, read_safetensors, wrap
from uhkd.recipe import TrainRecipe
from uhkd.runs import RunFolder
from uhkd.taps import TappedModel
from uhkd.taps.quiet import probe_images
from uhkd.training.setup import say


def first_network(
    module: nn.Module | None,
    name: str,
    start: str,
    options: dict[str, Any],
    levels: Sequence[str] | None,
    recipe: TrainRecipe,
    data: Data,
    classes: int,
) -> TappedModel:
    """The network to train, with a head for `classes` (0: none): the same first weights for the same seed, whatever the method.

    Raises:
        ValueError: for a name, option or module that cannot be used, or a module with another head.
    """
    torch.manual_seed(recipe.seed)
    if isinstance(module, TappedModel):
        if (module.shapes.logits or 0) != classes:
            wanted = (
                f"the data has {classes}" if classes else "without labels none are wanted (wrap it with num_classes=0)"
            )
            raise ValueError(f"the model to train gives {module.shapes.logits or 'no'} classes, {wanted}")
        network = module if module.card is not None else _with_card(module)
    elif module is not None:
        size = recipe.image_size or own_size(module) or data.native_size
        network = wrap(module, num_classes=classes, image_size=size, levels=levels or 4)
    else:
        network = create(
            name, num_classes=classes, start=start, image_size=recipe.image_size, options=options, levels=levels or 4
        )
    for note in network.notes:
        say(f"  {note}")
    return network


def check_labels(data: Data) -> None:
    """See that there is something to finetune on.

    Raises:
        ValueError: for images without labels.
    """
    if not data.classes:
        raise ValueError(
            f"data {data.name} has no labels, and finetune learns from them alone; expected class folders or (image, label) "
            "pairs, or distil a teacher, which needs none"
        )


def freeze_unreached(network: TappedModel, needs: frozenset[str]) -> int:
    """Take parameters on which none of the signals depend out of the training; returns how many numbers they hold.

    Without labels nothing reads the end of a network whose last map, and not its embedding, is imitated; and processes that
    share gradients wait for each.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.random.fork_rng([p.device for p in parameters[:1] if p.is_cuda]), torch.enable_grad():
        said = network(probe_images(network.input_size, parameters[0].device), needs)
        every = [x for x in (said.logits, said.embedding, *(said.maps or ())) if x is not None]
        reached = torch.autograd.grad([x.float().sum() for x in every], parameters, allow_unused=True)
    for buffer, saved in buffers:
        buffer.copy_(saved)
    unreached = [p for p, gradient in zip(parameters, reached, strict=True) if gradient is None]
    for parameter in unreached:
        parameter.requires_grad_(False)
    return sum(p.numel() for p in unreached)


def finished_network(folder: RunFolder, module: nn.Module | None) -> TappedModel:
    """The trained network of a finished run, in the user's own module where one is given."""
    if module is None:
        return load_run(folder.path)
    card = ModelCard.from_json(folder.read_card())
    network = module
    if not isinstance(network, TappedModel):
        network = wrap(module, num_classes=card.num_classes, image_size=card.image_size, levels=card.levels)
    network.module.load_state_dict(read_safetensors(folder.weights))
    network.card = card
    return network


def _with_card(network: TappedModel) -> TappedModel:
    network.card = ModelCard(
        name=f"module/{type(network.module).__name__}",
        num_classes=network.shapes.logits or 0,
        image_size=network.input_size,
        mean=network.mean,
        std=network.std,
        interpolation=network.interpolation,
        levels=network.levels,
    )
    return network
