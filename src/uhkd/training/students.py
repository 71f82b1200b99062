"""The student: build it, freeze its unused parameters, and load it from a finished run."""

from dataclasses import replace

import torch
from torch import nn

from uhkd.console import log_info
from uhkd.features import FeatureExtractor
from uhkd.features.introspection import probe_images
from uhkd.models import ModelConfig, create, load_run, native_size_of, read_safetensors, wrap_module
from uhkd.recipe import DistillRecipe, FinetuneRecipe, TrainRecipe
from uhkd.runs import RunFolder
from uhkd.training.geometry import note_other_resize
from uhkd.training.inputs import Inputs


def build_student(recipe: TrainRecipe, inputs: Inputs, module: nn.Module | None, classes: int) -> FeatureExtractor:
    """Return the network to train, with a head for `classes` (0: none). Random initial weights depend on the seed alone.

    module: in place of the recipe's name.

    Raises:
        UhkdError: for a name, option or module that cannot be used, or a module with another head.
    """
    if isinstance(recipe, DistillRecipe):
        name, start = recipe.student, recipe.student_start
        options, levels = recipe.student_options, recipe.student_levels
    else:
        assert isinstance(recipe, FinetuneRecipe)
        name, start, options, levels = recipe.model, recipe.start, recipe.options, recipe.levels
    torch.manual_seed(recipe.seed)
    if module is not None:
        size = recipe.image_size or native_size_of(module) or inputs.data.native_size
        network = wrap_module(module, num_classes=classes, image_size=size, levels=levels)
    else:
        network = create(
            name,
            num_classes=classes,
            start=inputs.start_of(name, start),
            image_size=recipe.image_size,
            options=options,
            levels=levels,
        )
    for note in network.notes:
        log_info(f"  {note}")
    note_other_resize(name, network, recipe.resize)
    network.config = replace(network.config, resize=recipe.resize)
    return network


def freeze_unused(network: FeatureExtractor, needs: frozenset[str]) -> int:
    """Freeze the parameters on which none of the outputs `needs` depends; return how many numbers they contain.

    Without labels no term depends on the last layers of a network if its last feature map, but not its embedding, is matched;
    DDP would wait for their gradients.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.random.fork_rng([p.device for p in parameters[:1] if p.is_cuda]), torch.enable_grad():
        output = network(probe_images(network.input_size, parameters[0].device), needs)
        tensors = [x for x in (output.logits, output.embedding, *(output.maps or ())) if x is not None]
        gradients = torch.autograd.grad([x.float().sum() for x in tensors], parameters, allow_unused=True)
    for buffer, saved in buffers:
        buffer.copy_(saved)
    unused = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    for parameter in unused:
        parameter.requires_grad_(False)
    return sum(p.numel() for p in unused)


def load_finished_model(folder: RunFolder, module: nn.Module | None) -> FeatureExtractor:
    """Return the trained network of a finished run; its weights are loaded into `module`, if given."""
    if module is None:
        return load_run(folder.path)
    config = ModelConfig.from_json(folder.read_config())
    network = module
    if not isinstance(network, FeatureExtractor):
        network = wrap_module(
            module, num_classes=config.num_classes, image_size=config.image_size, levels=config.levels
        )
    network.module.load_state_dict(read_safetensors(folder.weights))
    network.config = config
    return network
