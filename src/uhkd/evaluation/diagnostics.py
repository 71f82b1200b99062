"""Diagnostics recorded in every run: spectra, error per frequency, CKA, predictions."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from uhkd.data import Batch
from uhkd.evaluation.metrics import Autocast, Evaluation, cka_matrix, eval_mode, radial_spectrum
from uhkd.features import FeatureExtractor
from uhkd.methods.spectral_matching import SpectralMatchingLoss
from uhkd.spectral import FTM

DIAGNOSTIC_IMAGES = 128
"""Number of validation images for spectra, maps and CKA."""


class TeacherFeatures(NamedTuple):
    """Features of a teacher on the diagnostic images, level by level; small enough for a cache.

    spectra: (R,) energy at integer frequency radii. pooled: (N, C, 1, 1) means of the maps. targets: FTM outputs (N, C, K).
    """

    spectra: tuple[Tensor, ...]
    pooled: tuple[Tensor, ...]
    targets: tuple[Tensor, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, of any shape, by name."""
        return {f"{name}.{i}": x for name, values in self._asdict().items() for i, x in enumerate(values)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "TeacherFeatures":
        """Build from the result of `tensors`, tensors of any shape by name."""

        def field(name: str) -> tuple[Tensor, ...]:
            return tuple(tensors[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in tensors)))

        return cls(*map(field, cls._fields))


def reference(network: FeatureExtractor, images: Tensor, autocast: Autocast, ftm: FTM | None) -> TeacherFeatures:
    """Compute the features of a teacher on images (N, 3, H, W) in [0, 1]."""
    maps = _maps(network, images, autocast)
    # CKA needs only the means; whole maps of a large teacher would occupy memory for the whole run
    pooled = tuple(m.mean((2, 3), keepdim=True) for m in maps)
    return TeacherFeatures(tuple(map(radial_spectrum, maps)), pooled, () if ftm is None else ftm(maps))


@torch.no_grad()
def _maps(network: FeatureExtractor, images: Tensor, autocast: Autocast) -> tuple[Tensor, ...]:
    if not network.shapes.maps:
        return ()
    with eval_mode(network), autocast():
        return tuple(m.float() for m in network(images, frozenset({"maps"})).maps)


class Diagnostics:
    """Collector of the arrays in diagnostics.npz on one fixed batch of validation images.

    Arrays, with T evaluations, levels l = 0 (shallow), 1, ...:
        steps (T,); student_spectrum_l (T, R), start_spectrum_l (R,), teacher_spectrum_l (R,): energy at integer frequency radii;
        error_l (T, K): mean squared error of each coefficient after alignment, for methods that match features, and
        frequency_l (K,) in cycles per image; cka_start and cka_end (S, L): student levels by teacher levels;
        val_prediction, val_confidence (its probability) and val_label (N,); confusion (C, C).
    Added by `uhkd.training.fit`: teacher_prediction, teacher_confidence, val_shown.
    """

    def __init__(
        self,
        student: FeatureExtractor,
        images: Tensor,
        autocast: Autocast,
        teacher: TeacherFeatures | None = None,
        match: SpectralMatchingLoss | None = None,
    ) -> None:
        self.student, self.images, self.autocast, self.match = student, images, autocast, match
        self.fixed: dict[str, np.ndarray] = {}
        self.series: dict[str, list[np.ndarray]] = {"steps": []}
        self.teacher_maps = () if teacher is None else teacher.pooled
        self.targets = () if teacher is None or match is None else teacher.targets
        if teacher is not None:
            self.fixed |= _spectra("teacher", teacher.spectra)
        if self.targets:
            assert match is not None
            self.fixed |= {f"frequency_{i}": _array(f) for i, f in enumerate(match.frequencies)}

    def _maps(self, network: FeatureExtractor) -> tuple[Tensor, ...]:
        return _maps(network, self.images, self.autocast)

    def begin(self) -> None:
        """Record spectra, and CKA with the teacher, before the first step."""
        self.fixed |= _spectra("start", map(radial_spectrum, self._maps(self.student)))
        if self.teacher_maps and self.student.shapes.maps:
            self.fixed["cka_start"] = _array(cka_matrix(self._maps(self.student), self.teacher_maps))

    @torch.no_grad()
    def note(self, step: int) -> None:
        """Record spectra, and the error of each coefficient, after a validation."""
        maps = self._maps(self.student)
        row = {"steps": np.int64(step)} | _spectra("student", map(radial_spectrum, maps))
        if self.targets:
            assert self.match is not None
            with eval_mode(self.match):
                for i, (predicted, target) in enumerate(zip(self.match.predict(maps), self.targets, strict=True)):
                    row[f"error_{i}"] = _array((predicted - target).square().mean((0, 1)))
        for name, value in row.items():
            self.series.setdefault(name, []).append(np.asarray(value))

    def similarity(self) -> dict[str, float]:
        """Return the similarity of student and teacher.

        cka: of the deepest maps. feature_error: mean over levels and coefficients of the error last recorded, for methods that
        match features.
        """
        errors = [float(rows[-1].mean()) for name, rows in self.series.items() if name.startswith("error_")]
        metrics = {"feature_error": sum(errors) / len(errors)} if errors else {}
        if self.teacher_maps and self.student.shapes.maps:
            metrics["cka"] = float(cka_matrix(self._maps(self.student)[-1:], self.teacher_maps[-1:]))
        return metrics

    def end(self, evaluation: Evaluation | None) -> None:
        """Record CKA and, given an evaluation, predictions after the last step."""
        if self.teacher_maps and self.student.shapes.maps:
            self.fixed["cka_end"] = _array(cka_matrix(self._maps(self.student), self.teacher_maps))
        if evaluation is not None:
            self.fixed["val_prediction"] = _array(evaluation.logits.argmax(1))
            self.fixed["val_confidence"] = _array(evaluation.logits.softmax(1).amax(1).half())
            self.fixed["val_label"] = _array(evaluation.labels)
            self.fixed["confusion"] = _array(evaluation.confusion())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays recorded so far."""
        return self.fixed | {name: np.stack(rows) for name, rows in self.series.items() if rows}

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Restore the arrays of an interrupted run up to a step."""
        count = int((arrays["steps"] <= step).sum()) if "steps" in arrays else 0
        for name, value in arrays.items():
            if name == "steps" or name.startswith(("student_spectrum_", "error_")):
                self.series[name] = list(value[:count])
            else:
                self.fixed[name] = value


def first_images(batches: Iterable[Batch], count: int) -> Tensor:
    """Return the first `count` images of a loader as (count, 3, H, W), or all if there are fewer."""
    images: list[Tensor] = []
    for batch in batches:
        images.append(batch.image)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count]


def _spectra(owner: str, spectra: Iterable[Tensor]) -> dict[str, np.ndarray]:
    return {f"{owner}_spectrum_{i}": _array(x) for i, x in enumerate(spectra)}


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
