"""RandAugment, colour jitter and erasing: literal expectations, bounds, and views that no process can change."""

import hashlib
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from torchvision.transforms import functional

import uhkd
from references.views import plain_view, training_loader, view
from uhkd.data import ArraySource, Augmentation, Split
from uhkd.data import resize as resizing
from uhkd.data.color_transforms import erase_, jitter
from uhkd.data.rng import stream
from uhkd.data.sources import ImageSource

NOISE = ArraySource(np.random.default_rng(0).integers(0, 256, (60, 16, 24, 3), dtype=np.uint8), np.arange(60) % 5)
PLAIN = Augmentation((16, 24))
OFA = "rand-m9-mstd0.5-inc1"
EVERYTHING = Augmentation((16, 16), "resized", True, 0.8, 1.0, crop_scale=0.08, randaugment=OFA, erasing=0.5)
JITTERING = Augmentation((16, 16), "pad", True, color_jitter=0.4, erasing=0.5)
# only beside the "3a" operations are colours jittered too
ALL_AT_ONCE = replace(EVERYTHING, crop="pad", randaugment="rand-m9-mstd0.5-inc1-t3a", color_jitter=0.4)


def look(
    index: int, augmentation: Augmentation, source: ImageSource = NOISE, seed: int = 0, number: int = 0
) -> np.ndarray:
    return plain_view(source, index, seed=seed, view=number, augmentation=augmentation)


def global_states() -> tuple[list[int], list[int]]:
    """Of the generators of NumPy and torch; that of `random` is drawn from by the type checks under pytest."""
    return np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state().tolist()


# not crop resized: under pytest its list of draws is type-checked at a place drawn from Python's global generator
@pytest.mark.parametrize(
    "augmentation",
    [replace(EVERYTHING, crop="pad"), JITTERING, replace(JITTERING, randaugment="rand-m5-t3a"), ALL_AT_ONCE],
)
def test_views_depend_on_their_address_alone_and_leave_every_global_generator_alone(augmentation):
    def settle(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    settle(0)
    first = [view(NOISE, i, seed=1, view=2, augmentation=augmentation, num_classes=5) for i in range(60)]
    settle(1)
    before = random.getstate(), global_states()
    again = [view(NOISE, i, seed=1, view=2, augmentation=augmentation, num_classes=5) for i in reversed(range(60))]
    assert (random.getstate(), global_states()) == before
    for (a, target_a), (b, target_b) in zip(first, reversed(again), strict=True):
        assert target_a is not None and target_b is not None
        assert torch.equal(a, b) and torch.equal(target_a, target_b)


def test_every_operation_has_its_part_in_a_view_with_all_at_once():
    """So that the tests above and below are about each of them."""
    assert ALL_AT_ONCE.jitters

    def views(**changes):
        augmentation = replace(ALL_AT_ONCE, **changes)
        return [view(NOISE, i, seed=3, view=0, augmentation=augmentation, num_classes=5)[0] for i in range(30)]

    whole = views()
    for name in ("randaugment", "color_jitter", "erasing", "mixup", "cutmix", "flip", "crop"):
        off = {"randaugment": None, "flip": False, "crop": "none"}.get(name, 0.0)
        assert sum(not torch.equal(a, b) for a, b in zip(whole, views(**{name: off}), strict=True)) > 5, name


@pytest.mark.parametrize(
    "augmentation", [replace(PLAIN, randaugment=OFA), replace(PLAIN, color_jitter=0.4), replace(PLAIN, erasing=1.0)]
)
def test_seed_view_and_index_each_change_what_is_drawn(augmentation):
    same_pixels = Split(NOISE, np.full(60, 3))
    for views in (
        [look(i, augmentation, same_pixels) for i in range(20)],
        [look(0, augmentation, number=n) for n in range(20)],
        [look(0, augmentation, seed=s) for s in range(20)],
    ):
        assert len({each.tobytes() for each in views}) > 10
        assert all(each.shape == (3, 16, 24) and each.dtype == np.uint8 and each.flags.c_contiguous for each in views)


def test_the_source_is_never_written_to():
    before = NOISE.images.clone()
    for augmentation in (replace(PLAIN, erasing=1.0), EVERYTHING, JITTERING):
        for index in range(20):
            look(index, augmentation)[:] = 0
    assert torch.equal(NOISE.images, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_show_the_same_views(workers):
    def batches(number):
        settings = {"seed": 3, "batch_size": 12, "epochs": 2, "num_classes": 5}
        return list(training_loader(NOISE, EVERYTHING, workers=number, **settings))

    for a, b in zip(batches(0), batches(workers), strict=True):
        assert a.target is not None and b.target is not None
        assert torch.equal(a.image, b.image) and torch.equal(a.target, b.target)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 0), (60, 0), (7, 2), (13, 2)])
