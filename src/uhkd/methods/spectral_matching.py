"""Multi-level matching: one FAM per pair of taps, what is left of each level, and the objective over logits and levels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.errors import UhkdError
from uhkd.features import NetworkOutput, PairShapes
from uhkd.methods.base import Requirements
from uhkd.methods.correlation import class_distances, redundancy
from uhkd.methods.kd import SoftTargetLoss
from uhkd.spectral import Maps, SpectralTarget, ftm_shapes, radial_frequencies
from uhkd.spectral.fam import FAM, FAMForm

Norm = Literal["mse", "mae", "log", "log-band"]
_ON_FEATURES = ("features", "redundancy", "relations")


def level_error(
    predicted: Float[Tensor, "b c k"],
    target: Float[Tensor, "b c k"],
    weights: Float[Tensor, " k"],
    norm: Norm = "mse",
) -> Float[Tensor, ""]:
    """Mean over batch and channels of sum_k w_k (predicted - target)^2; with weights 1/K, the plain MSE.

    norm: "mse"; "mae", absolute instead of squared errors; "log", the logarithm of "mse", whose gradient does not fade as
    the error does; "log-band", the sum over k of w_k times the logarithm of each coefficient's own error.
    """
    difference = predicted - target
    errors = (difference.abs() if norm == "mae" else difference.square()).mean((0, 1))
    if norm == "log-band":
        errors = errors.clamp_min(1e-8).log()
    error = (errors * weights).sum()
    return error.clamp_min(1e-8).log() if norm == "log" else error


def relation_error(predicted: Float[Tensor, "b c k"], target: Float[Tensor, "b c k"]) -> Float[Tensor, ""]:
    """Mean squared difference of the two matrices of cosine similarities between the images of a batch, diagonal left out."""
    count = len(predicted)
    with torch.autocast(predicted.device.type, enabled=False):
        units = [F.normalize(x.flatten(1), dim=1) for x in (predicted, target)]
        student, teacher = (x @ x.T for x in units)
    return (student - teacher).square().sum() / max(count * (count - 1), 1)


class SpectralMatchingLoss(nn.Module):
    """Aligns the student's maps with the teacher's targets, level by level, and measures what is left.

    Args:
        student, teacher: (C, H, W) of the taps of each side.
        target: levels and standardisation; the same object makes the teacher's FTM.
        fam, hidden: see `FAM`.
        level_weights: one factor >= 0 a level, shallow to deep (default: 1 / number of levels).
        frequency_decay: coefficient weights fall as (1 + |frequency|)^-decay; 0 weighs all alike. They belong to the loss,
            not to the target.
        norm: of the errors, see `level_error`.
    """

    def __init__(
        self,
        student: Maps,
        teacher: Maps,
        target: SpectralTarget,
        *,
        fam: FAMForm = "linear",
        hidden: int | None = None,
        level_weights: Sequence[float] | None = None,
        frequency_decay: float = 0.0,
        norm: Norm = "mse",
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise UhkdError(f"unknown norm {norm!r}; expected one of {', '.join(get_args(Norm))}")
        self.norm: Norm = norm
        if target.channels is not None and target.channels < 1:
            raise UhkdError(f"channels must be at least 1 (None keeps all of them), got {target.channels}")
        form = target.levels[0].form
        if target.channels is not None and form not in ("pairs", "area"):
            raise UhkdError(f"channels={target.channels} mixes channels linearly and fits form 'pairs', not {form!r}")
        count = len(target.levels)
        if level_weights is not None and (len(level_weights) != count or min(level_weights) < 0):
            raise UhkdError(f"level_weights needs {count} factors >= 0, one a matched level, got {list(level_weights)}")
        self.level_weights = tuple(level_weights or [1 / count] * count)
        self.taps = tuple(level.student for level in target.levels)
        self.frequencies = tuple(radial_frequencies(level.size, level.form) for level in target.levels)
        self.fams = nn.ModuleList()
        for i, (level, shape) in enumerate(zip(target.levels, ftm_shapes(target, teacher), strict=True)):
            self.fams.append(
                FAM(student[level.student], shape, size=level.size, represent=level.form, form=fam, hidden=hidden)
            )
            decay = (1 + self.frequencies[i]).pow(-frequency_decay)
            # A standardised coefficient counts 1 whatever its energy, so the sum is a mean. Raw pairs keep Parseval's scale:
            # their sum is the mean over cells.
            raw = target.standardise == "none" and level.form == "pairs"
            weights = decay if raw else decay / decay.sum()
            self.register_buffer(f"weights{i}", weights, persistent=False)

    def predict(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """The student's maps, aligned: one (B, C_target, K) per level."""
        return tuple(fam(maps[tap]) for fam, tap in zip(self.fams, self.taps, strict=True))

    def forward(self, maps: Sequence[Tensor], targets: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, ""]:
        """sum_l w_l * level_error_l."""
        return self.error(self.predict(maps), targets)

    def error(
        self, predictions: Sequence[Float[Tensor, "b _ _"]], targets: Sequence[Float[Tensor, "b _ _"]]
    ) -> Float[Tensor, ""]:
        """sum_l w_l * level_error_l of what `predict` gave."""
        errors = [
            w * level_error(predicted, target, self.get_buffer(f"weights{i}"), self.norm)
            for i, (w, predicted, target) in enumerate(zip(self.level_weights, predictions, targets, strict=True))
        ]
        return torch.stack(errors).sum()


