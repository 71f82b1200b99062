"""`Distillation`: student, frozen teacher and method in one module for your training loop; its `forward` returns the loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.distributed import broadcast_only, world_size
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, NetworkOutput, PairShapes
from uhkd.features.selection import LayerSelection
from uhkd.methods import build_losses, default_balance, parse_methods
from uhkd.models import create, has_weights, native_preprocessing, native_size_of, save, wrap_module
from uhkd.spectral import FTM
from uhkd.training import StudentWithLosses, Teacher, calibrate, weighted_sum
from uhkd.training.students import check_separate
from uhkd.training.user_loop import check_accuracy, check_range, make_batch, user_balance

Network = str | Path | nn.Module
"""A model name, a run folder, or a module."""


class Distillation(nn.Module):
    """Student, frozen teacher and the layers of a method; a call on a batch returns the loss and its terms by name.

    Parameters: those of student and method. State: these and the statistics of the teacher's spectra. Numbers as `uhkd.distill`.

    Images are in [0,1] by default, of any size: each network resizes and normalises them. Give `mean` and `std` if your
    transforms normalise the images already. A student given as a module then receives your images unchanged; for the teacher
    they are converted to its normalisation if it has one (timm, transformers), else they are unchanged too.

    Args:
        teacher: a module, or a name as for `uhkd.create`; None: for methods without a teacher.
        student: likewise; a module is trained in place.
        method: a name of `docs/methods.md`, or several joined by "+".
        num_classes: classes of the student's head and of the labels.
        image_size: input size of the student, and of a teacher without a fixed size: one side or (height, width) in pixels;
            None: the size that each network was made for (a module without one: 224).
        num_samples: number of training images, for methods with a memory of every image.
        settings: of the method, as in `--settings`.
        weights: of the terms, as in `--weights`; "ce" is the cross-entropy.
        label_smoothing: of the cross-entropy, 0..1.
        balance: how the weights of the teacher's terms change during training, as in `--balance`; None: the method's default.
        balance_settings: of the balance, as in `--balance-settings`.
        total_steps: calls in training mode in the whole training, for balances with a schedule.
        teacher_accuracy: of the teacher on held-out images, 0..1: the bound of `balance="lead"`; None: no bound.
        mean: normalisation of the given images, three numbers; None: images are in [0,1].
        std: likewise.
        student_start: "random", "pretrained" or a weights file, for a student given by name.
        teacher_start: likewise; None: the weights of a run folder or file, else pretrained ones.
        student_weights_key: copy in a weights file with several, such as "model_ema"; None: the weights themselves.
        teacher_weights_key: likewise.
        student_options: keyword arguments of the constructor of a student given by name.
        teacher_options: likewise.
        student_levels: number or names of the layers to match; None: those of the run folder, else 4.
        teacher_levels: likewise.
        seed: of random initial weights; the weights of given modules are not changed.

    Raises:
        UhkdError: for an argument that cannot be used.
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
        teacher_accuracy: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        student_start: str | Path = "random",
        teacher_start: str | Path | None = None,
        student_weights_key: str | None = None,
        teacher_weights_key: str | None = None,
        student_options: Mapping[str, Any] | None = None,
        teacher_options: Mapping[str, Any] | None = None,
        student_levels: LayerSelection | None = None,
        teacher_levels: LayerSelection | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        parse_methods(method, settings, weights)
        if (mean is None) != (std is None):
            raise UhkdError(f"mean and std belong together; found mean {mean} and std {std}")
        with torch.random.fork_rng([]):  # equal in every process, whatever was drawn before
            torch.manual_seed(seed)
            norms = {} if mean is None else {"mean": mean, "std": std}
            if not isinstance(student, str | Path):
                options = {"image_size": image_size, "levels": student_levels, **norms}
                student = wrap_module(student, num_classes=num_classes, **options)
            else:
                options = {"start": student_start, "weights_key": student_weights_key, "options": student_options}
                options |= {"image_size": image_size, "levels": student_levels}
                student = create(str(student), num_classes=num_classes, **options)
            device = next(student.parameters()).device
            if not isinstance(teacher, str | Path | None):
                norms = {} if native_preprocessing(teacher) else norms  # its own normalisation takes precedence
                options = {"image_size": native_size_of(teacher) or image_size, "levels": teacher_levels, **norms}
                teacher = wrap_module(teacher, num_classes=None, **options)
            elif teacher is not None:
                start = teacher_start or ("random" if has_weights(str(teacher)) else "pretrained")
                options = {"start": start, "weights_key": teacher_weights_key, "options": teacher_options}
                teacher = create(str(teacher), num_classes=None, levels=teacher_levels, **options)
            check_separate(student, teacher)
            teacher = teacher and teacher.to(device)
            shapes = PairShapes(student.shapes, teacher and teacher.shapes, num_classes, num_samples or 1)
            torch.manual_seed(seed + 1)  # the student's initial weights do not depend on the method's layers
            losses = build_losses(method, shapes, settings, weights).to(device)
        has_accuracy = teacher is not None and teacher.shapes.logits == num_classes
        balance_module = user_balance(
            balance or default_balance(method), balance_settings, losses, has_accuracy, teacher_accuracy, total_steps
        )
        self.learner = StudentWithLosses(student, losses, label_smoothing, balance_module and balance_module.to(device))
        needs = [loss.needs for loss in self.learner.losses.values()]
        self.needs_indices = any(need.index for need in needs)
        if self.needs_indices and num_samples is None:
            raise UhkdError(f"{method} keeps a memory of every training image: give num_samples, how many there are")
        self.num_classes, self.num_samples = num_classes, num_samples if self.needs_indices else None
        self.method, self.total_steps, self._step, self._ready = method, total_steps, 0, False
        if total_steps is not None:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
            self.register_load_state_dict_post_hook(_restore_step)
        target = next((need.target for need in needs if need.target is not None), None)
        # a tuple is no submodule: the teacher is in no optimizer and no checkpoint, and never in training mode
        self._teachers: tuple[Teacher, ...] = () if teacher is None else (Teacher(teacher, target),)
        self.ftm: FTM | None = self._teachers[0].ftm if self._teachers else None
        self.weights = self.learner.weights(float((weights or {}).get("ce", 1.0)))
        for name, values in (("mean", mean), ("std", std)):
            norm = None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)
            self.register_buffer(name, norm, persistent=False)
        broadcast_only(self, "learner.student.")

    @property
    def student(self) -> FeatureExtractor:
        """The student alone: images in [0,1] -> `NetworkOutput`; `student.module` is the bare network."""
        return self.learner.student

    @property
    def teacher(self) -> FeatureExtractor | None:
        """The frozen teacher, or None."""
        return self._teachers[0].network if self._teachers else None

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` must be called before the first step."""
        return self.ftm is not None and not bool(self.ftm.calibrated)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b k"] | None = None,
        indices: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss and the raw terms by name, all scalars: loss = sum of `weights[name]` * factor of the balance * term.

        labels: classes, or rows of class probabilities (mixup); None: no cross-entropy. indices: of the images in the training
        set, for methods with a memory of every image.

        Raises:
            UhkdError: without calibration or indices if the method needs them; for a first batch of images not in [0,1].
        """
        batch, teacher_output = self.prepare_batch(images, labels, indices)
        terms = self.learner(batch, teacher_output)
        return self.loss(terms, len(images)), terms

    def prepare_batch(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> tuple[Batch, NetworkOutput]:
        """Return the batch and the teacher output on it: the arguments of `learner`.

        images (B, 3, H, W), labels (B,) and indices (B,): as of `forward`.

        Raises:
            UhkdError: as `forward`.
        """
        if self.needs_indices and indices is None:
            raise UhkdError(
                f"{self.method} keeps a memory of every training image: call with (images, labels, indices), where indices "
                "are their positions in the training set"
            )
        if not self._ready and self.needs_calibration:
            raise UhkdError(
                f"{self.method} compares standardised spectra of the teacher: call calibrate(loader) on training images before "
                "the first step, or load a checkpoint"
            )
        batch, output = self._batch(images, labels, indices), NetworkOutput()
        self._ready = True  # not checked again once it is true: each check makes a GPU wait
        for teacher in self._teachers:
            output = teacher.outputs(batch, self.learner.teacher_needs)
        return batch, output

    def loss(self, terms: Mapping[str, Tensor], images: int) -> Float[Tensor, ""]:
        """Return the loss, a scalar, from the raw terms (scalars) of `images` images; in training mode, step the balance."""
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

    def validated(self, accuracy: float, images: int | None = None) -> None:
        """Compare the student's accuracy on held-out images, 0..1, with that on training images, in `balance="lead"`.

        To be called after each validation, with the number of held-out images; has an effect with `teacher_accuracy`.
        """
        check_accuracy("accuracy", accuracy, images)
        if self.learner.balance is not None:
            self.learner.balance.validated(accuracy, images)

    def calibrate(self, images: Iterable[Any], count: int = 1024) -> int:
        """Compute the statistics of the teacher's spectra from the first `count` training images; return how many were used.

        `images`: batches (B,3,H,W), or tuples that begin with one, as from a DataLoader of (image, label). Does nothing for
        methods without spectra. With several processes the images of the first one are used.

        Raises:
            UhkdError: for fewer than two images, images that are not in [0,1], or features that are not finite.
        """
        if self.ftm is None:
            return 0
        device = next(self.parameters()).device
        batches = (item if isinstance(item, Tensor) else item[0] for item in images)
        used = calibrate(self._teachers[0], (self._batch(batch.to(device)) for batch in batches), device, count)
        if world_size() > 1:
            for buffer in self.ftm.buffers():
                dist.broadcast(buffer, 0)
        return used

    def student_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Return the student's logits on images as for `forward`: in [0,1], or normalised by `mean` and `std`."""
        logits = self.student(self._denormalised(images)).logits
        assert logits is not None
        return logits

    def save(self, folder: str | Path, classes: Sequence[str] = ()) -> Path:
        """Write the student (configuration and weights) into a new folder for `uhkd.load_run`, `uhkd eval --data` and others.

        Its temperature is 1: one of earlier weights would not fit.

        Raises:
            UhkdError: when the folder is not empty, or the number of names is not that of the classes.
        """
        self.student.config = replace(self.student.config, temperature=1.0)
        return save(self.student, folder, classes)

    def set_step(self, step: int) -> None:
        """Set the number of steps already taken, for balances with a schedule."""
        self._step = step
        self.steps.fill_(step)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the student's architecture exempts from weight decay."""
        return {f"learner.{name}" for name in self.learner.no_weight_decay()}

    def _batch(self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None) -> Batch:
        images = self._denormalised(images)
        if not self._ready:
            check_range(images, denormalised=self.mean is not None)
        return make_batch(images, labels, indices, num_classes=self.num_classes, num_samples=self.num_samples)

    def _denormalised(self, images: Tensor) -> Tensor:
        return images if self.mean is None or self.std is None else images * self.std + self.mean

    def _apply(self, fn: Any, recurse: bool = True) -> "Distillation":
        """Move the teacher too, which is no submodule."""
        super()._apply(fn, recurse)
        for teacher in self._teachers:
            teacher.network._apply(fn)
        return self


def _restore_step(module: Distillation, _: Any) -> None:
    """Read the step of the state that was loaded."""
    module._step = int(module.steps)