def test_what_a_loader_shows_of_an_image_depends_on_seed_epoch_and_index_alone(batch_size, workers):
    loader = training_loader(
        NOISE, ALL_AT_ONCE, seed=3, batch_size=batch_size, epochs=2, num_classes=5, workers=workers
    )
    before = global_states()
    batches = list(loader)
    assert global_states() == before
    per_epoch = 60 // batch_size
    assert len(batches) == 2 * per_epoch
    for step, batch in enumerate(batches):
        assert batch.target is not None
        for image, target, index in zip(batch.image, batch.target, batch.index.tolist(), strict=True):
            number = step // per_epoch
            pixels, shares = view(NOISE, index, seed=3, view=number, augmentation=ALL_AT_ONCE, num_classes=5)
            assert shares is not None
            assert torch.equal(image, pixels / 255) and torch.equal(target, shares)


_ELSEWHERE = """
import hashlib, pickle, random, sys
import numpy, torch
from references.views import plain_view
from uhkd.data import ArraySource
pixels, augmentations = pickle.load(sys.stdin.buffer)
source = ArraySource(pixels, None)
states = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
before = states()
for augmentation in augmentations:
    views = [plain_view(source, i, seed=5, view=1, augmentation=augmentation) for i in reversed(range(60))]
    print(hashlib.sha256(b"".join(each.tobytes() for each in reversed(views))).hexdigest())
assert states() == before  # here without type checks, which draw from the generator of `random`
"""


@pytest.mark.slow
def test_another_process_shows_the_same_views():
    pixels = NOISE.images.numpy().transpose(0, 2, 3, 1)
    # of one thread, as this one: resizing may differ by threads; colours must not
    augmentations = [EVERYTHING, ALL_AT_ONCE, JITTERING]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input=pickle.dumps((pixels, augmentations)),
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join((str(Path(uhkd.__file__).parents[1]), str(Path(__file__).parents[1])))},
        capture_output=True,
        check=True,
        timeout=300,
    )
    wanted = [
        hashlib.sha256(b"".join(look(i, a, seed=5, number=1).tobytes() for i in range(60))).hexdigest()
        for a in augmentations
    ]
    assert done.stdout.decode().split() == wanted


# RandAugment


def test_randaugment_applies_one_of_the_named_operations():
    # at magnitude 0, of timm's three "3a" operations: solarising from 256 on, half the colour, a blur of radius 0.1
    counts = np.zeros(3, dtype=int)
    for index in range(60):
        image = NOISE.image(index).numpy().transpose(1, 2, 0)
        picture = Image.fromarray(image)
        wanted = [picture, ImageEnhance.Color(picture).enhance(0.5), picture.filter(ImageFilter.GaussianBlur(0.1))]
        seen = look(index, replace(PLAIN, randaugment="rand-m0-n1-p1-t3a")).transpose(1, 2, 0)
        counts += [np.array_equal(seen, np.asarray(each)) for each in wanted]
    if np.array_equal(np.asarray(wanted[0]), np.asarray(wanted[2])):  # so small a blur may change nothing
        counts[0] -= counts[2]
    assert counts.sum() == 60
    assert counts.min() > 8 or counts[1] in range(8, 33)


