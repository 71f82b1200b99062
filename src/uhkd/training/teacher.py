"""The frozen teacher: its outputs without gradient, and the calibration of its FTM."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from uhkd.data import Batch
from uhkd.evaluation.diagnostics import TeacherFeatures, reference
from uhkd.features import FeatureExtractor, NetworkOutput
from uhkd.spectral import FTM, SpectralTarget

Autocast = Callable[[], AbstractContextManager]


@runtime_checkable  # beartype checks arguments in the tests
class TeacherSource(Protocol):
    """The source of teacher outputs: one network (`Teacher`), several (`TeacherEnsemble`), or a cache (`CachedTeacher`)."""

    def outputs(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Return the fields `needs` of the teacher output on a batch; the other fields are None."""
        ...

    def reference(self, images: Tensor) -> TeacherFeatures:
        """Return what diagnostics show of the teacher on images (N, 3, H, W) in [0, 1]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for a checkpoint by name: the FTM's statistics, of any shape."""
        ...

    def each_teacher(self) -> tuple["Teacher", ...]:
        """Return the teacher networks in order; empty for a cache."""
        ...


class Teacher:
    """A frozen network in eval mode: without gradient, and in no optimizer or checkpoint (only its FTM's statistics are).

    Args:
        network: the network with its feature maps.
        target: how spectra are computed; None: no method needs them.
        autocast: precision of the forward pass.
        prefix: of the names of the FTM's statistics in a checkpoint.
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
    def outputs(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Return the fields `needs` of the teacher output; maps are freed as soon as they are transformed."""
        if not needs:
            return NetworkOutput()
        fields = needs - {"spectra"} | ({"maps"} if "spectra" in needs else set())
        with self.autocast():
            output = self.network(batch.image, frozenset(fields))
        spectra = None
        if "spectra" in needs:
            assert self.ftm is not None
            if not self._ready:  # not checked again once it is true: reading the flag makes a GPU wait
                assert self.ftm.calibrated, "FTM must be calibrated before it is used"
                self._ready = True
            spectra = self.ftm(output.maps)
        maps = output.maps if "maps" in needs else None
        return NetworkOutput(logits=output.logits, maps=maps, spectra=spectra, embedding=output.embedding)

    def each_teacher(self) -> tuple["Teacher", ...]:
        """Return this teacher as the only one."""
        return (self,)

    def reference(self, images: Tensor) -> TeacherFeatures:
        """Return what diagnostics show of the teacher on images (N, 3, H, W) in [0, 1]."""
        return reference(self.network, images, self.autocast, self.ftm)

    def state(self) -> dict[str, Tensor]:
        """Return the FTM's statistics for a checkpoint, tensors of any shape by name."""
        return {} if self.ftm is None else {f"{self.prefix}{k}": v for k, v in self.ftm.state_dict().items()}


class TeacherEnsemble:
    """Several frozen teachers, each with the fields that its methods need.

    The output of the first teacher holds those of the others in `others`.

    Args:
        each: teachers in order, each with the fields needed of it.
        shown: index of the teacher that diagnostics show.
    """

    def __init__(self, each: Sequence[tuple[Teacher, frozenset[str]]], shown: int = 0) -> None:
        self.each, self.shown = tuple(each), shown

    def each_teacher(self) -> tuple[Teacher, ...]:
        """Return the teachers in order."""
        return tuple(teacher for teacher, _ in self.each)

    def drop(self, index: int) -> None:
        """Skip the teacher `index` in every further step."""
        self.each = tuple((t, frozenset() if i == index else fields) for i, (t, fields) in enumerate(self.each))

    def outputs(self, batch: Batch, needs: frozenset[str]) -> NetworkOutput:
        """Return the outputs of all teachers, each with those of its fields that are in `needs`."""
        first, *others = (teacher.outputs(batch, fields & needs) for teacher, fields in self.each)
        return first._replace(extra_teachers=tuple(others))

    def reference(self, images: Tensor) -> TeacherFeatures:
        """Return what diagnostics show of the teacher `shown` on images (N, 3, H, W) in [0, 1]."""
        return self.each[self.shown][0].reference(images)

    def state(self) -> dict[str, Tensor]:
        """Return the statistics of all FTMs for a checkpoint, tensors of any shape by name."""
        return {name: value for teacher, _ in self.each for name, value in teacher.state().items()}


@torch.no_grad()
def calibrate(teacher: Teacher, batches: Iterable[Batch], device: torch.device, images: int = 1024) -> int:
    """Compute the FTM's statistics from the first `images` training images (without mixing); return how many were used.

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
    """Return whether always predicting the most frequent of labels (N,) could give `correct` right answers.

    The limit is the share of that class plus 3 standard errors, but at most half-way from the share to 1: with a handful of
    images 3 standard errors exceed 1.
    """
    share = labels.bincount().max().item() / len(labels)
    margin = 3 * (share * (1 - share) / len(labels)) ** 0.5
    return correct / len(labels) <= share + min(margin, (1 - share) / 2)
