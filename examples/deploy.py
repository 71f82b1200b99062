"""Name the class of images by an exported ONNX file: onnxruntime, NumPy and Pillow alone, neither torch nor uhkd.

uhkd export runs/student --to onnx-int8 --out deployed        # or onnx
python examples/deploy.py deployed/onnx-int8/model.int8.onnx some.jpg another.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def classify(model: str, files: list[str]) -> list[tuple[str, float]]:
    """The likeliest class of each image file and its probability; all files go through the network at once."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["uhkd.card"])
    height, width = card["image_size"]
    images = []
    for file in files:
        with Image.open(file) as opened:
            # the largest centred part of the network's shape, resized
            fitted = ImageOps.fit(opened.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(fitted, np.float32).transpose(2, 0, 1) / 255)
    (logits,) = session.run(None, {"image": np.stack(images)})
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    return [(card["classes"][int(row.argmax())], float(row.max())) for row in odds]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python deploy.py MODEL.onnx IMAGE...")
    for file, (name, odds) in zip(sys.argv[2:], classify(sys.argv[1], sys.argv[2:]), strict=True):
        print(f"{file}: {name} {odds:.1%}")