def test_randaugment_fills_with_the_mean_colour_of_imagenet_and_translates_by_up_to_45_percent():
    white = ArraySource(np.full((200, 20, 20, 3), 255, np.uint8), None)
    augmentation = Augmentation((20, 20), randaugment="rand-m10-n1-p1")
    widths = set()
    for index in range(200):
        image = look(index, augmentation, white)
        filled = (image == np.array([124, 116, 104])[:, None, None]).all(0)
        if filled.any() and not (filled != filled[:1]).any():  # whole columns: moved sideways, at full magnitude
            widths.add(int(filled[0].sum()))
    assert widths == {9}


@pytest.mark.parametrize("config", ["rand-m10-n1-p1-inc1", "rand-m0-n1-p1", "rand-m14-n1-p1-mmax20-inc1"])
def test_posterising_to_no_bits_gives_black(config):
    black = sum(not look(n % 60, replace(PLAIN, randaugment=config), number=n).any() for n in range(300))
    assert 6 < black < 40  # one of 15 operations


def test_randaugment_with_probability_0_changes_nothing():
    for index in range(20):
        assert np.array_equal(look(index, replace(PLAIN, randaugment="rand-m9-p0")), NOISE.image(index))


@pytest.mark.parametrize(
    "config", ["rand", OFA, "rand-m7-mstd0.5", "rand-m9-n3-p0.5-mmax15-mstd101-inc0", "rand-tweights-n15", "rand-t3aw"]
)
def test_configurations_of_timm_are_taken(config):
    look(0, replace(PLAIN, randaugment=config))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "random",
        "rand-m9-mstd0.5-inc1x",
        "rand-m",
        "rand-x3",
        "rand-inc",
        "rand-tfoo",
        "rand-n0",
        "rand m9",
        "rand-tweights-n16",
    ],
)
def test_other_configurations_are_refused(config):
    with pytest.raises(
        ValueError, match=r"configuration of timm's such as rand-m9-mstd0\.5-inc1, found|sections such as -m9 .*, found"
    ):
        replace(PLAIN, randaugment=config)


# colour jitter


def test_jitter_is_torchvisions_with_drawn_factors_in_drawn_order():
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    orders = set()
    for index in range(60):
        rng = stream("jitter", 0, 0, index)
        factors, order = rng.uniform(0.6, 1.4, 3).tolist(), rng.permutation(3).tolist()
        wanted = NOISE.image(index)
        for kind in order:
            wanted = adjust[kind](wanted, factors[kind])
        assert np.array_equal(look(index, replace(PLAIN, color_jitter=0.4)), wanted)
        orders.add(tuple(order))
    assert len(orders) == 6


def test_jitter_of_strength_0_is_the_identity():
    image = NOISE.image(0).numpy()
    assert np.array_equal(jitter(image, 0.0, np.random.default_rng(0)), image)


def test_jitter_scales_brightness_within_its_bounds():
    grey = np.full((3, 4, 4), 100, np.uint8)  # contrast and saturation leave one grey level as it is, but for rounding
    levels = [int(jitter(grey, 0.3, np.random.default_rng(i))[0, 0, 0]) for i in range(500)]
    assert 67 <= min(levels) < 73
    assert 127 < max(levels) <= 130
    assert np.mean(levels) == pytest.approx(100, abs=3)


def test_jitter_is_left_out_beside_randaugment_as_in_timm():
    with_both = replace(PLAIN, color_jitter=0.4, randaugment=OFA)
    assert not with_both.jitters
    assert all(np.array_equal(look(i, with_both), look(i, replace(with_both, color_jitter=0.0))) for i in range(20))
    assert replace(with_both, randaugment="rand-m9-t3a").jitters
    assert replace(with_both, randaugment=None).jitters
    assert not PLAIN.jitters


# erasing


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erasing_overwrites_one_box_of_the_drawn_images(probability):
    height, width, number = 40, 60, 400
    flat = ArraySource(np.full((number, height, width, 3), 77, np.uint8), None)
    augmentation = Augmentation((height, width), erasing=probability)
    areas, aspects = [], []
    for index in range(number):
        changed = (look(index, augmentation, flat) != 77).any(0)
        if not changed.any():
            continue
        (rows,), (columns,) = changed.any(1).nonzero(), changed.any(0).nonzero()
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.99  # noise of three channels hardly ever gives 77, 77, 77; and outside nothing is changed
        assert box.shape[0] < height and box.shape[1] < width
        areas.append(box.size / (height * width))
        aspects.append(box.shape[0] / box.shape[1])
    assert len(areas) / number == pytest.approx(probability, abs=0.06)
    assert 0.015 < min(areas) < 0.05 and 0.28 < max(areas) < 0.345  # 0.02 to 1/3, and rounding to whole pixels
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert 0.27 < min(aspects) < 0.45 and 2.2 < max(aspects) < 3.7