class MultiLevelLoss(SoftTargetLoss):
    """The objective that UHKD shares with its spatial twins: terms on logits, and matched features at several levels.

    On logits, at one temperature: "inter" and "intra", DIST's correlations of class probabilities; "kl", soft targets, weight 0
    unless asked for. On features: "features", the error of each level; "relations", how alike the images of the batch are to
    each other; "redundancy", weight 0 unless asked for. A subclass says what is matched, by `match_features`; until then
    only logits are asked for.
    """

    default_weights: ClassVar = {
        "kl": 0.0,
        "inter": 1.0,
        "intra": 1.0,
        "features": 100.0,
        "redundancy": 0.0,
        "relations": 300.0,
    }
    main_term = "features"
    auxiliary_logit_terms = frozenset({"kl", "inter", "intra"})
    balance = "lead"

    def __init__(self, weights: Mapping[str, float] | None, temperature: float) -> None:
        super().__init__(weights, temperature)
        if any(map(self.is_active, self.auxiliary_logit_terms)):
            self.logits = frozenset({"logits"})
            self.needs = Requirements(self.logits, self.logits)

    @property
    def matches(self) -> bool:
        """Whether any term on features counts."""
        return any(map(self.is_active, _ON_FEATURES))

    def match_features(self, shapes: PairShapes, target: SpectralTarget, **settings: Any) -> None:
        """Align the student's maps with `target`; settings as of `SpectralMatchingLoss`."""
        assert shapes.teacher is not None, "subclasses refuse a run without teacher"
        self.match = SpectralMatchingLoss(shapes.student.maps, shapes.teacher.maps, target, **settings)
        self.needs = Requirements(self.logits | {"maps"}, self.logits | {"spectra"}, target)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """The terms whose weight is not 0; "features": sum over levels of w_l times the error of FAM_l(map) to FTM_l(map)."""
        terms = self.soft_targets(student, teacher)
        if self.is_active("inter") or self.is_active("intra"):
            assert student.logits is not None and teacher.logits is not None
            logits = all_gather_batch(student.logits), all_gather_batch(teacher.logits)
            terms |= class_distances(*logits, self.is_active, self.temperature)
        if self.matches:
            assert student.maps is not None and teacher.spectra is not None
            predictions = self.match.predict(student.maps)
            spectra = tuple(map(all_gather_batch, teacher.spectra)) if self.training else teacher.spectra
            if self.is_active("features"):
                terms["features"] = self.match.error(predictions, spectra)
            for name, function in (("redundancy", _spectral_redundancy), ("relations", relation_error)):
                if self.is_active(name):
                    pairs = zip(self.match.level_weights, predictions, spectra, strict=True)
                    terms[name] = torch.stack([w * function(p, t) for w, p, t in pairs]).sum()
        return terms


def _spectral_redundancy(predicted: Float[Tensor, "b c k"], target: Float[Tensor, "b c k"]) -> Float[Tensor, ""]:
    """RSD's `redundancy` between all numbers of a level, divided by their count."""
    return redundancy(predicted.flatten(1), target.flatten(1)) / predicted[0].numel()
