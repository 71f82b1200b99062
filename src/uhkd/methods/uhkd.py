"""UHKD: heterogeneous distillation in the frequency domain (arXiv 2510.24116).

    L = CE(labels) + a * D(teacher logits, student logits) + sum_l w_l * (b * MSE(p_l, t_l) + c * R(p_l, t_l)),
    p_l = FAM_l(student map), t_l = FTM_l(teacher map)

The paper's D is KL. By default ours is DIST's pair of correlations ("inter", "intra"), which suited the students of the search
(docs/ablations.md). R compares the similarities between the images of a batch; it is ours. The paper's form is the weights
kl=1 inter=0 intra=0 relations=0 features=10 (it gives no weights). The cross-entropy is the trainer's; b is the weight
"features", c "relations". FTM is `uhkd.spectral.FTM`, FAM is `uhkd.spectral.fam.FAM`, multi-level matching is
`uhkd.spectral.match_levels`. What the paper's abstract leaves open is an option here; docs/method.md says what each default
rests on.
"""

from collections.abc import Mapping

from uhkd.errors import UhkdError
from uhkd.features import PairShapes
from uhkd.methods.base import teacher_shapes
from uhkd.methods.spectral_matching import MultiLevelLoss, Norm
from uhkd.spectral import Channels, Form, SpectralTarget, Standardise, match_levels, resolve_channels
from uhkd.spectral.fam import FAMForm


class UHKD(MultiLevelLoss):
    """Frequency-domain matching of intermediate features at several levels, beside a term on logits.

    Args:
        radius: frequencies kept per axis, 1..floor((n-1)/2) of the smaller grid; (2*radius+1)^2 numbers a
            channel as pairs, about half as many as amplitudes.
        form: "pairs" (cosines and sines), "amplitude", "log-amplitude".
        standardise: of the teacher's coefficients: "none", "channel", "coefficient".
        channels: keep so many principal channels of the teacher (None: all; "auto": 64, or all for amplitudes).
        fam, hidden: the alignment's form, see `FAM`.
        level_weights, frequency_decay, norm: see `SpectralMatchingLoss`.
        whiten: 0..1, how far the spread of the teacher's principal channels is evened out.
        temperature: T of the terms on logits, above 0.

    Raises:
        UhkdError: for settings out of range, or maps of which fewer than two levels reach 3x3.
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
            raise UhkdError("form 'area' is spatial: use method 'twin_a'; uhkd takes pairs, amplitude or log-amplitude")
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
