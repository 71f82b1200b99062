"""Views made all at once equal, to the bit, those made one by one; so do the random numbers behind them."""

import hashlib

import numpy as np
import pytest
import torch

from references.views import view
from uhkd.data import ArraySource, Augmentation, Split, augment_batch
from uhkd.data.batch_transforms import augment_unmixed
from uhkd.data.memory_cache import CachedSource
from uhkd.data.rng import stream, streams

EDGES = [0, 1, 2, 255, 2**31 - 1, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
SIZE = (12, 20)
PIXELS = np.random.default_rng(0).integers(0, 256, (30, *SIZE, 3), dtype=np.uint8)
ARRAY = ArraySource(PIXELS, np.arange(30) % 7)
EVERYTHING = {"crop": "pad", "flip": True, "mixup": 0.8, "cutmix": 1.0}


class Own:
    """A user's source, with no more than the protocol asks for."""

    labels = ARRAY.labels

    def __len__(self):
        return 30

    def image(self, index):
        return torch.from_numpy(PIXELS[index].transpose(2, 0, 1).copy())


SOURCES = {
    "array": ARRAY,
    "part": Split(ARRAY, np.random.default_rng(1).permutation(30)[:21]),
    "part of a part": Split(Split(ARRAY, np.arange(29, 3, -1)), np.array([0, 25, 3, 3, 17])),
    "kept": CachedSource(Own(), SIZE),
    "own": Own(),
    "without labels": ArraySource(PIXELS, None),
    "one image": ArraySource(PIXELS[:1], np.array([3])),
    "grey": ArraySource(PIXELS[..., 0], ARRAY.labels),
}
CONFIGURATIONS = [
    {},
    {"crop": "pad"},
    {"flip": True},
    {"crop": "pad", "flip": True},
    {"crop": "resized", "flip": True, "cutmix": 0.5},
    {"mixup": 0.2},
    {"cutmix": 1.0, "crop": "pad"},
    {"mixup": 2.5, "cutmix": 3.0, "flip": True},
    EVERYTHING,
    {"crop": "pad", "flip": True, "randaugment": "rand-m9-mstd0.5-inc1", "erasing": 0.5},
    {"color_jitter": 0.4, "erasing": 1.0} | EVERYTHING,
    {"randaugment": "rand-m5-n1", "color_jitter": 0.4, "mixup": 0.3},
]


def one_by_one(source, indices, **address):
    pairs = [view(source, int(i), **address) for i in indices]
    targets = [target for _, target in pairs if target is not None]
    return torch.stack([image for image, _ in pairs]), torch.stack(targets) if targets else None


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    assert found[1] is expected[1] is None or torch.equal(found[1], expected[1])


@pytest.mark.parametrize("seed", EDGES)
def test_streams_are_numpys_own(seed):
    for number in EDGES:
        for rng, index in zip(streams("geometry", seed, number, [*EDGES, -3, -1]), [*EDGES, -3, -1], strict=True):
            counter = np.array([0, 2, number, index % 2**64], dtype=np.uint64)
            philox = np.random.Philox(counter=counter, key=np.array([seed, 0], dtype=np.uint64))
            assert np.array_equal(rng.random(4), np.random.Generator(philox).random(4))


def test_streams_of_unlike_addresses_differ():
    drawn = [
        rng.random(4)
        for purpose in ("geometry", "mix")
        for seed in (0, 1)
        for number in (0, 1)
        for rng in streams(purpose, seed, number, range(50))
    ]
    assert len(np.unique(np.concatenate(drawn))) == 8 * 50 * 4
    assert 0 <= min(each.min() for each in drawn) < 0.01
    assert 0.99 < max(each.max() for each in drawn) < 1


def test_a_moving_generator_draws_what_one_of_each_address_draws():
    def draw(rng):
        # 32-bit numbers are drawn in pairs: half a pair left over must not reach the next address
        return [rng.random(), rng.beta(0.4, 0.4), rng.beta(2, 2), *rng.integers(100, size=3, dtype=np.uint32).tolist()]

    for seed, first in ((0, 0), (2**64 - 1, 2**63), (5, 7)):
        moving = [draw(rng) for rng in streams("mix", seed, first, EDGES)]
        assert moving == [draw(stream("mix", seed, first, second)) for second in EDGES]


@pytest.mark.parametrize("settings", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_views_at_once_equal_views_one_by_one(name, settings):
    source, augmentation = SOURCES[name], Augmentation(SIZE, **settings)
    order = np.random.default_rng(2).permutation(len(source))[:11]
    for seed, number in ((0, 0), (2**31 - 1, 299), (2**64 - 1, 2**63)):
        address = {"seed": seed, "view": number, "augmentation": augmentation, "num_classes": 7}
        assert_equal(augment_batch(source, order, **address), one_by_one(source, order, **address))


@pytest.mark.parametrize("size", [(12, 19), (8, 8), (1, 1), (24, 40)])
def test_images_of_another_size_are_fitted_as_before(size):
    address = {"seed": 1, "view": 2, "augmentation": Augmentation(size, **EVERYTHING), "num_classes": 7}
    assert_equal(augment_batch(ARRAY, np.arange(9), **address), one_by_one(ARRAY, np.arange(9), **address))


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (7, 8), (17, 2)])
def test_narrow_images(shape):
    source = ArraySource(np.random.default_rng(3).integers(0, 256, (9, *shape, 3), dtype=np.uint8), np.arange(9))
    address = {"seed": 1, "view": 2, "augmentation": Augmentation(shape, **EVERYTHING), "num_classes": 9}
    assert_equal(augment_batch(source, np.arange(9), **address), one_by_one(source, np.arange(9), **address))


