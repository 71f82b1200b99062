"""The order and content of batches depend on the seed and the step only."""

import multiprocessing
import traceback

import numpy as np
import pytest
import torch

from references.views import training_loader, view
from uhkd.data import ArraySource, Augmentation, Batch, batch_transforms, eval_loader, steps_per_epoch
from uhkd.errors import UhkdError
from uhkd.training.batches import _wrap_errors
from uhkd.training.step import split

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
SOURCE = ArraySource(PIXELS, np.arange(50) % 7)
AUGMENTATION = Augmentation((8, 8), crop="pad", flip=True, mixup=0.4, cutmix=1.0)


def train(source=SOURCE, augmentation=AUGMENTATION, **changes):
    return training_loader(
        source, augmentation, **({"seed": 3, "batch_size": 12, "epochs": 3, "num_classes": 7} | changes)
    )


def same(first: Batch, second: Batch) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


WHOLE = list(train())


def test_batches_have_the_promised_form():
    assert len(WHOLE) == len(train()) == 3 * 4
    batch = WHOLE[0]
    assert batch.image.shape == (12, 3, 8, 8)
    assert batch.image.dtype == torch.float32
    assert 0 <= batch.image.min() < batch.image.max() <= 1
    assert batch.target.shape == (12, 7)
    assert torch.allclose(batch.target.sum(1), torch.ones(12))
    assert torch.equal(batch.label, batch.index % 7)
    assert same(batch, batch.to("cpu"))


