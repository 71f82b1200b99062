"""Multi-level spectral matching: one FAM per matched level, the error of each level, and the loss over logits and levels."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import all_gather_batch
from uhkd.errors import UhkdError, check_choice
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
    """Return the mean over batch and channels of sum_k w_k (predicted - target)^2; with weights 1/K, the plain MSE.

    norm: "mse"; "mae": absolute errors; "log": the logarithm of "mse", so that the gradient does not vanish with the error;
    "log-band": sum over k of w_k times the logarithm of the mean squared error of coefficient k.
    """
    difference = predicted - target
    errors = (difference.abs() if norm == "mae" else difference.square()).mean((0, 1))
    if norm == "log-band":
        errors = errors.clamp_min(1e-8).log()
    error = (errors * weights).sum()
    return error.clamp_min(1e-8).log() if norm == "log" else error


def relation_error(predicted: Float[Tensor, "b c k"], target: Float[Tensor, "b c k"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of both (B,B) matrices of cosine similarities of images, without the diagonal."""
    count = len(predicted)
    with torch.autocast(predicted.device.type, enabled=False):
        units = [F.normalize(x.flatten(1), dim=1) for x in (predicted, target)]
        student, teacher = (x @ x.T for x in units)
    return (student - teacher).square().sum() / max(count * (count - 1), 1)


class SpectralMatchingLoss(nn.Module):
    """Align the student's maps with the teacher's spectra by one FAM per level, and sum the errors of all levels.

    Args:
        student, teacher: (C, H, W) of each feature map of both networks.
        target: levels and standardisation; the teacher's FTM has the same.
        fam, hidden: see `FAM`.
        level_weights: w_l >= 0 of each level, shallow to deep (default: 1 / number of levels).
        frequency_decay: coefficient weights decrease as (1 + |frequency|)^-decay; 0: equal weights. They are part of the
            loss, not of the target.
        norm: see `level_error`.

    Raises:
        UhkdError: for settings out of range, or that do not fit the form of the spectra.
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
        check_choice("norm", norm, Norm)
        self.norm: Norm = norm
        if target.channels is not None and target.channels < 1:
            raise UhkdError(f"channels must be at least 1 (None keeps all of them), got {target.channels}")
        form = target.levels[0].form
        if target.channels is not None and form not in ("pairs", "area"):
            raise UhkdError(f"channels={target.channels} mixes channels linearly and fits form 'pairs', not {form!r}")
        count = len(target.levels)
        if level_weights is not None and (len(level_weights) != count or min(level_weights) < 0):
            raise UhkdError(
                f"level_weights needs {count} factors >= 0, one per matched level, got {list(level_weights)}"
            )
        self.level_weights = tuple(level_weights or [1 / count] * count)
        self.map_indices = tuple(level.student for level in target.levels)
        self.frequencies = tuple(radial_frequencies(level.size, level.form) for level in target.levels)
        self.fams = nn.ModuleList()
        for i, (level, shape) in enumerate(zip(target.levels, ftm_shapes(target, teacher), strict=True)):
            self.fams.append(
                FAM(student[level.student], shape, size=level.size, represent=level.form, form=fam, hidden=hidden)
            )
            decay = (1 + self.frequencies[i]).pow(-frequency_decay)
            # Standardised coefficients have equal variance, so their errors are averaged. Raw pairs have Parseval's scale:
            # the sum of their squares is the mean over cells, so their errors are summed.
            raw = target.standardise == "none" and level.form == "pairs"
            weights = decay if raw else decay / decay.sum()
            self.register_buffer(f"weights{i}", weights, persistent=False)

    def predict(self, maps: Sequence[Tensor]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """Return the predicted spectra (B, C_target, K) of each level from the student's maps (B, C, H, W)."""
        return tuple(fam(maps[i]) for fam, i in zip(self.fams, self.map_indices, strict=True))

    def forward(self, maps: Sequence[Tensor], targets: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, ""]:
        """Return sum_l w_l * level_error_l of the student's maps."""
        return self.error(self.predict(maps), targets)

    def error(
        self, predictions: Sequence[Float[Tensor, "b _ _"]], targets: Sequence[Float[Tensor, "b _ _"]]
    ) -> Float[Tensor, ""]:
        """Return sum_l w_l * level_error_l of predicted spectra."""
        levels = enumerate(zip(self.level_weights, predictions, targets, strict=True))
        errors = [w * level_error(p, t, self.get_buffer(f"weights{i}"), self.norm) for i, (w, p, t) in levels]
        return torch.stack(errors).sum()


class MultiLevelLoss(SoftTargetLoss):
    """The loss of UHKD and its spatial twins: terms on logits, and terms on matched feature maps of several levels.

    On logits, at one temperature: "inter" and "intra" (DIST), "kl" (soft targets, default weight 0). On features: "features"
    (`SpectralMatchingLoss`), "relations" (`relation_error`) and "redundancy" (RSD, default weight 0). Subclasses call
    `match_features`.
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
        """Return whether any term on features is active."""
        return any(map(self.is_active, _ON_FEATURES))

    def match_features(self, shapes: PairShapes, target: SpectralTarget, **settings: Any) -> None:
        """Match the student's maps with `target`; settings: see `SpectralMatchingLoss`."""
        assert shapes.teacher is not None, "constructors of subclasses require a teacher"
        self.match = SpectralMatchingLoss(shapes.student.maps, shapes.teacher.maps, target, **settings)
        self.needs = Requirements(self.logits | {"maps"}, self.logits | {"spectra"}, target)

    def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the active terms. The terms on features are sums over levels of w_l times the error of FAM_l to FTM_l."""
        terms = self.soft_targets(student, teacher)
        correlations = [term for term in ("inter", "intra") if self.is_active(term)]
        if correlations:
            assert student.logits is not None and teacher.logits is not None
            logits = all_gather_batch(student.logits), all_gather_batch(teacher.logits)
            terms |= class_distances(*logits, self.temperature, correlations)
        if self.matches:
            assert student.maps is not None and teacher.spectra is not None
            predictions = self.match.predict(student.maps)
            spectra = tuple(map(all_gather_batch, teacher.spectra)) if self.training else teacher.spectra
            if self.is_active("features"):
                terms["features"] = self.match.error(predictions, spectra)
            for name, function in (("redundancy", _spectral_redundancy), ("relations", relation_error)):
                if self.is_active(name):
                    levels = zip(self.match.level_weights, predictions, spectra, strict=True)
                    terms[name] = torch.stack([w * function(p, t) for w, p, t in levels]).sum()
        return terms


def _spectral_redundancy(predicted: Float[Tensor, "b c k"], target: Float[Tensor, "b c k"]) -> Float[Tensor, ""]:
    """Return RSD's `redundancy` of all C * K numbers of a level, divided by their count."""
    return redundancy(predicted.flatten(1), target.flatten(1)) / predicted[0].numel()
