"""Three ways to bring an image to a size; a training view takes nothing else than evaluation shows."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from uhkd.data import ArraySource, Augmentation, augment_batch
from uhkd.data.resize import BORDER, fit_image

SMOOTH = np.asarray(Image.effect_noise((40, 20), 40).convert("RGB").resize((400, 200), Image.Resampling.BICUBIC))
WIDE = torch.from_numpy(SMOOTH.copy()).permute(2, 0, 1)


def view(image, number, **options):
    source = ArraySource(image.permute(1, 2, 0).numpy()[None], np.array([0]))
    augmentation = Augmentation((64, 64), crop="resized", **options)
    return augment_batch(source, np.array([0]), seed=0, view=number, augmentation=augmentation, num_classes=1)[0][0]


@pytest.mark.parametrize(
    ("resize", "pillow"),
    [
        ("crop", lambda image, size: ImageOps.fit(image, size, Image.Resampling.BICUBIC)),
        ("squash", lambda image, size: image.resize(size, Image.Resampling.BICUBIC)),
        ("pad", lambda image, size: ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=BORDER)),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (64, 192), (60, 30)])
def test_each_way_is_that_of_pillow_in_the_exported_snippets(resize, pillow, size):
    expected = np.asarray(pillow(Image.fromarray(SMOOTH), size[::-1])).astype(int)
    found = fit_image(WIDE, size, resize).permute(1, 2, 0).numpy()
    assert found.shape == (*size, 3)
    # Pillow rounds between its two passes, and the edge of a box to whole pixels elsewhere
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 2), (1, 20000)])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_any_shape_gives_the_size(shape, resize, crop):
    source = ArraySource(np.full((1, *shape), 200, np.uint8), np.array([0]))
    augmentation = Augmentation((8, 12), crop=crop, flip=True, resize=resize)
    for number in range(8):
        found, _ = augment_batch(source, np.array([0]), seed=0, view=number, augmentation=augmentation, num_classes=1)
        assert found.shape == (1, 3, 8, 12)
        colours = {tuple(colour) for colour in found[0].flatten(1).T.tolist()}
        assert colours <= ({(200, 200, 200), BORDER} if resize == "pad" else {(200, 200, 200)})


def test_training_crops_reach_the_edges_only_where_evaluation_does():
    edges = torch.zeros(3, 100, 300, dtype=torch.uint8)
    edges[:, :, :100] = 255
    marked = {
        resize: sum(bool((view(edges, n, crop_scale=0.9, resize=resize) == 255).any()) for n in range(30))
        for resize in ("squash", "pad")
    }
    assert marked == {"squash": 30, "pad": 30}
    # the whole width is shown: a third of the image is marked, also in views of nearly all of it
    shares = [float((view(edges, n, crop_scale=0.9, resize="squash")[0] == 255).float().mean()) for n in range(30)]
    assert min(shares) > 0.2 and max(shares) < 0.45
    assert any((view(edges, n, crop_scale=0.9, resize="pad")[0] == BORDER[0]).any() for n in range(30))
