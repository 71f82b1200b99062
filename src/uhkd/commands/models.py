"""`models`: list the available networks with their size and their speed on this machine."""

from collections.abc import Iterator
from dataclasses import dataclass

from uhkd.console import log_info, print_result
from uhkd.errors import UhkdError
from uhkd.models.cifar_variants import PARAMETERS
from uhkd.models.names import model_names, parse_name
from uhkd.recipe.arguments import ModelsArguments


@dataclass(frozen=True)
class ModelInfo:
    """A network: parameters with its original head, and milliseconds per image if measured; None if it cannot be built."""

    name: str
    parameters: int | None
    milliseconds: float | None = None


def models(arguments: ModelsArguments | None = None) -> list[ModelInfo]:
    """Print the networks that match a pattern, each as soon as it is built, and return them.

    Raises:
        UhkdError: when no name matches.
    """
    arguments = arguments or ModelsArguments()
    names = model_names(arguments.pattern)
    if not names:
        raise UhkdError(
            f"no network matches {arguments.pattern!r}; expected a name such as timm/resnet18, where * matches any text"
        )
    width = max(map(len, names))
    print_result(f"{'network':<{width}}  {'parameters':>12}" + ("  ms per image" if arguments.measured else ""))
    rows: list[ModelInfo] = []
    for row in _matching(names, arguments.max_params):
        if len(rows) == arguments.limit:
            log_info(f"... and more; use a narrower pattern or raise --limit ({arguments.limit})")
            break
        row = ModelInfo(row.name, row.parameters, _milliseconds(row.name) if arguments.measured else None)
        size = "-" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"
        time_ms = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        print_result(f"{row.name:<{width}}  {size:>12}" + (f"  {time_ms:>12}" if arguments.measured else ""))
        rows.append(row)
    if not rows:
        log_info(f"none of {len(names)} names has at most {arguments.max_params:g} M parameters")
    return rows


def _matching(names: list[str], max_params: float | None) -> Iterator[ModelInfo]:
    """Yield the networks one by one, so that networks beyond the limit are not built."""
    for name in names:
        parameters = count_parameters(name)
        if max_params is None or (parameters is not None and parameters <= max_params * 1e6):
            yield ModelInfo(name, parameters)


def count_parameters(name: str) -> int | None:
    """Return the number of parameters of a network with its original head, or None if it cannot be built.

    The numbers of uhkd's networks are constants; others are built on the meta device (no memory, no random numbers).
    """
    reference = parse_name(name)
    if reference.library == "uhkd":
        return PARAMETERS[reference.name]
    import torch
    import torchvision

    from uhkd.models.factories import build_module

    try:
        with torch.device("meta"):
            module = build_module(reference, size=None, num_classes=None, options={}, pretrained=False).module
    except (ValueError, RuntimeError, NotImplementedError):
        if reference.library != "torchvision":
            return None
        # torchvision's RegNets compute with tensor values, which the meta device has not; the number is in their metadata
        return next(iter(torchvision.models.get_model_weights(reference.name))).meta["num_params"]
    return sum(parameter.numel() for parameter in module.parameters())


def _milliseconds(name: str) -> float | None:
    """Return the median forward time of one image on the CPU in milliseconds, or None if the network cannot be built."""
    from uhkd.evaluation.metrics import latency
    from uhkd.models import create

    try:
        network = create(name, num_classes=None)
    except (UhkdError, RuntimeError):
        return None
    return latency(network)
