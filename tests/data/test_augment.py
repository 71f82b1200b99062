"""Views are pure; crops, flips and mixes do what their names say, and targets match the pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from references.views import plain_view, view
from uhkd.data import ArraySource, Augmentation, Split
from uhkd.data.resize import center_crop_resize

GENERATOR = np.random.default_rng(0)
NOISE = ArraySource(GENERATOR.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 5)
# image i is the constant 6 i, its label i: pixels tell which image they came from
FLAT = ArraySource(np.broadcast_to((np.arange(40, dtype=np.uint8) * 6)[:, None, None], (40, 16, 16)), np.arange(40))
EVERYTHING = Augmentation((16, 16), crop="pad", flip=True, mixup=0.8, cutmix=1.0)


def look(source, index, augmentation, seed=0, number=0, classes=40):
    return view(source, index, seed=seed, view=number, augmentation=augmentation, num_classes=classes)


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_equal_addresses_give_equal_views_and_global_generators_play_no_part(crop):
    augmentation = Augmentation((16, 16), crop=crop, flip=True, mixup=0.8, cutmix=1.0)
    np.random.seed(0)
    torch.manual_seed(0)
    first = [look(NOISE, i, augmentation) for i in range(40)]
    state = torch.get_rng_state()
    np.random.seed(1)
    again = [look(NOISE, i, augmentation) for i in reversed(range(40))][::-1]
    assert torch.equal(state, torch.get_rng_state())
    for (image, target), (image_again, target_again) in zip(first, again, strict=True):
        assert torch.equal(image, image_again)
        assert torch.equal(target, target_again)


def test_seed_view_and_index_each_change_the_view():
    base = look(NOISE, 3, EVERYTHING)[0]
    same_pixels = Split(NOISE, np.full(40, 3))
    assert not torch.equal(base, look(NOISE, 3, EVERYTHING, seed=1)[0])
    assert not torch.equal(base, look(NOISE, 3, EVERYTHING, number=1)[0])
    plain = Augmentation((16, 16), crop="pad", flip=True)
    assert len({look(same_pixels, i, plain)[0].numpy().tobytes() for i in range(40)}) > 10


def test_no_augmentation_shows_the_image_itself_in_fresh_memory():
    image, target = look(NOISE, 7, Augmentation((16, 16)))
    assert torch.equal(image, NOISE.image(7))
    assert target.tolist() == [0.0] * 2 + [1.0] + [0.0] * 37
    image.zero_()
    assert NOISE.image(7).any()


def test_flip_mirrors_about_half_of_the_views():
    flipped = 0
    for number in range(200):
        image, _ = look(NOISE, 0, Augmentation((16, 16), flip=True), number=number)
        mirrored = torch.equal(image, NOISE.image(0).flip(-1))
        assert mirrored or torch.equal(image, NOISE.image(0))
        flipped += mirrored
    assert 70 < flipped < 130


def test_pad_crop_is_a_mirrored_shift_by_up_to_an_eighth():
    padded = np.pad(NOISE.image(0).numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = {padded[:, y : y + 16, x : x + 16].tobytes(): (y, x) for y in range(5) for x in range(5)}
    views = [look(NOISE, 0, Augmentation((16, 16), crop="pad"), number=n)[0].numpy().tobytes() for n in range(300)]
    assert {windows[each] for each in views} == {(y, x) for y in range(5) for x in range(5)}


def test_resized_crop_stays_inside_the_image_and_varies():
    # values rise from left to right and top to bottom: a crop of less area spans less of the range
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    source = ArraySource(np.stack([ramp * 2] * 2), np.array([0, 1]))
    augmentation = Augmentation((32, 24), crop="resized")
    spans = []
    for number in range(100):
        image = look(source, 0, augmentation, number=number, classes=2)[0].to(torch.int64)
        assert image.shape == (3, 32, 24)
        assert image.min() >= 0
        assert image.max() <= 252
        spans.append(int(image.max() - image.min()))
    assert max(spans) > 200
    assert min(spans) < 160
    assert min(spans) > 100  # never less than about a quarter of the area


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (2, 3), (7, 5)])
@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_strange_shapes_still_give_the_asked_size(shape, crop):
    source = ArraySource(np.full((2, *shape), 77, np.uint8), np.array([0, 1]))
    image, _ = look(source, 1, Augmentation((8, 12), crop=crop, flip=True), classes=2)
    assert image.shape == (3, 8, 12)
    assert torch.equal(image, torch.full_like(image, 77))


def test_fit_cuts_the_centre_and_keeps_proportions():
    image = torch.zeros(3, 8, 24, dtype=torch.uint8)
    image[:, :, 8:16] = 200
    assert torch.equal(center_crop_resize(image, (4, 4)), torch.full((3, 4, 4), 200, dtype=torch.uint8))
    assert center_crop_resize(image, (8, 24)) is image


def test_fit_averages_when_shrinking():
    checks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 200
    assert (center_crop_resize(checks, (8, 8)).int() - 100).abs().max() <= 2


def test_cutmix_target_is_the_share_of_pixels():
    augmentation = Augmentation((16, 16), cutmix=1.0)
    shares = []
    for index in range(40):
        image, target = look(FLAT, index, augmentation)
        assert target.sum().item() == pytest.approx(1, abs=1e-6)
        counts = np.bincount(image[0].numpy().ravel() // 6, minlength=40) / 256
        assert np.allclose(counts, target.numpy(), atol=1e-6)
        other = image[0] != index * 6
        if other.any():  # what was pasted is one full box
            rows, columns = other.any(1).sum(), other.any(0).sum()
            assert other.sum() == rows * columns
        shares.append(target[index].item())
    assert min(shares) < 0.3
    assert max(shares) > 0.8


def test_mixup_target_is_the_weight_of_the_pixels():
    weights = []
    for index in range(40):
        image, target = look(FLAT, index, Augmentation((16, 16), mixup=1.0))
        assert target.sum().item() == pytest.approx(1, abs=1e-6)
        assert (target > 0).sum() <= 2
        expected = (target * torch.arange(40) * 6).sum()
        assert (image - expected).abs().max() <= 0.5 + 1e-3
        weights.append(target[index].item())
    assert np.std(weights) > 0.15


def test_partner_is_the_unmixed_view_of_another_image_under_the_same_key():
    augmentation = Augmentation((16, 16), crop="pad", flip=True, cutmix=1.0)
    labelled = ArraySource(NOISE.images.numpy().transpose(0, 2, 3, 1), np.arange(40))
    views = [plain_view(labelled, i, seed=5, view=2, augmentation=augmentation) for i in range(40)]
    for index in range(40):
        image, target = look(labelled, index, augmentation, seed=5, number=2)
        partners = [i for i in np.flatnonzero(target.numpy()).tolist() if i != index]
        sources = np.stack([views[i] for i in (index, *partners)])
        assert (sources == image.numpy()).all(1).any(0).all()
        assert len(partners) <= 1


def test_with_both_on_each_view_takes_one_and_both_occur():
    kinds = {len(look(FLAT, i, EVERYTHING)[0].unique()) > 1 for i in range(40)}
    assert kinds == {True, False}


def test_mixing_leaves_geometry_alone():
    with_mix, without = EVERYTHING, Augmentation((16, 16), crop="pad", flip=True)
    for index in range(10):
        a, b = (plain_view(NOISE, index, seed=0, view=0, augmentation=each) for each in (with_mix, without))
        assert np.array_equal(a, b)


def test_unlabelled_images_have_no_target_and_still_mix():
    source = ArraySource(NOISE.images.numpy().transpose(0, 2, 3, 1), None)
    image, target = look(source, 0, EVERYTHING)
    assert target is None
    assert torch.equal(image, look(NOISE, 0, EVERYTHING)[0])


def test_a_single_image_mixes_with_itself():
    image, target = look(Split(NOISE, np.array([4])), 0, Augmentation((16, 16), mixup=1.0), classes=5)
    assert torch.equal(image, NOISE.image(4))
    assert target.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 8)}, "at least 1x1"),
        ({"size": (8, 8), "mixup": -0.1}, "mixup: expected a value >= 0, found -0.1"),
        ({"size": (8, 8), "cutmix": float("inf")}, "cutmix: expected a finite number, found inf"),
    ],
)
def test_impossible_numbers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


def test_an_unknown_crop_is_refused():
    # under pytest the constructor's type check would come first
    settings = SimpleNamespace(size=(8, 8), crop="centre", flip=False, mixup=0.0, cutmix=0.0)
    with pytest.raises(ValueError, match="crop must be none, pad or resized, found 'centre'"):
        Augmentation.__post_init__(settings)
    settings = SimpleNamespace(size=(8, 8), crop="none", resize="stretch")
    with pytest.raises(ValueError, match="resize must be crop, squash or pad, found 'stretch'"):
        Augmentation.__post_init__(settings)
