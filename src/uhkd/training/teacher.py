"""The sealed teacher: live signals without gradient, the FTM's calibration, and a linear probe for a head that does not fit."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from uhkd.data import Batch
from uhkd.evaluation.diagnostics import TeacherFeatures, reference
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.spectral import FTM, SpectralTarget

Autocast = Callable[[], AbstractContextManager]


class Teacher:
    """A network that only speaks: eval mode, no gradient, in no optimizer and no checkpoint (its FTM's statistics are).

    Args:
        network: any tapped model.
        target: how spectra are made, if a method wants them.
        autocast: precision of its forward pass.
        prefix: of the names of its FTM's statistics in a checkpoint.
    """

    def __init__(
        self,
        network: FeatureExtractor,
        target: SpectralTarget | None = None,
        autocast: Autocast = nullcontext,
        prefix: str = "ftm.",
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        device = next(network.parameters()).device
        self.ftm = None if target is None else FTM(target, network.shapes.maps).to(device)
        self.autocast, self.prefix = autocast, prefix
        self._ready = False

    @torch.no_grad()
    def signals(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Exactly the fields asked for; maps are dropped as soon as they are transformed."""
        if not needs:
            return NetworkOutput()
        fields = needs - {"spectra"} | ({"maps"} if "spectra" in needs else set())
        with self.autocast():
            output = self.network(batch.image, frozenset(fields))
        spectra = None
        if "spectra" in needs:
            assert self.ftm is not None
            if not self._ready:  # asked until it is so and not at every step: the answer makes a GPU wait
                assert self.ftm.calibrated, "FTM must be calibrated before it is used"
                self._ready = True
            spectra = self.ftm(output.maps)
        maps = output.maps if "maps" in needs else None
        return NetworkOutput(logits=output.logits, maps=maps, spectra=spectra, embedding=output.embedding)

    def each_teacher(self) -> tuple["Teacher", ...]:
        """Return the teachers: itself alone."""
        return (self,)

    def reference(self, images: Tensor) -> TeacherFeatures:
        """What diagnostics show of it on images (N, 3, H, W) in [0, 1]."""
        return reference(self.network, images, self.autocast, self.ftm)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it: the FTM's statistics, tensors of any shape by name."""
        return {} if self.ftm is None else {f"{self.prefix}{k}": v for k, v in self.ftm.state_dict().items()}


class TeacherEnsemble:
    """Several sealed teachers, each asked for what its own methods need, that look like one.

    The first one's signals hold the others' as `others`.

    Args:
        each: teachers in order, with the fields that are asked of each.
        shown: place of the one that diagnostics show.
    """

    def __init__(self, each: Sequence[tuple[Teacher, frozenset[str]]], shown: int = 0) -> None:
        self.each, self.shown = tuple(each), shown

    def each_teacher(self) -> tuple[Teacher, ...]:
        """Return the teachers, in order."""
        return tuple(teacher for teacher, _ in self.each)

    def drop(self, place: int) -> None:
        """Leave a teacher out of every further step."""
        self.each = tuple((t, frozenset() if i == place else own) for i, (t, own) in enumerate(self.each))

    def signals(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Each teacher's own fields among `needs`, all their fields together."""
        first, *others = (teacher.signals(batch, own & needs) for teacher, own in self.each)
        return first._replace(others=tuple(others))

    def reference(self, images: Tensor) -> TeacherFeatures:
        """What diagnostics show of one of them on images (N, 3, H, W) in [0, 1]."""
        return self.each[self.shown][0].reference(images)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of all, tensors of any shape by name."""
        return {name: value for teacher, _ in self.each for name, value in teacher.state().items()}


@torch.no_grad()
def calibrate(teacher: Teacher, batches: Iterable[Batch], device: torch.device, images: int = 1024) -> int:
    """Fix the FTM's statistics from the first `images` un-mixed training images; returns how many were used.

    Raises:
        UhkdError: for fewer than two images or features that are not finite.
    """
    assert teacher.ftm is not None
    raw: list[list[Tensor]] = [[] for _ in teacher.ftm.target.levels]
    count = 0
    for batch in batches:
        with teacher.autocast():
            maps = teacher.network(batch.image[: images - count].to(device), frozenset({"maps"})).maps
        for level, x in zip(raw, teacher.ftm.raw(maps), strict=True):
            level.append(x.float().cpu())
        count += len(raw[0][-1])
        if count >= images:
            break
    teacher.ftm.calibrate([torch.cat(level) for level in raw])
    return count


def at_chance(correct: int, labels: Tensor) -> bool:
    """Whether an accuracy could come from always naming the commonest of labels (N,): within 3 standard errors of its share.

    Half-way from that share to 1 is enough in any case: with a handful of images 3 standard errors reach beyond 1.
    """
    share = labels.bincount().max().item() / len(labels)
    margin = 3 * (share * (1 - share) / len(labels)) ** 0.5
    return correct / len(labels) <= share + min(margin, (1 - share) / 2)