def test_each_epoch_is_another_permutation_without_repeats():
    epochs = [torch.cat([batch.index for batch in WHOLE[4 * e : 4 * e + 4]]) for e in range(3)]
    for order in epochs:
        assert len(set(order.tolist())) == 48
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start_step", [0, 1, 4, 7, 12])
def test_any_start_and_worker_count_continue_bit_equally(workers, start_step):
    rest = list(train(workers=workers, start_step=start_step))
    assert len(rest) == 12 - start_step
    assert all(same(a, b) for a, b in zip(rest, WHOLE[start_step:], strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_processes_together_see_the_single_process_batch(world_size):
    ranks = [list(train(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, whole in enumerate(WHOLE):
        for rank in range(world_size):
            share = Batch(*(None if field is None else field[rank::world_size] for field in whole))
            assert same(ranks[rank][step], share)


def test_an_images_view_does_not_depend_on_the_batch_size():
    def first_epoch(batch_size):
        batches = train(batch_size=batch_size, epochs=1)
        return {int(i): image for batch in batches for i, image in zip(batch.index, batch.image, strict=True)}

    small, large = first_epoch(5), first_epoch(25)
    assert small.keys() == large.keys() == set(range(50))
    assert all(torch.equal(small[i], large[i]) for i in small)


def test_epoch_e_shows_view_e_or_e_modulo_views():
    def shown(views):
        images = {}
        for step, batch in enumerate(train(views=views, epochs=3, batch_size=50)):
            for i, image in zip(batch.index.tolist(), batch.image, strict=True):
                images[step, i] = image
        return images

    every, two = shown(None), shown(2)
    for i in range(50):
        for epoch in range(3):
            expected, _ = view(SOURCE, i, seed=3, view=epoch, augmentation=AUGMENTATION, num_classes=7)
            assert torch.equal(every[epoch, i], expected.float() / 255)
        assert torch.equal(two[2, i], two[0, i])
    assert any(not torch.equal(every[2, i], every[0, i]) for i in range(50))


def test_the_seed_changes_order_and_views():
    other = next(iter(train(seed=4)))
    assert not torch.equal(other.index, WHOLE[0].index)


def test_a_view_seed_changes_views_alone():
    for batch, whole in zip(train(view_seed=8), WHOLE, strict=True):
        assert torch.equal(batch.index, whole.index)
        assert not torch.equal(batch.image, whole.image)
    assert all(same(a, b) for a, b in zip(train(view_seed=3), WHOLE, strict=True))
    batch = next(iter(train(view_seed=8)))
    for index, image, target in zip(batch.index.tolist(), batch.image, batch.target, strict=True):
        expected = view(SOURCE, index, seed=8, view=0, augmentation=AUGMENTATION, num_classes=7)
        assert torch.equal(image, expected[0].float() / 255)
        assert torch.equal(target, expected[1])


def stored(number, indices, images, targets):
    """Bytes that say for which view and image they were asked."""
    assert images.dtype == torch.uint8 and len(images) == len(targets) == len(indices)
    return np.stack([np.full(len(indices), number), indices, indices + 1], axis=1).astype(np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_what_lies_beside_the_images_travels_with_them(workers, world_size):
    for rank in range(world_size):
        loader = train(workers=workers, rank=rank, world_size=world_size, record_reader=stored, views=2, start_step=2)
        for step, batch in enumerate(loader, 2):
            assert batch.record.dtype == torch.uint8
            expected = torch.stack([torch.full_like(batch.index, step // 4 % 2), batch.index, batch.index + 1], 1)
            assert torch.equal(batch.record, expected.to(torch.uint8))
            assert same(
                batch._replace(record=None),
                next(iter(train(rank=rank, world_size=world_size, views=2, start_step=step))),
            )


def test_a_record_moves_and_splits_with_its_batch():
    batch = next(iter(train(record_reader=stored)))
    assert same(batch.to("cpu"), batch)
    parts = split(batch, 3)
    assert [tuple(part.record.shape) for part in parts] == [(4, 3)] * 3
    assert torch.equal(torch.cat([part.record for part in parts]), batch.record)
    assert [part.record for part in split(WHOLE[0], 2)] == [None, None]


def test_a_record_that_cannot_be_written_to_travels():
    def locked(number, indices, images, targets):
        return np.broadcast_to(np.uint8(7), (len(indices), 2))

    assert next(iter(train(record_reader=locked))).record.tolist() == [[7, 7]] * 12


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_missing_beside_the_images_is_a_single_line(workers):
    def missing(number, indices, images, targets):
        if number == 1:
            raise UhkdError("view 1 was not stored")
        return stored(number, indices, images, targets)

    seen = []
    with pytest.raises(ValueError) as raised:
        seen.extend(train(workers=workers, record_reader=missing))
    assert str(raised.value) == "view 1 was not stored"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_lie_on_the_device_that_is_asked_for(workers):
    # "meta" stands for a device that this machine lacks
    for loader in (
        train(device="meta", workers=workers, record_reader=stored),
        eval_loader(SOURCE, (8, 8), batch_size=9, device="meta", workers=workers),
    ):
        batch = next(iter(loader))
        assert {field.device.type for field in batch if field is not None} == {"meta"}
        assert batch.image.dtype == torch.float32
    assert all(same(a, b) for a, b in zip(train(device="cpu"), WHOLE, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(workers):
    # not the state of `random`: beartype, which checks shapes under pytest, draws from it
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train(workers=workers, epochs=1))
    list(eval_loader(SOURCE, (8, 8), batch_size=20, workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_an_error_in_a_worker_process_leaves_no_process_behind():
    def missing(*_):
        raise UhkdError("this view was not stored")

    iterator = iter(train(workers=2, record_reader=missing))
    with pytest.raises(UhkdError, match="not stored") as raised:
        next(iterator)
    assert raised.value.__traceback__ is not None  # it keeps the frame of the loader alive
    assert not multiprocessing.active_children()


def test_iterating_twice_gives_the_same_batches_also_after_an_early_stop():
    loader = train(workers=2)
    for batch in loader:
        assert same(batch, WHOLE[0])
        break
    assert all(same(a, b) for a, b in zip(loader, WHOLE, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_keeps_the_last_batch(workers):
    batches = list(eval_loader(SOURCE, (8, 8), batch_size=20, workers=workers))
    assert [len(batch.index) for batch in batches] == [20, 20, 10]
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(50))
    images = torch.cat([batch.image for batch in batches])
    assert torch.equal(images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255)
    assert all(batch.target is None for batch in batches)


def test_evaluation_resizes():
    assert next(iter(eval_loader(SOURCE, (6, 10), batch_size=5))).image.shape == (5, 3, 6, 10)


def test_evaluation_under_an_augmentation_shows_unmixed_view_0():
    (batch,) = eval_loader(SOURCE, (8, 8), batch_size=50, augmentation=AUGMENTATION)
    plain = Augmentation((8, 8), crop="pad", flip=True)
    for i in range(50):
        expected, _ = view(SOURCE, i, seed=0, view=0, augmentation=plain, num_classes=7)
        assert torch.equal(batch.image[i], expected.float() / 255)


@pytest.mark.parametrize("workers", [0, 2])
def test_label_free_batches(workers):
    source = ArraySource(PIXELS, None)
    for batch in (next(iter(train(source, workers=workers))), next(iter(eval_loader(source, (8, 8), batch_size=4)))):
        assert batch.target is None
        assert batch.label is None
        assert batch.to("cpu").label is None


class Broken(ArraySource):
    def image(self, index):
        if index == 33:
            raise UhkdError("image file cat/33.png cannot be decoded")
        return super().image(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_workers_mistake_arrives_as_its_own_single_line(workers, kind):
    source = Broken(PIXELS, SOURCE.labels)
    loader = train(source, workers=workers) if kind == "train" else eval_loader(source, (8, 8), batch_size=9)
    with pytest.raises(ValueError) as raised:
        list(loader)
    assert str(raised.value) == "image file cat/33.png cannot be decoded"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_a_bug_in_an_augmentation_keeps_its_trace(monkeypatch, workers, kind):
    def broken(*_):
        raise kind("a bug")

    monkeypatch.setattr(batch_transforms, "jitter", broken)
    loader = train(augmentation=Augmentation((8, 8), color_jitter=0.4), workers=workers)
    with pytest.raises(kind, match="a bug") as raised:
        list(_wrap_errors(loader))
    assert type(raised.value) is kind
    # of another process, the trace is in the message
    assert "in broken" in "".join(traceback.format_exception(raised.value))


def test_steps_per_epoch_counts_whole_batches():
    assert [steps_per_epoch(50, size) for size in (1, 12, 25, 26, 50)] == [50, 4, 2, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 51}, r"batch size 51 is larger than the training split \(50 images\): use at most 50"),
        ({"batch_size": 0}, "batch size must be at least 1, found 0"),
        ({"world_size": 5}, "batch size 12 must be a multiple of the number of processes, 5"),
        ({"start_step": 13}, "start_step 13 is outside the run of 12 steps"),
        ({"views": 0}, "views must be at least 1"),
        ({"num_classes": 6}, "labels up to 6, but only 6 classes"),
        ({"workers": -1}, "workers must be 0 or more"),
    ],
)
def test_impossible_requests_are_refused_before_any_batch(changes, message):
    with pytest.raises(ValueError, match=message):
        train(**changes)


def test_evaluation_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="batch size must be at least 1"):
        eval_loader(SOURCE, (8, 8), batch_size=0)