def test_erased_pixels_are_normal_about_the_mean_of_imagenet():
    values = []
    for index in range(200):
        image = np.full((3, 64, 64), 77, np.uint8)
        erase_(image, 1.0, np.random.default_rng(index))
        values.append(image[:, (image != 77).any(0)])
    noise = np.concatenate(values, axis=1) / 255
    np.testing.assert_allclose(np.median(noise, axis=1), [0.485, 0.456, 0.406], atol=0.005)
    quartiles = np.quantile(noise, [0.25, 0.75], axis=1)
    np.testing.assert_allclose((quartiles[1] - quartiles[0]) / 1.349, [0.229, 0.224, 0.225], atol=0.005)
    assert noise.min() == 0 and noise.max() == 1  # clipped


def test_an_image_too_small_for_any_box_stays():
    image = np.full((3, 1, 1), 77, np.uint8)
    erase_(image, 1.0, np.random.default_rng(0))
    assert (image == 77).all()


def test_erasing_comes_after_the_colours_and_leaves_them_alone():
    erased, without = JITTERING, replace(JITTERING, erasing=0.0)
    for index in range(30):
        same = (look(index, erased) == look(index, without)).all(0)
        assert same.mean() >= 1 - 0.36


@given(
    least=st.floats(0.01, 1),
    unit=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    scale=st.integers(8, 20),
    seed=st.integers(0, 99),
)
def test_no_crop_is_smaller_than_crop_scale_or_much_longer_than_the_target(least, unit, scale, seed):
    # the image has the target's proportions, so that where no drawn box fits the whole image is taken
    height, width = unit[0] * scale, unit[1] * scale
    source = ArraySource(np.zeros((1, height, width, 3), np.uint8), None)
    augmentation = Augmentation((unit[0] * 4, unit[1] * 4), crop="resized", crop_scale=least)
    sizes = []
    with pytest.MonkeyPatch.context() as patched:
        resize = resizing._resize
        patched.setattr(resizing, "_resize", lambda image, size: sizes.append(image.shape[1:]) or resize(image, size))
        for number in range(5):
            look(0, augmentation, source, seed=seed, number=number)
    assert len(sizes) >= 5
    for rows, columns in sizes:  # rounded to whole pixels, which is half a pixel either way
        assert rows <= height and columns <= width
        assert (rows + 0.5) * (columns + 0.5) >= least * height * width
        assert (columns - 0.5) / (rows + 0.5) <= 4 / 3 * width / height
        assert (columns + 0.5) / (rows - 0.5) >= 3 / 4 * width / height


def test_a_crop_keeps_at_least_crop_scale():
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    source = ArraySource(np.stack([ramp * 2] * 2), None)
    spans = {}
    for least in (1.0, 0.25, 0.08):
        augmentation = Augmentation((32, 32), crop="resized", crop_scale=least)
        images = [look(0, augmentation, source, number=n).astype(int) for n in range(100)]
        spans[least] = min(image.max() - image.min() for image in images)
    assert spans[1.0] > 245  # of 252
    assert 110 < spans[0.25] < 160  # sides of half the length and more
    assert 50 < spans[0.08] < 110  # sides of 0.28 of it and more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"erasing": 1.5}, "erasing: expected a value <= 1, found 1.5"),
        ({"color_jitter": -0.1}, "color_jitter: expected a value >= 0, found -0.1"),
        ({"crop_scale": 0.0}, "crop_scale: expected a value > 0, found 0"),
        ({"crop_scale": 1.1}, "crop_scale: expected a value <= 1, found 1.1"),
    ],
)
def test_impossible_numbers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **settings)
