"""Distillation by PyTorch Lightning's Trainer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from uhkd.features import FeatureExtractor
from uhkd.training.distillation import Distillation, Network

_BATCH = 64  # images at a time whose statistics are taken

try:
    from pytorch_lightning import LightningModule
except ImportError as error:
    raise ImportError('pytorch_lightning is missing: pip install "uhkd[lightning]"') from error


class UHKDLightningModule(LightningModule):
    """A `Distillation` as a LightningModule: batches of (images, labels) or (images, labels, indices).

    The statistics of the teacher's spectra come from the trainer's own training images before the first step. Every term, the
    loss and the validation accuracy are logged ("train/NAME", "val/accuracy", "val/loss"). Checkpoints hold the student and the
    method's layers, never the teacher. After training `module.student` is the student alone.

    Args:
        teacher: a module of your own, or a name as `uhkd.create` takes it; None: for methods without one.
        student: likewise; a module is trained in place.
        optimizer: makes the optimiser of the parameters that are trained; None: AdamW with `lr` and weight decay 0.05.
        scheduler: makes a schedule of an optimiser, stepped once an epoch; None: the rate stays.
        lr: of the default optimiser.
        words: everything else that `Distillation` takes: method, num_classes, image_size, settings, weights, mean, std ...

    Raises:
        UhkdError: as `Distillation`.
    """

    def __init__(
        self,
        teacher: Network | None,
        student: Network,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        lr: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.distillation = Distillation(teacher, student, **options)
        self._optimizer, self._scheduler, self._lr = optimizer, scheduler, lr
        own = [f"distillation.{name}" for name in self.distillation.unsynced_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, own)

    @property
    def student(self) -> FeatureExtractor:
        """The student alone: images in [0,1] -> Signals with .logits."""
        return self.distillation.student

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B,K) of images as the loaders give them."""
        return self.distillation.student_logits(images)

    def on_train_start(self) -> None:
        """Fix the statistics of the teacher's spectra, unless a checkpoint brought them."""
        if self.distillation.needs_calibration:
            assert self.trainer.train_dataloader is not None
            self.distillation.calibrate(_options(self.trainer.train_dataloader))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of images (B, 3, H, W), labels (B,), perhaps indices (B,): a scalar; all terms are logged."""
        images = batch[0]
        loss, terms = self.distillation(*batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the student's accuracy and cross-entropy on images (B, 3, H, W) and labels (B,)."""
        images, labels = batch[:2]
        scores = self(images).float()
        found = {"loss": F.cross_entropy(scores, labels), "accuracy": (scores.argmax(1) == labels).float().mean()}
        for name, value in found.items():
            self.log(f"val/{name}", value, prog_bar=True, sync_dist=True, batch_size=len(images))

    def configure_optimizers(self) -> Any:
        """The optimiser asked for, and its schedule."""
        if self._optimizer is None:
            # without decay for biases, norms and what the student's architecture exempts
            optimizer = create_optimizer_v2(self.distillation, opt="adamw", lr=self._lr, weight_decay=0.05)
        else:
            optimizer = self._optimizer(self.distillation.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}


def _options(loader: Any) -> Any:
    """A loader of the same images, shuffled, that takes none from `loader`, whose iterator may be the only one."""
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        return loader
    generator = torch.Generator().manual_seed(0)  # alike in all processes
    return DataLoader(loader.dataset, _BATCH, shuffle=True, generator=generator, collate_fn=loader.collate_fn)
