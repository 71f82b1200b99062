"""`uhkd models`: which networks there are, how large, and how fast here."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from uhkd.console import log_info, print_result
from uhkd.errors import UhkdError
from uhkd.models.cifar_variants import PARAMETERS
from uhkd.models.names import model_names, parse
from uhkd.recipe.arguments import ModelsArguments


@dataclass(frozen=True)
class ModelInfo:
    """One network: parameters (with its own head) and, if measured, milliseconds for one image; None: cannot be had."""

    name: str
    parameters: int | None
    milliseconds: float | None = None


def models(arguments: ModelsArguments | None = None) -> list[ModelInfo]:
    """Print the networks that match, a line each as they are found, and return them.

    Raises:
        UhkdError: when no name matches.
    """
    chosen = arguments or ModelsArguments()
    names = model_names(chosen.pattern)
    if not names:
        raise UhkdError(f"no network matches {chosen.pattern!r}; names look like timm/resnet18, * stands for anything")
    width = max(map(len, names))
    print_result(f"{'network':<{width}}  {'parameters':>12}" + ("  ms per image" if chosen.measured else ""))
    rows: list[ModelInfo] = []
    for row in _matching(names, chosen.max_params):
        if len(rows) == chosen.limit:
            log_info(f"... and more; narrow the pattern or raise --limit ({chosen.limit})")
            break
        row = ModelInfo(row.name, row.parameters, _milliseconds(row.name) if chosen.measured else None)
        size = "-" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"
        print_result(f"{row.name:<{width}}  {size:>12}" + (_time_cell(row) if chosen.measured else ""))
        rows.append(row)
    if not rows:
        log_info(f"none of {len(names)} names has at most {chosen.max_params:g} M parameters")
    return rows


def _matching(names: list[str], max_params: float | None) -> Iterator[ModelInfo]:
    """Rows one by one, so that no network is built that is not listed (or weighed against `max_params`)."""
    for name in names:
        parameters = count_parameters(name)
        if max_params is None or (parameters is not None and parameters <= max_params * 1e6):
            yield ModelInfo(name, parameters)


def count_parameters(name: str) -> int | None:
    """Parameters of a network with its own head; None if it cannot be built.

    Those of uhkd are noted; another is built on the meta device (no memory, no random numbers).
    """
    reference = parse(name)
    if reference.library == "uhkd":
        return PARAMETERS[reference.name]
    import torch
    import torchvision

    from uhkd.models.factories import build

    try:
        with torch.device("meta"):
            module = build(reference, size=None, num_classes=None, options={}, pretrained=False).module
    except (ValueError, RuntimeError, NotImplementedError):
        if reference.library != "torchvision":
            return None
        # its RegNets compute widths with tensors, which the meta device cannot; torchvision publishes the number
        return next(iter(torchvision.models.get_model_weights(reference.name))).meta["num_params"]
    return sum(parameter.numel() for parameter in module.parameters())


def _milliseconds(name: str) -> float | None:
    """Median time of one image through the network on the CPU; None if it cannot run here."""
    import torch

    from uhkd.models import create

    try:
        network: Any = create(name, num_classes=None).eval()
    except (ValueError, RuntimeError):
        return None
    image = torch.rand(1, 3, *network.input_size)
    times = []
    with torch.inference_mode():
        for _ in range(7):
            began = time.perf_counter()
            network.plain(image)
            times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[2:])


def _time_cell(row: ModelInfo) -> str:
    return f"  {'-' if row.milliseconds is None else f'{row.milliseconds:.1f}':>12}"
