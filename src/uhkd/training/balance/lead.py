"""The balance "lead": factors that follow the teacher's lead over the student in accuracy."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from uhkd.distributed import world_size
from uhkd.recipe.balance import LeadSettings
from uhkd.training.balance.base import SMALLEST, Factors

_NO_LIMIT = 2.0  # of an accuracy


class Lead(Factors):
    """Factors from the teacher's lead over the student: factor = min(1, lead / gate)^power, times the group's schedule.

    lead = max(0, 1 - a_s / a_t), where a_s and a_t are running means of the accuracies of student and teacher on the training
    views. Because training images may be memorised, a_t is at most the teacher's accuracy on held-out images, and a_s is reduced
    by the factor by which it was more than `margin` times the student's held-out accuracy at the last validation. Both held-out
    accuracies are uncertain: that of the teacher counts with one standard error more, the student's with one less. The label of a
    mixed image is that of its largest share. Without labels the teacher's prediction is the label, so a_t = 1. A teacher without
    usable logits has lead 1 throughout: its terms follow the schedule alone.

    Args:
        groups: see `Balance`.
        settings: gates, powers, schedules, measure and window.
        has_accuracy: for each teacher, whether its accuracy can be computed from its logits.
        bounds: for each teacher, the upper limit of its accuracy, 0..1; None, or empty: no limit, also not of the student's.
    """

    counts: Tensor
    pending: Tensor
    slopes: Tensor
    _powers: Tensor
    bounds: Tensor
    bound_errors: Tensor
    student_scale: Tensor

    def __init__(
        self,
        groups: Mapping[str, int],
        settings: LeadSettings,
        has_accuracy: Sequence[bool],
        bounds: Sequence[float | None] = (),
    ) -> None:
        super().__init__(groups, (settings.features_fall, settings.logits_fall))
        self.settings, self.has_accuracy = settings, tuple(has_accuracy)
        # for each teacher: correct predictions of the student, those of the teacher, images; `counts` decays
        self.register_buffer("counts", torch.zeros(len(has_accuracy), 3))
        self.register_buffer("pending", torch.zeros(len(has_accuracy), 3))
        # factor = min(1, slope * lead)^power; a slope of 0 closes a group
        self.register_buffer(
            "slopes",
            torch.tensor([settings.features_gate, settings.logits_gate]).reciprocal().repeat(len(has_accuracy), 1),
        )
        self.register_buffer(
            "_powers", torch.tensor([settings.features_power, settings.logits_power]), persistent=False
        )
        # in the checkpoint, because a resumed training does not evaluate its teacher again
        known = [None] * len(has_accuracy) if settings.bound == "none" or not bounds else bounds
        self.register_buffer(
            "bounds", torch.tensor([_NO_LIMIT if bound is None else bound for bound in known])[:, None]
        )
        self.register_buffer("bound_errors", torch.zeros_like(self.bounds))
        self.register_buffer("student_scale", torch.ones(()))
        self.register_load_state_dict_pre_hook(_add_buffers)

    def reads_logits_of(self, teacher: int) -> bool:
        """Return whether the lead of a teacher is measured."""
        return self.has_accuracy[teacher]

    @torch.no_grad()
    def observe(self, student: Tensor | None, teachers: Sequence[Tensor | None], target: Tensor | None) -> None:
        """Count correct predictions in one forward pass: logits (B, K) of the student and of each teacher, targets (B, K)."""
        if student is None:
            return
        prediction = student.argmax(1)
        label = None if target is None else target.argmax(1)
        counts = []
        for index, logits in enumerate(teachers):
            if logits is None or not self.has_accuracy[index]:
                counts.append(torch.zeros_like(self.pending[index]))
                continue
            teacher_prediction = logits.argmax(1)
            correct = teacher_prediction if label is None else label
            counts.append(torch.stack([prediction, teacher_prediction, correct]).eq(correct).sum(1))
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

    def validated(self, accuracy: float, images: int | None = None) -> None:
        """Compare the student's accuracy on held-out images, 0..1, with that on the training views, if both are limited.

        images: number of held-out images; None: so many that the accuracies on them are exact.
        """
        if self.settings.bound == "both" and bool((self.bounds < _NO_LIMIT).all()):
            student, _, views = self.counts[self.counts[:, 2].argmax()].tolist()
            limit = self.settings.margin * max(0.0, accuracy - standard_error(accuracy, images)) * views
            self.student_scale.fill_(limit / student if limit < student else 1.0)
            errors = [standard_error(bound, images) for bound in self.bounds.flatten().tolist()]
            self.bound_errors.copy_(torch.tensor(errors)[:, None])

    def close_zero_groups(self) -> list[int]:
        """Return the groups whose factors were 0 in every step since the last call, and close them."""
        groups = super().close_zero_groups()
        if groups:
            self.slopes.view(-1)[[group - 1 for group in groups]] = 0
        return groups

    def columns(self, step: int, total: int) -> dict[str, float]:
        """Return also lead (lead_1, lead_2 of several teachers) if a gate depends on it; 0 once all its gates are closed."""
        columns, leads, closed = super().columns(step, total), self.lead().tolist(), set(self.closed_groups)
        powers = self.settings.features_power, self.settings.logits_power
        for index in sorted({(group - 1) // 2 for group in self.used_groups}):
            groups = {group for group in self.used_groups if (group - 1) // 2 == index}
            if self.has_accuracy[index] and any(powers[(group - 1) % 2] for group in groups):
                # `lead` has no meaning after that: nothing is counted without the teacher's logits, and old counts decay
                columns["lead" if self.size == 3 else f"lead_{index + 1}"] = 0.0 if groups <= closed else leads[index]
        return columns

    def described(self) -> list[str]:
        """Return lines for the log: how each group's weight changes."""
        settings, lines = self.settings, []
        kinds = [
            ("feature terms", settings.features_gate, settings.features_power, settings.features_fall),
            ("logit terms", settings.logits_gate, settings.logits_power, settings.logits_fall),
        ]
        for kind in sorted({(group - 1) % 2 for group in self.used_groups}):
            name, gate, power, fall = kinds[kind]
            opened = "lead" if gate == 1 else f"min(1, lead / {gate:g})"
            factors = [opened if power == 1 else f"{opened}^{power:g}"] if any(self.has_accuracy) and power else []
            factors += [f"{fall} decrease to 0"] if fall != "constant" else []
            lines.append(f"balance: {' * '.join([f'{name}: weight', *factors])}")
        if unmeasured := [str(index + 1) for index, measured in enumerate(self.has_accuracy) if not measured]:
            which = "the teacher" if len(self.has_accuracy) == 1 else f"teacher {' and '.join(unmeasured)}"
            lines.append(f"{which} has no logits of these classes: its lead is not measured and counts as 1")
        return lines

    def lead(self) -> Float[Tensor, " t"]:
        """Return the lead of each teacher, 0..1; 1 before anything was counted."""
        return (1 - self._ratio()).clamp_min(0).flatten()

    def _ratio(self) -> Float[Tensor, "t 1"]:
        student, teacher, images = self.counts.split(1, 1)
        student = student * self.student_scale
        teacher = torch.minimum(teacher, (self.bounds + self.bound_errors) * images)
        if self.settings.measure == "odds":
            student, teacher = student * (images - teacher), teacher * (images - student)
        return student / teacher.clamp_min(SMALLEST)


def standard_error(accuracy: float, images: int | None) -> float:
    """Return the standard error of an accuracy, 0..1, on a number of images, larger than 0 at 0 and 1; 0 for None.

    The variance is that with one right and one wrong prediction more.
    """
    if images is None:
        return 0.0
    rate = (accuracy * images + 1) / (images + 2)
    return math.sqrt(rate * (1 - rate) / images)


def _add_buffers(lead: Lead, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Add the buffers that checkpoints made before 2 December 2026 may lack."""
    state.setdefault(f"{prefix}student_scale", torch.ones_like(lead.student_scale))
    state.setdefault(f"{prefix}bound_errors", torch.zeros_like(lead.bound_errors))
