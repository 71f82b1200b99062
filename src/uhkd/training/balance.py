"""How much the teacher's terms count: factors on the weights of feature and logit terms that change during a training.

Each teacher has two groups of terms, "features" and "logits"; a group has one factor. Schedules are plain numbers by step. The
balances "lead", "cap" and "famo" are tensors on the device, part of the checkpoint, and alike in all processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from uhkd.distributed import processes
from uhkd.methods import DistillationLoss, place_of
from uhkd.recipe.balance import CapSettings, FamoSettings, LeadSettings, Settings, balance_settings
from uhkd.training.schedule import weights_factor

GROUPS = ("features", "logits")
_SMALLEST = 1e-8  # of a loss whose logarithm is taken, and of a count that is divided by

Norms = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Weights of the terms -> norm of each weighted term's gradient."""


def group_of(distiller: DistillationLoss, term: str) -> str:
    """Return "logits" for a term that compares logits, else "features"."""
    return "logits" if distiller.is_logit_method or term in distiller.companions else "features"


class Balance(nn.Module):
    """Schedules alone: factors that are known before the training. Base of the balances that look at the training.

    Args:
        rows: place of each term's group, 1 + 2 * teacher + (0 features, 1 logits), by the term's full name; "ce" has place 0.
        falls: schedule of feature terms and of logit terms.
    """

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__()
        self.rows, self.falls = dict(rows), falls
        self.size = 1 + 2 * (1 + max((row - 1) // 2 for row in rows.values()))
        self._index: dict[tuple[str, ...], Tensor] = {}

    def reads_logits_of(self, teacher: int) -> bool:
        """Whether it reads the logits of a teacher, counted from 0."""
        return False

    def scheduled(self, weights: Mapping[str, float], step: int, total: int) -> dict[str, float]:
        """Return the weights of all terms at step 0 <= step < total, by the schedules alone."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {name: w * fall[(self.rows[name] - 1) % 2] if name in self.rows else w for name, w in weights.items()}

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return the summands of the loss from the weighted terms `names`."""
        return weighted

    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Note logits (B, K) of one forward pass and its targets (B, K); nothing waits for the device."""

    def update(self, images: int) -> None:
        """Fold in what was noted since the last update: one optimiser step of `images` images in all processes together."""

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure before a step what a balance needs beside its losses. `norms` waits for the device."""

    def gates(self) -> dict[int, float]:
        """Return the current factor of each place that has a term, without its schedule (this waits for the device)."""
        return dict.fromkeys(sorted(set(self.rows.values())), 1.0)

    def factors(self, step: int, total: int) -> dict[str, float]:
        """Return the whole factor of each group at a step, by its label."""
        fall = [weights_factor(step, total, schedule) for schedule in self.falls]
        return {self.label(row): gate * fall[(row - 1) % 2] for row, gate in self.gates().items()}

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return what a row of metrics.csv says of the balance at a step: factor_GROUP, the whole factor of each group."""
        return {f"factor_{name}": factor for name, factor in self.factors(step, total).items()}

    def gated(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights by name, times the current factors without their schedules."""
        gates = self.gates()
        return {name: w * gates[self.rows[name]] if name in self.rows else w for name, w in weights.items()}

    def outgrown(self) -> list[int]:
        """Return the places whose factors were 0 since the last call, closed for good (this waits for the device)."""
        return []

    @property
    def closed_rows(self) -> list[int]:
        """Places that were closed (this waits for the device)."""
        return []

    def label(self, row: int) -> str:
        """Return the name of a group, with the number of its teacher among several: "features", "2:logits"."""
        teacher, group = divmod(row - 1, 2)
        return GROUPS[group] if self.size == 3 else f"{teacher + 1}:{GROUPS[group]}"

    def _of(self, names: Sequence[str], device: torch.device) -> Tensor:
        key = tuple(names)
        if key not in self._index or self._index[key].device != device:
            self._index[key] = torch.tensor([self.rows.get(name, 0) for name in names], device=device)
        return self._index[key]


class _Factors(Balance):
    """A balance with one factor a group on the device."""

    factor: Tensor
    highest: Tensor
    closed: Tensor

    def __init__(self, rows: Mapping[str, int], falls: tuple[str, str]) -> None:
        super().__init__(rows, falls)
        self.register_buffer("factor", torch.ones(self.size))
        self.register_buffer("highest", torch.ones(self.size))
        self.register_buffer("closed", torch.zeros(self.size, dtype=torch.bool))

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return weighted terms times the factors of their groups."""
        return weighted * self.factor[self._of(names, weighted.device)]

    def gates(self) -> dict[int, float]:
        """Return the current factor of each place that has a term."""
        values = self.factor.tolist()
        return {row: values[row] for row in sorted(set(self.rows.values()))}

    def outgrown(self) -> list[int]:
        """Return the places whose factors were 0 in every step since the last call, now closed."""
        rows = sorted(set(self.rows.values()))
        found = [
            row
            for row, high, closed in zip(rows, self.highest[rows].tolist(), self.closed[rows].tolist(), strict=True)
            if high == 0 and not closed
        ]
        if found:
            self.closed[found] = True
        self.highest.copy_(self.factor)
        return found

    @property
    def closed_rows(self) -> list[int]:
        """Places that were closed."""
        return self.closed.nonzero().flatten().tolist()


class Lead(_Factors):
    """Gates on the teacher's lead over the student: factor = min(1, lead / gate)^power, times the group's schedule.

    lead = max(0, 1 - a_s / a_t), where a_s and a_t are running means of the accuracies of student and teacher on the training
    views: of a mixed image its largest share counts; without labels the teacher's own choice is right, so a_t = 1. A teacher
    without usable logits has lead 1 throughout: its terms follow the schedule alone.

    Args:
        rows: see `Balance`.
        settings: gates, powers, schedules, measure and window.
        led: of each teacher, whether its logits tell its accuracy.
        bounds: of each teacher, the largest accuracy it is credited with, 0..1; empty for none.
    """

    counts: Tensor
    pending: Tensor
    slopes: Tensor
    _powers: Tensor
    bounds: Tensor

    def __init__(
        self, rows: Mapping[str, int], settings: LeadSettings, led: Sequence[bool], bounds: Sequence[float] = ()
    ) -> None:
        super().__init__(rows, (settings.features_fall, settings.logits_fall))
        self.settings, self.led = settings, tuple(led)
        # for each teacher: right answers of the student, right answers of the teacher, images; `counts` decays
        self.register_buffer("counts", torch.zeros(len(led), 3))
        self.register_buffer("pending", torch.zeros(len(led), 3))
        # factor = min(1, slope * lead)^power; a slope of 0 closes a group
        self.register_buffer(
            "slopes", torch.tensor([settings.features_gate, settings.logits_gate]).reciprocal().repeat(len(led), 1)
        )
        self.register_buffer(
            "_powers", torch.tensor([settings.features_power, settings.logits_power]), persistent=False
        )
        # in the checkpoint: a training that is resumed does not measure its teacher again
        bounded = settings.bound == "held-out" and len(bounds) > 0
        self.register_buffer("bounds", torch.tensor(bounds)[:, None] if bounded else torch.ones(len(led), 1))

    def reads_logits_of(self, teacher: int) -> bool:
        """Whether the lead of a teacher is measured."""
        return self.led[teacher]

    @torch.no_grad()
    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Count the right answers of one forward pass: logits (B, K) of the student and of each teacher, targets (B, K)."""
        if student is None:
            return
        said = student.argmax(1)
        label = None if target is None else target.argmax(1)
        counts = []
        for place, logits in enumerate(teachers):
            if logits is None or not self.led[place]:
                counts.append(torch.zeros_like(self.pending[place]))
                continue
            theirs = logits.argmax(1)
            right = theirs if label is None else label
            counts.append(torch.stack([said, theirs, right]).eq(right).sum(1))
        self.pending += counts[0] if len(counts) == 1 else torch.stack(counts)

    @torch.no_grad()
    def update(self, images: int) -> None:
        """Update the running means and the factors after an optimiser step."""
        if processes() > 1:
            dist.all_reduce(self.pending)
        torch.add(self.pending, self.counts, alpha=math.exp(-images / self.settings.window), out=self.counts)
        self.pending.zero_()
        gate = torch.addcmul(self.slopes, self.slopes, self._ratio(), value=-1).clamp(0, 1)
        torch.pow(gate, self._powers, out=self.factor[1:].view_as(gate))
        torch.maximum(self.highest, self.factor, out=self.highest)

    def outgrown(self) -> list[int]:
        """Return the places whose factors were 0 in every step since the last call, now closed."""
        found = super().outgrown()
        if found:
            self.slopes.view(-1)[[row - 1 for row in found]] = 0
        return found

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return also lead (lead_1, lead_2 of several teachers) where a gate follows it; 0 once all its gates are closed."""
        found, leads, closed = super().columns(step, total), self.lead().tolist(), set(self.closed_rows)
        powers = self.settings.features_power, self.settings.logits_power
        for place in sorted({(row - 1) // 2 for row in self.rows.values()}):
            own = {row for row in self.rows.values() if (row - 1) // 2 == place}
            if self.led[place] and any(powers[(row - 1) % 2] for row in own):
                # without the teacher's logits its counts fade away, and with them what `lead` says
                found["lead" if self.size == 3 else f"lead_{place + 1}"] = 0.0 if own <= closed else leads[place]
        return found

    def described(self) -> list[str]:
        """Return lines that say how each group's weight changes."""
        own, lines = self.settings, []
        groups = {(row - 1) % 2 for row in self.rows.values()}
        kinds = [
            ("feature terms", own.features_gate, own.features_power, own.features_fall),
            ("logit terms", own.logits_gate, own.logits_power, own.logits_fall),
        ]
        for group in sorted(groups):
            name, gate, power, fall = kinds[group]
            opened = "lead" if gate == 1 else f"min(1, lead / {gate:g})"
            parts = [opened if power == 1 else f"{opened}^{power:g}"] if any(self.led) and power else []
            parts += [f"a {fall} fall"] if fall != "constant" else []
            lines.append(f"balance: weights of {name} x {' x '.join(parts) or '1'}")
        if unled := [str(place + 1) for place, led in enumerate(self.led) if not led]:
            which = "the teacher" if len(self.led) == 1 else f"teacher {' and '.join(unled)}"
            lines.append(f"{which} has no logits of these classes: its lead is not measured and counts as 1")
        return lines

    def lead(self) -> Float[Tensor, " t"]:
        """Return the lead of each teacher, 0..1; 1 before anything was counted."""
        return (1 - self._ratio()).clamp_min(0).flatten()

    def _ratio(self) -> Float[Tensor, "t 1"]:
        student, teacher, images = self.counts.split(1, 1)
        teacher = torch.minimum(teacher, self.bounds * images)
        if self.settings.measure == "odds":
            student, teacher = student * (images - teacher), teacher * (images - student)
        return student / teacher.clamp_min(_SMALLEST)


class Cap(_Factors):
    """A bound on the feature terms: their gradient is at most `ratio` times the cross-entropy's, both by the student's weights.

    Measured every few steps on the first images of the batch, where a term's own norm stands for its group's: the sum of the
    norms bounds the norm of the sum.

    Raises:
        ValueError: where there is no cross-entropy to compare with.
    """

    def __init__(self, rows: Mapping[str, int], settings: CapSettings) -> None:
        super().__init__(rows, ("constant", "constant"))
        self.settings = settings

    def measure(self, step: int, norms: Norms, weights: Mapping[str, float]) -> None:
        """Measure the gradients, if it is time, and set the factors of the feature terms."""
        if step % self.settings.every:
            return
        found = norms(weights)
        if "ce" not in found:
            return
        for row in {row for row in self.rows.values() if row % 2}:
            features = sum(norm for name, norm in found.items() if self.rows.get(name) == row)
            self.factor[row] = min(1.0, self.settings.ratio * found["ce"] / max(features, _SMALLEST))
        torch.maximum(self.highest, self.factor, out=self.highest)


class Famo(Balance):
    """Fast adaptive multitask optimisation (Liu et al. 2023, arXiv 2306.03792, Algorithm 1) over cross-entropy and groups.

    The loss is c * sum_k z_k log(l_k) with z = softmax(xi) and c = 1 / sum_k (z_k / l_k), so its gradient is the mean of the
    groups' gradients that lowers all logarithms alike. xi moves against the improvement of each logarithm; as the paper's text
    allows, the improvement is read from the next batch instead of a second pass over this one.
    """

    xi: Tensor
    before: Tensor
    now: Tensor
    passes: Tensor

    def __init__(self, rows: Mapping[str, int], settings: FamoSettings) -> None:
        super().__init__(rows, ("constant", "constant"))
        self.settings = settings
        for name in ("xi", "before", "now"):
            self.register_buffer(name, torch.zeros(self.size))
        self.register_buffer("passes", torch.zeros(2))  # forward passes that `before` and `now` sum up

    def balanced(self, names: Sequence[str], weighted: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
        """Return c * z_k log(l_k) of each group that has a term among `names`, zeros for the others."""
        index = self._of(names, weighted.device)
        used = sorted({self.rows.get(name, 0) for name in names})
        losses = weighted.new_zeros(self.size).index_add(0, index, weighted)[used].clamp_min(_SMALLEST)
        z = self.xi[used].softmax(0)
        logs = losses.log()
        with torch.no_grad():
            if self.training:
                self.now[used] += logs
                self.passes[1] += 1
            scale = 1 / (z / losses).sum()
        return scale * z * logs

    @torch.no_grad()
    def update(self, images: int) -> None:
        """Move xi by how much each logarithm fell since the last step."""
        mean = self.now / self.passes[1].clamp_min(1)
        if processes() > 1:
            dist.all_reduce(mean)
            mean /= processes()
        used = sorted({0, *self.rows.values()})
        fell = (self.before - mean)[used] * self.passes[0]
        z = self.xi[used].softmax(0)
        self.xi[used] -= self.settings.rate * (z * (fell - (z * fell).sum()) + self.settings.decay * self.xi[used])
        self.before.copy_(mean)
        self.passes[0] = 1
        self.now.zero_()
        self.passes[1] = 0

    def gates(self) -> dict[int, float]:
        """Return each group's share z."""
        used = sorted({0, *self.rows.values()})
        return {row: share for row, share in zip(used, self.xi[used].softmax(0).tolist(), strict=True) if row}


def make_balance(
    name: str,
    settings: Mapping[str, Any],
    distillers: nn.ModuleDict,
    *,
    led: Sequence[bool] = (),
    bounds: Sequence[float] = (),
    labels: bool = True,
) -> Balance | None:
    """Return the balance of the terms of `distillers`; None where all weights are constant.

    Args:
        name: of `uhkd.recipe.balance.BalanceName`.
        settings: see there.
        distillers: by full name, as of `StudentWithLosses`.
        led: of each teacher, whether its logits tell its accuracy on these classes.
        bounds: of each teacher, its accuracy on held-out images, 0..1; empty where it is not known.
        labels: whether the images have labels.

    Raises:
        ValueError: for unknown or impossible settings, or a balance that needs labels without them.
    """
    checked: Settings = balance_settings(name, settings)
    rows = {
        f"{key}.{term}": 1 + 2 * place_of(key) + GROUPS.index(group_of(distiller, term))
        for key, distiller in distillers.items()
        if isinstance(distiller, DistillationLoss)
        for term in distiller.weights
    }
    if not rows or name == "constant":
        return None
    if isinstance(checked, LeadSettings):
        return Lead(rows, checked, led or [False], bounds)
    if isinstance(checked, CapSettings):
        if not labels:
            raise ValueError(
                "balance cap compares with the gradient of the labels' term, and these images have no labels"
            )
        return Cap(rows, checked)
    return Famo(rows, checked) if isinstance(checked, FamoSettings) else Balance(rows, (name, name))
