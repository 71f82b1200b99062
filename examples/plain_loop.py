"""Distillation in a PyTorch loop of your own. Run: python examples/plain_loop.py runs/teacher"""

import sys

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import uhkd


def main(teacher: str, epochs: int = 2) -> float:
    """Distil a teacher of digits into a small ViT; returns the accuracy on held-out images."""
    torch.manual_seed(0)
    pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    images = pixels.float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 16  # in [0, 1]
    train, val = random_split(TensorDataset(images, labels), [0.8, 0.2])
    loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)

    distillation = uhkd.Distillation(teacher, "uhkd/vit_micro", method="uhkd", num_classes=10, image_size=16)
    distillation.calibrate(loader)
    optimizer = torch.optim.AdamW(
        distillation.parameters(), lr=2e-3
    )  # the student's and the method's, never the teacher's
    for epoch in range(epochs):
        for images, labels in loader:
            loss, terms = distillation(images, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value.item():.3f}" for name, value in terms.items()))

    student = distillation.student.eval()  # a torch module: images in [0, 1] -> student(images).logits
    with torch.inference_mode():
        images, labels = val.dataset[val.indices]
        accuracy = (student(images).logits.argmax(1) == labels).float().mean().item()
    print(f"accuracy {accuracy:.1%}")
    distillation.save("runs/plain", classes=[str(digit) for digit in range(10)])  # uhkd.load_run("runs/plain")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
