"""The balance that follows the teacher's lead over the student."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from uhkd.distributed import world_size
from uhkd.recipe.balance import LeadSettings
from uhkd.training.balance.base import SMALLEST, Factors


class Lead(Factors):
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
        prediction = student.argmax(1)
        label = None if target is None else target.argmax(1)
        counts = []
        for place, logits in enumerate(teachers):
            if logits is None or not self.led[place]:
                counts.append(torch.zeros_like(self.pending[place]))
                continue
            theirs = logits.argmax(1)
            right = theirs if label is None else label
            counts.append(torch.stack([prediction, theirs, right]).eq(right).sum(1))
        self.pending += counts[0] if len(counts) == 1 else torch.stack(counts)

    @torch.no_grad()
    def update(self, images: int) -> None:
        """Update the running means and the factors after an optimiser step."""
        if world_size() > 1:
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
        return student / teacher.clamp_min(SMALLEST)
