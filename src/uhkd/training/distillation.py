"""Distillation for a loop of one's own: teacher, student and method in one module, whose call on a batch returns the loss."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uhkd.data import Batch
from uhkd.distributed import world_size
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, NetworkOutput, PairShapes
from uhkd.methods import DistillationLoss, build_losses, default_balance, parse_methods
from uhkd.models import create, has_weights, native_preprocessing, native_size_of, save, wrap_module
from uhkd.spectral import FTM
from uhkd.training import StudentWithLosses, Teacher, calibrate, make_balance, weighted_sum

Network = str | Path | nn.Module
"""A network by name, by its run folder, or as a module."""
Levels = int | Sequence[int | str]
"""How many layers are matched, or which."""
_CALIBRATION_IMAGES = 1024
_MARGIN = 0.5  # what resizing overshoots by is less; normalised images and bytes reach further


class Distillation(nn.Module):
    """A student, its method's layers and a sealed teacher; called on a batch it returns the loss and its named terms.

    Its parameters are the student's and those of the method, never the teacher's. Its state, for checkpoints, holds these and the
    statistics of the teacher's spectra. Numbers are those of `uhkd.distill` on the same batch.

    Images are in [0,1] by default, of any size: each network resizes and normalises for itself. Give `mean` and `std` where your
    transforms have normalised them already: a student given as a module then sees your images as they are, and for the teacher
    they are turned into what it wants (a timm or transformers model says; another module gets yours).

    Args:
        teacher: a module of your own, or a name as `uhkd.create` takes it; None: for methods without one.
        student: likewise; a module is trained in place.
        method: a name of `docs/methods.md`, or several joined by "+".
        num_classes: of the student's head; it must fit the labels.
        image_size: the student's, one side or (height, width) in pixels, and of a teacher that takes any; None: each network's
            own (modules that do not say: 224).
        num_samples: training images, for methods that remember each of them.
        settings: of the method, as in `--settings`.
        weights: of its terms, as in `--weights`; "ce" is the cross-entropy's.
        label_smoothing: of the cross-entropy, 0..1.
        balance: how much the teacher's terms count over the training, as in `--balance`; None: the method's own.
        balance_settings: of the balance, as in `--balance-settings`.
        total_steps: calls in training mode that the whole training makes, for balances that fall over it.
        mean: by which images come normalised, three numbers; None: they are in [0,1].
        std: likewise.
        student_start: "random", "pretrained" or a weights file, for a student given by name.
        teacher_start: likewise; None: its own weights, or pretrained ones.
        student_options: keyword arguments of the constructor of a student given by name.
        teacher_options: likewise.
        student_levels: how many layers to match, or which.
        teacher_levels: likewise.
        seed: of the first weights of what is built here; a module's own are left alone.

    Raises:
        UhkdError: for anything that cannot be used as asked.
    """

    mean: Tensor | None
    std: Tensor | None
    steps: Tensor

    def __init__(
        self,
        teacher: Network | None,
        student: Network,
        *,
        method: str = "uhkd",
        num_classes: int,
        image_size: int | Sequence[int] | None = None,
        num_samples: int | None = None,
        settings: Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        label_smoothing: float = 0.1,
        balance: str | None = None,
        balance_settings: Mapping[str, Any] | None = None,
        total_steps: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        student_start: str | Path = "random",
        teacher_start: str | Path | None = None,
        student_options: Mapping[str, Any] | None = None,
        teacher_options: Mapping[str, Any] | None = None,
        student_levels: Levels = 4,
        teacher_levels: Levels = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        parse_methods(method, settings, weights)
        if (mean is None) != (std is None):
            raise UhkdError(f"mean and std belong together; found mean {mean} and std {std}")
        with torch.random.fork_rng([]):  # alike in every process, whatever was drawn before
            torch.manual_seed(seed)
            norms = {} if mean is None else {"mean": mean, "std": std}
            if isinstance(student, nn.Module):
                student = _wrapped(student, num_classes, image_size, student_levels, norms)
            else:
                options = {"start": student_start, "image_size": image_size, "options": student_options}
                student = create(str(student), num_classes=num_classes, levels=student_levels, **options)
            device = next(student.parameters()).device
            if isinstance(teacher, nn.Module):
                # it was made for images of its own, where it says so
                own = {} if native_preprocessing(teacher) else norms
                teacher = _wrapped(teacher, None, native_size_of(teacher) or image_size, teacher_levels, own).to(device)
            elif teacher is not None:
                start = teacher_start or ("random" if has_weights(str(teacher)) else "pretrained")
                options = {"start": start, "options": teacher_options}
                teacher = create(str(teacher), num_classes=None, levels=teacher_levels, **options).to(device)
            if teacher is not None and set(map(id, teacher.parameters())) & set(map(id, student.parameters())):
                raise UhkdError("teacher and student share weights, and a teacher's are frozen: give two modules")
            shapes = PairShapes(student.shapes, teacher and teacher.shapes, num_classes, num_samples or 1)
            torch.manual_seed(seed + 1)  # a method's own layers never shift the student's first weights
            distillers = build_losses(method, shapes, settings, weights).to(device)
        own = [d for d in distillers.values() if isinstance(d, DistillationLoss)]
        self.method, self.num_classes, self.num_samples = method, num_classes, num_samples
        self.needs_indices = any(d.needs.index for d in own)
        if self.needs_indices and num_samples is None:
            raise UhkdError(f"{method} keeps a memory of every training image: give num_samples, how many there are")
        led = [teacher is not None and teacher.shapes.logits == num_classes]
        named = make_balance(balance or default_balance(method), balance_settings or {}, distillers, led=led)
        if total_steps is None and named is not None and set(named.falls) != {"constant"}:
            raise UhkdError(
                f"balance {balance} falls over the training: give total_steps, the steps of the whole training"
            )
        self.learner = StudentWithLosses(
            student, distillers, label_smoothing, named if named is None else named.to(device)
        )
        self.total_steps, self._step = total_steps, 0
        if total_steps is not None:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
            self.register_load_state_dict_post_hook(_read_steps)
        target = next((d.needs.target for d in own if d.needs.target is not None), None)
        # in a tuple: no submodule, so in no optimizer and no checkpoint, and never in training mode
        self._teachers: tuple[Teacher, ...] = () if teacher is None else (Teacher(teacher, target),)
        self.ftm: FTM | None = self._teachers[0].ftm if self._teachers else None
        self.weights = self.learner.weights(float((weights or {}).get("ce", 1.0)))
        for name, values in (("mean", mean), ("std", std)):
            norm = None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)
            self.register_buffer(name, norm, persistent=False)
        self._ready = False
        # alike in all processes by themselves, so DDP need not send them at each step
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, self.unsynced_buffers())

    @property
    def student(self) -> FeatureExtractor:
        """The student alone: images in [0,1] -> Signals; `student.module` is the bare network."""
        return self.learner.student

    @property
    def teacher(self) -> FeatureExtractor | None:
        """The sealed teacher, or None."""
        return self._teachers[0].network if self._teachers else None

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has still to be called before the first step."""
        return self.ftm is not None and not bool(self.ftm.calibrated)

    def unsynced_buffers(self) -> list[str]:
        """Names of the buffers that the processes of a training hold alike by themselves."""
        return [name for name, _ in self.named_buffers() if not name.startswith("learner.student.")]

    def no_weight_decay(self) -> set[str]:
        """Parameters that the student's own architecture exempts from weight decay."""
        return {f"learner.{name}" for name in self.learner.no_weight_decay()}

    def calibrate(self, images: Iterable[Any], count: int = _CALIBRATION_IMAGES) -> int:
        """Fix the statistics of the teacher's spectra from the first `count` training images; returns how many were used.

        `images`: batches (B,3,H,W), or tuples that begin with one, as a DataLoader of (image, label) gives them. Does nothing
        where the method reads no spectra. Of several processes the first one's images count.

        Raises:
            UhkdError: for fewer than two images, images that are not in [0,1], or features that are not finite.
        """
        if self.ftm is None:
            return 0
        device = next(self.parameters()).device
        used = calibrate(self._teachers[0], (self._batch(_first(item).to(device)) for item in images), device, count)
        if world_size() > 1:
            for buffer in self.ftm.buffers():
                dist.broadcast(buffer, 0)
        return used

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b k"] | None = None,
        indices: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """(loss, raw terms by name); the loss is the sum of `weights[name]` times the balance's factor times the term.

        labels: classes, or rows of class probabilities (mixup); None: no cross-entropy. indices: positions of the images in the
        training set, for methods that remember each image.

        Raises:
            UhkdError: before `calibrate` where the method needs it, without indices where it needs them, or for images that are
                not in [0,1] (the first batch is looked at: each look makes a GPU wait).
        """
        batch, teacher_output = self.prepare_batch(images, labels, indices)
        terms = self.learner(batch, teacher_output)
        return self.loss(terms, len(images)), terms

    def go_on_from(self, step: int) -> None:
        """Take a step of the training as the next one, for balances that fall over it."""
        self._step = step
        self.steps.fill_(step)

    def loss(self, terms: Mapping[str, Tensor], images: int) -> Float[Tensor, ""]:
        """Return the loss, a scalar, of raw terms (scalars) of `images` images; in training mode, step the balance."""
        balance, weights = self.learner.balance, self.weights
        if balance is None:
            return weighted_sum(terms, weights)
        if self.total_steps is not None:
            weights = balance.scheduled(weights, min(self._step, self.total_steps), self.total_steps)
        loss = weighted_sum(terms, weights, balance)
        if self.training:
            balance.update(images * world_size())
            if self.total_steps is not None:
                self._step += 1
                self.steps += 1
        return loss

    def student_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """The student's class scores of images as the loop gives them: in [0,1], or normalised by `mean` and `std`."""
        logits = self.student(self._plain(images)).logits
        assert logits is not None
        return logits

    def prepare_batch(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> tuple[Batch, NetworkOutput]:
        """The batch as networks take it, and what the teacher says of it: the arguments of `learner`.

        images, labels, indices: as of `forward`, (B, 3, H, W), (B,) and (B,).

        Raises:
            UhkdError: as `forward`.
        """
        if self.needs_indices and indices is None:
            raise UhkdError(
                f"{self.method} keeps a memory of every training image and must know which these are: call with (images, labels, "
                "indices), their positions in the training set"
            )
        if not self._ready and self.needs_calibration:
            raise UhkdError(
                f"{self.method} compares standardised spectra of the teacher: call calibrate(loader) on training images before "
                "the first step, or load a checkpoint"
            )
        batch = self._batch(images, labels, indices)
        self._ready = True  # asked until it is so and not at every step: the answer makes a GPU wait
        return batch, self._teachers[0].signals(
            batch, self.learner.teacher_needs
        ) if self._teachers else NetworkOutput()

    def _batch(self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None) -> Batch:
        images = self._plain(images)
        if not self._ready:
            _check_range(images, self.mean is not None)
        target = label = None
        if labels is not None:
            if labels.device.type == "cpu" and not labels.is_floating_point():
                _check_positions(labels, self.num_classes, "labels", "num_classes")
            soft = labels.is_floating_point()
            target = labels if soft else F.one_hot(labels.long(), self.num_classes).float()
            label = labels.argmax(1) if soft else labels.long()
        if indices is None:
            indices = torch.full((len(images),), -1, device=images.device)
        elif self.needs_indices and indices.device.type == "cpu":
            _check_positions(indices, self.num_samples or 0, "indices", "num_samples")
        return Batch(images, target, label, indices)

    def _plain(self, images: Tensor) -> Tensor:
        """Images in [0,1]."""
        return images if self.mean is None or self.std is None else images * self.std + self.mean

    def _apply(self, fn: Any, recurse: bool = True) -> "Distillation":
        """Devices and types of the sealed teacher follow ours."""
        super()._apply(fn, recurse)
        for teacher in self._teachers:
            teacher.network._apply(fn)
        return self

    def save(self, folder: str | Path, classes: Sequence[str] = ()) -> Path:
        """Write the student alone, card and weights, into a new folder that `uhkd.load_run`, `uhkd eval --data` and others open.

        Raises:
            UhkdError: when the folder holds something already, or the names are not as many as the classes.
        """
        return save(self.student, folder, classes)


def _wrapped(
    module: nn.Module,
    num_classes: int | None,
    image_size: int | Sequence[int] | None,
    levels: Levels,
    norms: Mapping[str, Any],
) -> FeatureExtractor:
    if not isinstance(module, FeatureExtractor):
        return wrap_module(module, num_classes=num_classes, image_size=image_size, levels=levels, **norms)
    if num_classes is not None and module.shapes.logits != num_classes:
        raise UhkdError(f"the student gives {module.shapes.logits or 'no'} classes, num_classes is {num_classes}")
    return module


def _read_steps(module: nn.Module, _: Any) -> None:
    """Go on from the step of the state that was loaded."""
    assert isinstance(module, Distillation)
    module._step = int(module.steps)


def _first(item: Any) -> Tensor:
    """The images of what a loader gives."""
    return item if isinstance(item, Tensor) else item[0]


def _check_range(images: Tensor, undone: bool) -> None:
    low, high = (x.item() for x in images.detach().float().aminmax())
    if not (low >= -_MARGIN and high <= 1 + _MARGIN):
        why = (
            "after mean and std were undone; are these those of your transforms?"
            if undone
            else "; give mean and std where your transforms normalise (or divide bytes by 255)"
        )
        raise UhkdError(f"images must be in [0, 1], found {low:.3g} to {high:.3g}{' ' if undone else ''}{why}")


def _check_positions(found: Tensor, count: int, what: str, by: str) -> None:
    if len(found) and not (found.min() >= 0 and found.max() < count):
        raise UhkdError(f"{what} must be 0 to {count - 1} ({by} is {count}), found {found.min()} to {found.max()}")
