"""Distillation as a training task of timm (timm.task), for loops like timm's own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uhkd.distributed import broadcast_only
from uhkd.errors import UhkdError
from uhkd.training import StudentWithLosses
from uhkd.training.distillation import Distillation, Network

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise ImportError('timm.task is missing: pip install "timm>=1.0.31"') from error


class UHKDTask(TrainingTask):
    """A `Distillation` as a task of timm: `task(input, target)` returns {"loss", and every term by name, detached}.

    The student is trained together with the method's layers. The bare student is evaluated, averaged (EMA) and saved under
    "state_dict"; the method's layers and the calibration of the teacher's spectra are saved under "task_state". The teacher is
    in neither.

    Images are those of timm's loaders, normalised with the mean and std in the student's `pretrained_cfg`. Targets are classes
    or, with mixup, class probabilities.

    Args:
        student_model: a timm model, trained in place.
        teacher_model: a module, or a name as in `uhkd.create`.
        loader: training images without mixup, to calibrate the teacher's spectra; None: call
            `task.distillation.calibrate(loader)` before the first step, or load a checkpoint.
        device: as in `timm.task.TrainingTask`.
        dtype: likewise.
        verbose: likewise.
        **options: other arguments of `Distillation`: method, image_size, settings, weights, label_smoothing ...;
            `mean` and `std` that normalised the images; None: the student's.

    Raises:
        UhkdError: as `Distillation`; and for methods that need the index of each image, which timm's loops do not pass.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: Network,
        loader: Iterable[Any] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        student: Any = student_model
        options.setdefault("num_classes", student.num_classes)
        for name in ("mean", "std"):
            options[name] = options.get(name) or student.pretrained_cfg[name]
        self.distillation = Distillation(teacher_model, student_model, **options)
        if self.distillation.needs_indices:
            raise UhkdError(
                f"{self.distillation.method} needs the index of each image, which timm's loops do not pass; use uhkd.distill, or "
                "uhkd.Distillation in a custom loop"
            )
        self.trainable_module: nn.Module = self.distillation.learner
        broadcast_only(self.trainable_module, "student.")
        self.to(self.device)
        if loader is not None:
            self.distillation.calibrate(loader)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch (B, C, H, W) with targets (B,) or (B, K), and its terms."""
        terms = self.trainable_module(*self.distillation.prepare_batch(input, target))
        return {"loss": self.distillation.loss(terms, len(input))} | {k: v.detach() for k, v in terms.items()}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> "UHKDTask":
        """Wrap the trained module in DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the trained module, and the bare student for evaluation; return the latter."""
        arguments = {"backend": backend, "mode": mode, **compile_kwargs}
        self.eval_model: Any = torch.compile(self.distillation.student.module, **arguments)
        self.trainable_module = torch.compile(self.trainable_module, **arguments)  # pyright: ignore (a module again)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the bare student, or its average: normalised images (B, 3, H, W) -> logits (B, K)."""
        compiled = getattr(self, "eval_model_ema" if ema else "eval_model", None)
        if module is None and compiled is not None:
            return compiled
        learner = self._learner(module, ema)
        return None if learner is None else learner.student.module

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters whose gradients are clipped together; the last two of the student are its head."""
        student = list(self.distillation.student.parameters())
        return [*(student[:-2] if exclude_head else student), *self.distillation.learner.distillers.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return what a checkpoint contains in addition to the student."""
        learner = self._learner(module, ema)
        if learner is None:
            return {}
        parts = {"distillers": learner.distillers, "balance": learner.balance, "ftm": self.distillation.ftm}
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return state | ({} if self.distillation.total_steps is None else {"steps": self.distillation.steps})

    def load_task_state(
        self,
        state: Mapping[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` returned."""
        learner = self._learner(module, ema)
        if not state or learner is None:
            return
        learner.distillers.load_state_dict(state["distillers"], strict=strict)
        for name, part in (("balance", learner.balance), ("ftm", self.distillation.ftm)):
            if part is not None and name in state:
                part.load_state_dict(state[name], strict=strict)
        if "steps" in state and self.distillation.total_steps is not None:
            self.distillation.set_step(int(state["steps"]))

    def _learner(self, module: nn.Module | None, ema: bool) -> StudentWithLosses | None:
        """Return the trained module, or its average, without the wrappers of DDP, EMA and compile."""
        inner: Any = self.get_trainable_module(ema=ema) if module is None else module
        while inner is not None and not isinstance(inner, StudentWithLosses):
            inner = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        return inner
