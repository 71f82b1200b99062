"""Epochs in which every class is drawn equally often."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhkd.data import ArraySource, Augmentation, Batch, BatchPlan, ViewPlan, balanced_order, train_loader
from uhkd.data.balanced import batch_images, check_balanced, occurrences
from uhkd.data.sampler import ShardShuffle
from uhkd.errors import UhkdError

LABELS = np.repeat(np.arange(3), (30, 8, 2))


def source(labels: np.ndarray = LABELS) -> ArraySource:
    pixels = np.random.default_rng(0).integers(256, size=(len(labels), 8, 8, 3), dtype=np.uint8)
    return ArraySource(pixels, labels)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_classes_and_the_images_of_a_class_are_drawn_equally_often(sizes: list[int], seed: int, epoch: int):
    labels = np.repeat(np.arange(len(sizes)) * 2, sizes)  # classes between them have no images
    order = balanced_order(source(labels), seed=seed, epoch=epoch)
    assert len(order) == len(labels)
    by_class = np.bincount(labels[order], minlength=labels.max() + 1)[::2]
    assert by_class.max() - by_class.min() <= 1
    by_image = np.bincount(order, minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(by_image[labels == label]) <= 1
    assert np.array_equal(order, balanced_order(source(labels), seed=seed, epoch=epoch))
    assert [(order[:i] == image).sum() for i, image in enumerate(order)] == occurrences(order).tolist()


def test_epochs_and_seeds_differ():
    orders = [balanced_order(source(), seed=s, epoch=e).tolist() for s in (0, 1) for e in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [field for field in batch if field is not None]


def test_batches_resume_and_are_shared_between_processes():
    plan, crops = (
        BatchPlan(seed=1, batch_size=10, epochs=2, balanced=True),
        Augmentation((8, 8), "pad", True, mixup=0.3),
    )
    whole = list(train_loader(source(), crops, plan, num_classes=3))
    later = list(train_loader(source(), crops, BatchPlan(1, 10, 2, 5, balanced=True), num_classes=3, workers=1))
    parts = [
        list(train_loader(source(), crops, BatchPlan(1, 10, 2, 0, rank, 2, True), num_classes=3)) for rank in (0, 1)
    ]
    for step, batch in enumerate(whole):
        assert batch.index.tolist() == batch_images(source(), seed=1, batch_size=10, step=step, balanced=True).tolist()
        for other, share in [(parts[rank][step], slice(rank, None, 2)) for rank in (0, 1)]:
            assert all(torch.equal(a, b[share]) for a, b in zip(tensors(other), tensors(batch), strict=True))
        if step >= 5:
            assert all(torch.equal(a, b) for a, b in zip(tensors(later[step - 5]), tensors(batch), strict=True))


@pytest.mark.parametrize("count", [None, 3])
def test_an_image_drawn_again_has_another_view(count: int | None):
    """Up to the number of stored views."""
    crops, plan = Augmentation((8, 8), "pad", False), BatchPlan(seed=0, batch_size=40, epochs=1, balanced=True)
    read: list[tuple[int, int]] = []

    def record(view: int, index: np.ndarray, *_: object) -> np.ndarray:
        read.extend((view, int(image)) for image in index)
        return index[:, None].astype(np.uint8)

    (batch,) = train_loader(source(), crops, plan, num_classes=3, views=ViewPlan(None, count, record))
    assert batch.record is not None and batch.target is not None and batch.record[:, 0].tolist() == batch.index.tolist()
    assert np.array_equal(LABELS[batch.index], batch.target.argmax(1))
    views = [view for view, image in read if image == 39]
    assert len(views) in (6, 7) and sorted(set(views)) == list(range(len(views) if count is None else count))


def test_what_cannot_be_drawn_by_class_is_refused():
    with pytest.raises(UhkdError, match="these have no labels"):
        check_balanced(ArraySource(np.zeros((4, 8, 8, 3), np.uint8), None))
    shards = source()
    shards.shuffle = ShardShuffle(np.array([0, 20, 40]), 1)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UhkdError, match="from all shards in any order"):
        check_balanced(shards)
