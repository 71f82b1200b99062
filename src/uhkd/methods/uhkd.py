"""UHKD: heterogeneous distillation in the frequency domain (arXiv 2510.24116).

    L = CE(labels) + a * T^2 * KL(teacher || student; T) + b * sum_l w_l * MSE(FAM_l(student map), FTM_l(teacher map))

The cross-entropy is the engine's; a and b are the weights "kl" and "features". FTM is `uhkd.spectral.FTM`, FAM is
`uhkd.alignment.FAM`, multi-level matching is `uhkd.spectral.match_levels`. What the paper's abstract leaves open is an option
here; docs/method.md says what each default rests on.
"""

from collections.abc import Mapping

from uhkd.alignment import FAMForm
from uhkd.methods.base import teacher_shapes
from uhkd.methods.matching import MatchingDistiller, Norm
from uhkd.spectral import Channels, Form, SpectralTarget, Standardise, match_levels, settle_channels
from uhkd.taps import Shapes


class UHKD(MatchingDistiller):
    """Frequency-domain matching of intermediate features at several levels, with soft targets.

    Args:
        radius: frequencies kept per axis, 1..floor((n-1)/2) of the smaller grid; (2*radius+1)^2 numbers a
            channel as pairs, about half as many as amplitudes.
        form: "pairs" (cosines and sines), "amplitude", "log-amplitude".
        standardise: of the teacher's coefficients: "none", "channel", "coefficient".
        channels: keep so many principal channels of the teacher (None: all; "auto": 64, or all for amplitudes).
        fam, hidden: the alignment's form, see `FAM`.
        level_weights, frequency_decay: see `LevelMatching`.
        temperature: T of the soft targets, above 0.

    Raises:
        ValueError: for settings out of range, or maps of which fewer than two levels reach 3x3.
    """

    knob = ("radius", (2, 3))

    def __init__(
        self,
        shapes: Shapes,
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
            raise ValueError(
                "form 'area' is spatial: use method 'twin_a'; uhkd takes pairs, amplitude or log-amplitude"
            )
        if self.matches:
            levels = match_levels(shapes.student.maps, teacher.maps, radius, form)
            self.match_features(
                shapes,
                SpectralTarget(levels, standardise, settle_channels(channels, form), whiten),
                fam=fam,
                hidden=hidden,
                level_weights=level_weights,
                frequency_decay=frequency_decay,
                norm=norm,
            )
