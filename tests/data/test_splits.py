"""Stratified cuts: disjoint, complete, proportional, deterministic."""

import numpy as np
import pytest

from uhkd.data import stratified_split, stratified_subset
from uhkd.data.rng import stream
from uhkd.data.splits import default_fraction

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [100, 40, 7, 2]))


def test_split_is_a_partition_with_the_same_mix_of_classes():
    train, val = stratified_split(LABELS, 0.2, seed=3)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(LABELS)))
    assert np.bincount(LABELS[val]).tolist() == [20, 8, 1, 1]
    assert np.array_equal(train, np.sort(train))


def test_split_depends_on_the_seed_only():
    first, again, other = (stratified_split(LABELS, 0.2, seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_classes_of_two_images_are_in_both_parts_and_single_ones_stay_in_training(fraction):
    labels = np.array([0, 0, 1, 2, 2, 2])
    train, val = stratified_split(labels, fraction, seed=0)
    assert set(labels[train]) == {0, 1, 2}
    assert set(labels[val]) == {0, 2}


def test_a_class_keeps_its_split_when_others_are_added():
    _, alone = stratified_split(np.zeros(50, dtype=int), 0.3, seed=1)
    _, together = stratified_split(np.repeat([0, 1], 50), 0.3, seed=1)
    assert np.array_equal(alone, together[together < 50])


@pytest.mark.parametrize(
    ("images", "held_out"), [(1, 0.2), (300, 60), (500, 100), (700, 100), (1000, 100), (1010, 101), (50_000, 5000)]
)
def test_the_default_share_holds_out_a_tenth_or_100_images_or_a_fifth(images, held_out):
    assert default_fraction(images) * images == pytest.approx(held_out)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_the_open_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="val_fraction must be between 0 and 1"):
        stratified_split(LABELS, fraction, seed=0)


@pytest.mark.parametrize("count", [4, 5, 37, 148, 149])
def test_subset_has_the_exact_size_every_class_and_near_proportions(count):
    chosen = stratified_subset(LABELS, count, seed=0)
    assert len(chosen) == len(set(chosen)) == count
    sizes = np.bincount(LABELS[chosen], minlength=4)
    assert sizes.min() >= 1
    assert np.abs(sizes - count * np.bincount(LABELS) / len(LABELS)).max() < 3
    assert np.array_equal(chosen, stratified_subset(LABELS, count, seed=0))


@pytest.mark.parametrize("count", [0, 3, 150])
def test_impossible_subset_sizes_are_refused(count):
    with pytest.raises(ValueError, match="at least one for each of the 4 classes"):
        stratified_subset(LABELS, count, seed=0)


def test_streams_differ_in_every_part_of_their_address():
    addresses = [("mix", 0, 0, 0), ("geometry", 0, 0, 0), ("mix", 1, 0, 0), ("mix", 0, 1, 0), ("mix", 0, 0, 1)]
    draws = [tuple(stream(*address).random(64)) for address in addresses]
    assert len({value for draw in draws for value in draw}) == 5 * 64
    assert draws[0] == tuple(stream(*addresses[0]).random(64))
