"""Distillation as a training task of timm (timm.task), for loops like timm's own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uhkd.errors import UhkdError
from uhkd.training import StudentWithLosses
from uhkd.training.distillation import Distillation, Network

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise ImportError('timm.task is missing: pip install "timm>=1.0.31"') from error


class UHKDTask(TrainingTask):
    """A `Distillation` as a task of timm: `task(input, target)` gives {"loss", and every raw term by its name, detached}.

    What is trained is the student with the method's layers; what is evaluated, saved under "state_dict" and averaged (EMA) is the
    bare student; the method's layers and the statistics of the teacher's spectra lie in "task_state". The teacher is in neither.

    Images come as timm's loaders make them, normalised by mean and std of the student's own `pretrained_cfg`; say so
    where yours are others. Targets are classes or, with mixup, their probabilities.

    Args:
        student_model: a timm model, trained in place.
        teacher_model: a module of your own, or a name as `uhkd.create` takes it.
        loader: training images, un-mixed, from which the statistics of the teacher's spectra are taken; None: call
            `task.distillation.calibrate(loader)` before the first step, or load a checkpoint.
        mean: by which images are normalised; None: the student's.
        std: likewise.
        device: as of `timm.task.TrainingTask`.
        dtype: likewise.
        verbose: likewise.
        words: everything else that `Distillation` takes: method, image_size, settings, weights, label_smoothing ...

    Raises:
        UhkdError: as `Distillation`, and for methods that must know which image is which: timm's loops do not say.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: Network,
        loader: Iterable[Any] | None = None,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        student: Any = student_model
        options.setdefault("num_classes", student.num_classes)
        norms = {"mean": mean or student.pretrained_cfg["mean"], "std": std or student.pretrained_cfg["std"]}
        self.distillation = Distillation(teacher_model, student_model, **norms, **options)
        if self.distillation.needs_indices:
            raise UhkdError(
                f"{self.distillation.method} must know which image is which, and timm's loops do not say; use uhkd.distill, or "
                "uhkd.Distillation in a loop of your own"
            )
        self.trainable_module: nn.Module = self.distillation.learner
        prefixes = ("distillers.", "balance.")
        own = [name for name, _ in self.distillation.learner.named_buffers() if name.startswith(prefixes)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.distillation.learner, own)
        self.to(self.device)
        if loader is not None:
            self.distillation.calibrate(loader)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss of a batch (B,C,H,W) with its targets (B,) or (B,K), and its raw terms."""
        terms = self.trainable_module(*self.distillation.prepare_batch(input, target))
        return {"loss": self.distillation.loss(terms, len(input))} | {k: v.detach() for k, v in terms.items()}

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> "UHKDTask":
        """Wrap what is trained in DistributedDataParallel."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the student, with the method's layers for training and alone for evaluation; returns the latter."""
        how = {"backend": backend, "mode": mode, **compile_kwargs}
        self.eval_model: Any = torch.compile(self.distillation.student.module, **how)
        self.trainable_module = torch.compile(self.trainable_module, **how)  # pyright: ignore (it is a module again)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The bare student, or its average: normalised images -> logits."""
        compiled = getattr(self, "eval_model_ema" if ema else "eval_model", None)
        if module is None and compiled is not None:
            return compiled
        learner = self._learner(module, ema)
        return None if learner is None else learner.student.module

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped together; the student's head is its last two."""
        student = list(self.distillation.student.parameters())
        return [*(student[:-2] if exclude_head else student), *self.distillation.learner.distillers.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What a checkpoint holds beside the student."""
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
        """Take over what `get_task_state` gave."""
        learner = self._learner(module, ema)
        if not state or learner is None:
            return
        learner.distillers.load_state_dict(state["distillers"], strict=strict)
        for name, part in (("balance", learner.balance), ("ftm", self.distillation.ftm)):
            if part is not None and name in state:
                part.load_state_dict(state[name], strict=strict)
        if "steps" in state and self.distillation.total_steps is not None:
            self.distillation.go_on_from(int(state["steps"]))

    def _learner(self, module: nn.Module | None, ema: bool) -> StudentWithLosses | None:
        """What is trained, or its average, without the wrappers of DDP, EMA and compile."""
        found: Any = self.get_trainable_module(ema=ema) if module is None else module
        while found is not None and not isinstance(found, StudentWithLosses):
            found = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        return found