def test_a_view_does_not_know_its_batch():
    address = {"seed": 4, "view": 1, "augmentation": Augmentation(SIZE, **EVERYTHING), "num_classes": 7}
    whole = augment_batch(ARRAY, np.arange(30), **address)
    pieces = [augment_batch(ARRAY, order, **address) for order in np.split(np.arange(30), [1, 8, 9])]
    assert_equal(tuple(torch.cat(each) for each in zip(*pieces, strict=True)), whole)


@pytest.mark.parametrize("settings", [{}, {"crop": "pad", "flip": True}, EVERYTHING, {"erasing": 1.0}], ids=str)
def test_views_are_fresh_memory(settings):
    before = ARRAY.images.clone()
    images, _ = augment_batch(
        ARRAY, np.arange(30), seed=0, view=0, augmentation=Augmentation(SIZE, **settings), num_classes=7
    )
    images.fill_(77)
    assert torch.equal(ARRAY.images, before)


def test_a_source_that_reads_in_its_own_way_is_asked():
    class Inverted(ArraySource):
        def image(self, index):
            return 255 - super().image(index)

    inverted = Inverted(PIXELS, ARRAY.labels)
    for source, original in ((inverted, ARRAY), (Split(inverted, np.arange(9)), Split(ARRAY, np.arange(9)))):
        address = {"seed": 3, "view": 1, "augmentation": Augmentation(SIZE, crop="pad", flip=True)}
        assert np.array_equal(
            augment_unmixed(source, np.arange(9), **address), 255 - augment_unmixed(original, np.arange(9), **address)
        )


def test_global_generators_play_no_part_and_stay():
    augmentation = Augmentation(SIZE, randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.2, erasing=0.5, mixup=1.0)
    address = {"seed": 4, "view": 1, "augmentation": augmentation, "num_classes": 7}
    first = augment_batch(ARRAY, np.arange(30), **address)
    np.random.seed(9)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert_equal(augment_batch(ARRAY, np.arange(30), **address), first)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_what_a_recipe_shows_stays():
    # taken before views were made at once; whoever changes it changes what every recipe means
    digest = hashlib.blake2b(digest_size=8)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.arange(40) % 5)
    augmentation = Augmentation((16, 24), **EVERYTHING)
    for seed, number in ((0, 0), (7, 3), (2**31 - 1, 299)):
        address = {"seed": seed, "view": number, "augmentation": augmentation, "num_classes": 5}
        for image, target in zip(*augment_batch(source, np.arange(40), **address), strict=True):
            digest.update(image.numpy().tobytes())
            digest.update(target.numpy().tobytes())
    assert digest.hexdigest() == "0e22f943e5395534"
