"""Distillation by PyTorch Lightning's Trainer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from uhkd.distributed import broadcast_only
from uhkd.features import FeatureExtractor
from uhkd.training.distillation import Distillation, Network

_BATCH = 64  # images per batch of the calibration

try:
    from pytorch_lightning import LightningModule
except ImportError as error:
    raise ImportError('pytorch_lightning is missing: pip install "uhkd[lightning]"') from error


class UHKDLightningModule(LightningModule):
    """A `Distillation` as a LightningModule, for batches (images, labels) or (images, labels, indices).

    Before the first step, the teacher's spectra are calibrated on the trainer's training images. Logged are the loss and all
    terms ("train/NAME"), "val/accuracy" and "val/loss". Checkpoints contain the student and the method's layers, but not the
    teacher. `module.student` is the student alone.

    Args:
        teacher: a module, or a name as in `uhkd.create`; None for methods without a teacher.
        student: likewise; a module is trained in place.
        optimizer: builds the optimizer from the trained parameters; None: AdamW with `lr` and weight decay 0.05.
        scheduler: builds the learning-rate scheduler from the optimizer, stepped once per epoch; None: constant rate.
        lr: learning rate of the default optimizer.
        **options: other arguments of `Distillation`: method, num_classes, image_size, settings, weights, mean, std ...

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
        self._validated = 0  # images in this process since the last validation
        broadcast_only(self, "distillation.learner.student.")

    @property
    def student(self) -> FeatureExtractor:
        """The student alone: images in [0,1] -> NetworkOutput with .logits."""
        return self.distillation.student

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits (B, K) of images (B, 3, H, W) from the loader."""
        return self.distillation.student_logits(images)

    def on_train_start(self) -> None:
        """Calibrate on the training images, unless a checkpoint contained the calibration."""
        if self.distillation.needs_calibration:
            assert self.trainer.train_dataloader is not None
            self.distillation.calibrate(_calibration_loader(self.trainer.train_dataloader))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss, a scalar, of images (B, 3, H, W), labels (B,) and optional indices (B,); log it and all terms."""
        images = batch[0]
        loss, terms = self.distillation(*batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the student's accuracy and cross-entropy on images (B, 3, H, W) and labels (B,)."""
        images, labels = batch[:2]
        self._validated += len(images)
        logits = self(images).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        metrics = {"val/loss": F.cross_entropy(logits, labels), "val/accuracy": accuracy}
        self.log_dict(metrics, prog_bar=True, sync_dist=True, batch_size=len(images))

    def on_validation_end(self) -> None:
        """Give the accuracy of all validation images to the balance (`Distillation.validated`)."""
        accuracy = self.trainer.callback_metrics.get("val/accuracy")  # absent with several validation loaders
        images, self._validated = self._validated * self.trainer.world_size, 0
        if accuracy is not None and not self.trainer.sanity_checking:
            self.distillation.validated(float(accuracy), images)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with its scheduler if there is one."""
        if self._optimizer is None:
            # no weight decay for biases, norms and parameters that the student's architecture exempts
            optimizer = create_optimizer_v2(self.distillation, opt="adamw", lr=self._lr, weight_decay=0.05)
        else:
            optimizer = self._optimizer(self.distillation.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}


def _calibration_loader(loader: Any) -> Any:
    """Return a shuffled loader of the same images, so that none are consumed from `loader`; itself if that is impossible."""
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        return loader
    generator = torch.Generator().manual_seed(0)  # the same in all processes
    return DataLoader(loader.dataset, _BATCH, shuffle=True, generator=generator, collate_fn=loader.collate_fn)
