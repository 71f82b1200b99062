"""The student: build it, freeze its unused parameters, and load it from a finished run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from uhkd.console import log_info, pluralize
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.features.introspection import probe_images
from uhkd.features.training_mode import check_training_mode
from uhkd.models import (
    ModelConfig,
    create,
    has_weights,
    load_run,
    native_size_of,
    offers_pretrained,
    read_safetensors,
    wrap_module,
)
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
        name, start, weights_key = recipe.student, recipe.student_start, recipe.student_weights_key
        options, levels = recipe.student_options, recipe.student_levels
    else:
        assert isinstance(recipe, FinetuneRecipe)
        name, start, weights_key = recipe.model, recipe.start or "random", recipe.weights_key
        options, levels = recipe.options, recipe.levels
    torch.manual_seed(recipe.seed)
    if module is not None:
        size = recipe.image_size or native_size_of(module) or inputs.data.native_size
        network = wrap_module(module, num_classes=classes, image_size=size, levels=levels)
    else:
        network = create(
            name,
            num_classes=classes,
            start=inputs.start_of(name, start),
            weights_key=weights_key,
            image_size=recipe.image_size,
            options=options,
            levels=levels,
        )
        if isinstance(recipe, DistillRecipe):
            log_info(f"student {name}: {_describe_start(name, start)}")
    check_training_mode(network)
    for note in network.notes:
        log_info(f"  {note}")
    if network.frozen_norms:
        log_info(
            f"  {pluralize(len(network.frozen_norms), 'frozen batch norm')} in eval mode: running statistics are kept"
        )
    if module is None and classes:
        _note_other_classes(name if start in ("random", "pretrained") else start, inputs.data.classes)
    note_other_resize(name, network, recipe.resize)
    network.config = replace(network.config, resize=recipe.resize)
    return network


def _note_other_classes(source: str, classes: Sequence[str]) -> None:
    """Log it if initial weights are those of a run with as many classes, but other ones: its head is used nevertheless."""
    path = Path(source).expanduser()
    run = RunFolder(path.parent if path.is_file() else path)
    if not run.has_model():
        return
    config = ModelConfig.from_json(run.read_config())
    if config.num_classes == len(classes) and (why := config.differing_class(classes)):
        log_info(f"  training starts from the head of {source} although {why}")


def _describe_start(name: str, start: str) -> str:
    """Describe the initial weights of a student, and the option for others."""
    if has_weights(name) and start in ("random", "pretrained"):
        return "starts from its own weights"
    if start != "random":
        return f"starts from {'pretrained weights' if start == 'pretrained' else start} (--student-start random: from none)"
    others = "pretrained or FILE" if offers_pretrained(name) else "FILE"
    return f"starts from random weights (--student-start {others}: from trained ones)"


def check_separate(student: nn.Module | None, teacher: nn.Module | None) -> None:
    """Check that two networks, if given, have no parameter in common.

    Raises:
        UhkdError: if they do.
    """
    ids = [{id(p) for p in network.parameters()} for network in (student, teacher) if network is not None]
    if len(ids) == 2 and ids[0] & ids[1]:
        raise UhkdError("teacher and student share weights, and a teacher's are frozen: give two modules")


def freeze_unused(network: FeatureExtractor, needs: frozenset[str]) -> list[str]:
    """Freeze the parameters on which none of the outputs `needs` depends; return their names in the network's module.

    Without labels no term depends on the last layers of a network if its last feature map, but not its embedding, is matched.
    Before the optimizer is built, which excludes them, as it does in checkpoints of older versions; others that no term uses
    are found later (`UnusedParameters`).
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    with torch.random.fork_rng([p.device for p in parameters[:1] if p.is_cuda]), torch.enable_grad():
        output = network(probe_images(network.input_size, parameters[0].device), needs)
        tensors = [x for x in (output.logits, output.embedding, *(output.maps or ())) if x is not None]
        gradients = torch.autograd.grad([x.float().sum() for x in tensors], parameters, allow_unused=True)
    for buffer, saved in buffers:
        buffer.copy_(saved)
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    for name in unused:
        trained[name].requires_grad_(False)
    return unused


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
