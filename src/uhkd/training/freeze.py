"""Frozen parts of the trained network: their parameters do not learn, and their batch norm statistics do not change."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from uhkd.console import log_info
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.recipe import did_you_mean


class FrozenParts:
    """Freezes parts of a network until `release`, also when the network is put into training mode.

    Args:
        network: in which to freeze.
        random: whether its weights are random, which is reported.
        names: of modules (with all below them) or parameters, with wildcards as in a shell, or layers as `uhkd inspect` prints
            them.

    Raises:
        UhkdError: for a name that the network does not have, or if nothing would be left to train.
    """

    def __init__(self, network: FeatureExtractor, names: Sequence[str], *, random: bool = False) -> None:
        self.network = network
        modules = {name: part for name, part in network.module.named_modules() if name}
        self._parameters: dict[str, nn.Parameter] = {}
        self._statistics: list[nn.Module] = []
        trained = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
        numbered = any(name.isdecimal() for name in network.levels)
        for name in names:
            pattern = (
                _name_of_layer(network.module, name) if numbered and name.isdecimal() and name not in modules else name
            )
            roots = [each for each in modules if fnmatchcase(each, pattern)]
            below = tuple(f"{each}." for each in roots)
            found = {k: p for k, p in trained.items() if fnmatchcase(k, pattern) or k.startswith(below)}
            if not roots and not any(fnmatchcase(k, pattern) for k, _ in network.module.named_parameters()):
                raise UhkdError(_unknown(network.module, name, modules))
            self._parameters |= found
            self._statistics += [
                part
                for each, part in modules.items()
                if (each in roots or each.startswith(below)) and getattr(part, "running_mean", None) is not None
            ]
        if names and len(self._parameters) == len(trained):
            raise UhkdError(
                f"freeze: {', '.join(names)} would freeze every parameter; leave some to train, such as the head"
            )
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        if names:
            network.__dict__["train"] = self._train
            count = sum(p.numel() for p in self._parameters.values())
            total = sum(p.numel() for p in network.module.parameters())
            log_info(f"  frozen: {', '.join(names)} ({count:,} of {total:,} parameters)")
            if random:
                log_info("warning: the frozen parts have random weights; give trained ones (--start, --student-start)")

    def _train(self, mode: bool = True) -> FeatureExtractor:
        """Set the mode of the network as usual, but keep the frozen batch norms in eval mode."""
        type(self.network).train(self.network, mode)
        for part in self._statistics:
            part.eval()
        return self.network

    def release(self) -> None:
        """Let the frozen parts learn again, for further trainings."""
        self.network.__dict__.pop("train", None)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)


def _name_of_layer(module: nn.Module, number: str) -> str:
    """Return the name of a block that `uhkd inspect` prints as its number, otherwise the number."""
    info = getattr(module, "feature_info", None) or []
    entries = list(getattr(info, "info", info))
    return str(entries[int(number)]["module"]) if int(number) < len(entries) else number


def _unknown(module: nn.Module, name: str, modules: Iterable[str]) -> str:
    parts = ", ".join(child for child, _ in module.named_children())
    return (
        f"freeze: {type(module).__name__}, which consists of {parts}, has no part {name!r}{did_you_mean(name, modules)}"
    )
