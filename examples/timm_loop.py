"""Distillation in a loop like timm's own train.py. Run: python examples/timm_loop.py runs/teacher"""

import sys

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm import create_model
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver

from uhkd.integrations.timm import UHKDTask


class Digits(torch.utils.data.Dataset):
    """Handwritten digits as pictures; timm's loader sets the transform."""

    transform = None

    def __init__(self, train: bool) -> None:
        found = load_digits()
        part = slice(0, 1437) if train else slice(1437, None)
        self.images, self.labels = (found.images[part] * 15.9).astype(np.uint8), found.target[part]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index]).convert("RGB")), int(self.labels[index])


def main(teacher: str, epochs: int = 2, folder: str = ".") -> float:
    """Distil a teacher of digits into a small ResNet of timm; returns the accuracy on held-out images in percent."""
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=10)
    config = {"input_size": (3, 32, 32), "mean": model.pretrained_cfg["mean"], "std": model.pretrained_cfg["std"]}
    config |= {"batch_size": 32, "num_workers": 0, "device": torch.device("cpu"), "persistent_workers": False}
    train = create_loader(Digits(train=True), **config, is_training=True, no_aug=True)
    val = create_loader(Digits(train=False), **config)

    task = UHKDTask(model, teacher, train, method="uhkd", image_size=32)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=2e-3, weight_decay=0.05)
    task.setup_ema(decay=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=0)
    saver = CheckpointSaver(task.get_trainable_module(), optimizer, checkpoint_dir=folder, task=task)
    updates = 0
    for epoch in range(epochs):
        task.get_trainable_module().train()
        for input, target in train:
            result = task(input, target)
            result["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            task.update_ema(step=updates)
        scheduler.step(epoch + 1)
        evaluator = task.create_evaluator()
        student = task.get_eval_model(ema=True).eval()
        with torch.inference_mode():
            for input, target in val:
                evaluator.update(student(input), target)
        accuracy = evaluator.summary()["top1"]
        print(f"epoch {epoch + 1}: accuracy {accuracy:.1f}%, " + ", ".join(f"{k} {v:.3f}" for k, v in result.items()))
        saver.save_checkpoint(epoch, metric=accuracy)  # last.pth.tar: resume by timm.task.resume_task_checkpoint
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
