"""UHKD: heterogeneous distillation in the frequency domain (arXiv 2510.24116).

    L = CE(labels) + a * D(teacher logits, student logits) + sum_l w_l * (b * MSE(p_l, t_l) + c * R(p_l, t_l)),
    p_l = FAM_l(student map), t_l = FTM_l(teacher map)

D is KL in the paper. The default here is DIST's pair of correlations ("inter", "intra"), which was better for the students
in docs/ablations.md. R compares similarities between the images of a batch and is not in the paper. The weights kl=1 inter=0
intra=0 relations=0 features=10 give the paper's form (the paper gives no weights). The trainer adds the cross-entropy; b is
the weight "features", c the weight "relations". FTM: `uhkd.spectral.FTM`; FAM: `uhkd.spectral.fam.FAM`; multi-level
matching: `uhkd.spectral.match_levels`. Choices that the paper's abstract leaves open are settings here; docs/method.md
gives the reason for each default.
"""

from collections.abc import Mapping

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import teacher_shapes
from uhkd.methods.spectral_matching import MultiLevelLoss, Norm
from uhkd.spectral import Channels, Form, SpectralTarget, Standardise, match_levels, resolve_channels
from uhkd.spectral.fam import FAMForm


class UHKD(MultiLevelLoss):
    """Match feature maps of several levels in the frequency domain, and logits.

    Args:
        radius: number of frequencies per axis, 1..floor((n-1)/2) of the smaller grid: (2*radius+1)^2 numbers per channel as
            pairs, about half as many as amplitudes.
        form: "pairs" (cosines and sines), "amplitude" or "log-amplitude".
        standardise: standardisation of the teacher's coefficients: "none", "channel" or "coefficient".
        channels: number of principal channels of the teacher (None: all; "auto": 64, or all for amplitudes).
        fam, hidden: form of the alignment, see `FAM`.
        level_weights, frequency_decay, norm: see `SpectralMatchingLoss`.
        whiten: 0..1, how far the variances of the teacher's principal channels are equalised.
        temperature: T > 0 of the terms on logits.

    Raises:
        UhkdError: for settings out of range, or fewer than two levels with grids of 3x3 or more.
    """

    tunable = ("radius", (2, 3))

    def __init__(
        self,
        shapes: PairShapes,
        weights: Mapping[str, float] | None = None,
        *,
        radius: int = 1,
        form: Form = "pairs",
        standardise: Standardise = "coefficient",
        channels: Channels = "auto",
        fam: FAMForm = "linear",
        hidden: int | None = None,
        level_weights: tuple[float, ...] | None = None,
        frequency_decay: float = 0.0,
        whiten: float = 0.0,
        norm: Norm = "mse",
        temperature: float = 4.0,
    ) -> None:
        teacher = teacher_shapes(shapes, "uhkd")
        super().__init__(weights, temperature)
        if form == "area":
            raise UhkdError("form 'area' is spatial; use method 'twin_a', or form pairs, amplitude or log-amplitude")
        if self.matches:
            levels = match_levels(shapes.student.maps, teacher.maps, radius, form)
            self.match_features(
                shapes,
                SpectralTarget(levels, standardise, resolve_channels(channels, form), whiten),
                fam=fam,
                hidden=hidden,
                level_weights=level_weights,
                frequency_decay=frequency_decay,
                norm=norm,
            )
