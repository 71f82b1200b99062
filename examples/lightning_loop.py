"""Distillation by PyTorch Lightning's Trainer. Run: python examples/lightning_loop.py runs/teacher"""

import sys

import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from uhkd.integrations.lightning import UHKDLightningModule


class Digits(LightningDataModule):
    """Handwritten digits, images in [0, 1]."""

    def setup(self, stage: str) -> None:
        pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
        images = pixels.float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 16
        generator = torch.Generator().manual_seed(0)
        self.train, self.val = random_split(TensorDataset(images, labels), [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=256)


def main(teacher: str, epochs: int = 2, **options: object) -> Trainer:
    """Distil a teacher of digits into a small ViT."""
    seed_everything(0)
    module = UHKDLightningModule(teacher, "uhkd/vit_micro", method="uhkd", num_classes=10, image_size=16, lr=2e-3)
    trainer = Trainer(max_epochs=epochs, default_root_dir="runs/lightning", log_every_n_steps=10, **options)
    trainer.fit(module, datamodule=Digits())
    module.distillation.save("runs/lightning/student", [str(digit) for digit in range(10)])  # for uhkd.load_run
    return trainer


if __name__ == "__main__":
    main(sys.argv[1])
