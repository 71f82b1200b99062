"""Small images are decoded once and kept within a bound; whatever is kept shows the same pixels and the same mistakes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from references.views import training_loader
from uhkd.data import Augmentation, FileSource, eval_loader, is_in_memory, memory_cache, open_data
from uhkd.data.memory_cache import CachedSource
from uhkd.recipe import FinetuneRecipe
from uhkd.training.machine import choose_workers

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 10, 12, 3), dtype=np.uint8)
AUGMENTATION = Augmentation((10, 12), crop="pad", flip=True, mixup=0.4, cutmix=1.0)


def write(root, pixels=PIXELS):
    for part in ("train", "val"):
        for i, image in enumerate(pixels if part == "train" else pixels[:4]):
            place = root / part / f"class{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:02}.png")
    return root


def batches(source, workers=0, augmentation=AUGMENTATION, **changes):
    settings = {"seed": 3, "batch_size": 6, "epochs": 3, "num_classes": 3, "workers": workers} | changes
    return training_loader(source, augmentation, **settings)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))


class Items:
    """Map-style; `change` makes the items that are read another time than before."""

    def __init__(self, count=40, size=8, change=lambda index, reads: 0):
        self.count, self.change, self.reads = count, change, [0] * count
        self.pixels = np.random.default_rng(1).integers(0, 100, (count, size, size, 3), dtype=np.uint8)
        self.targets = np.arange(count) % 2

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.reads[i] += 1
        return Image.fromarray(self.pixels[i] + np.uint8(self.change(i, self.reads[i]))), int(self.targets[i])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"crop": "resized"}], ids=str)
def test_files_are_needed_once_and_show_what_they_always_did(tmp_path, monkeypatch, workers, settings):
    data = open_data(write(tmp_path / "images"))
    augmentation = Augmentation(**(vars(AUGMENTATION) | settings))
    with monkeypatch.context() as patch:
        patch.setattr(memory_cache, "BUDGET", 0)
        unkept = open_data(tmp_path / "images")
    assert isinstance(unkept.train, FileSource) and is_in_memory(data.train) and not is_in_memory(unkept.train)
    assert data.fingerprint == unkept.fingerprint
    expected = list(batches(unkept.train, augmentation=augmentation))
    evaluated = list(eval_loader(unkept.val, (5, 6), batch_size=3))
    for number, batch in enumerate(batches(data.train, workers, augmentation)):
        assert same(batch, expected[number])
        if number == 3:  # of 4 in an epoch
            shutil.move(tmp_path / "images" / "train", tmp_path / "moved")
    assert all(same(a[:1], b[:1]) for a, b in zip(eval_loader(data.val, (5, 6), batch_size=3), evaluated, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_when_it_is_asked_for(tmp_path, workers):
    data = open_data(write(tmp_path / "images"))
    damaged = tmp_path / "images" / "train" / "class1" / "04.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image file .*04\.png cannot be decoded") as raised:
        list(batches(data.train, workers))
    assert "\n" not in str(raised.value)


def test_a_user_data_set_is_read_once_beyond_the_first_images():
    items = Items(count=60)
    data = open_data(items)
    assert is_in_memory(data.train)
    opening = sum(items.reads)
    first = list(batches(data.train, epochs=1, augmentation=Augmentation((8, 8), crop="pad"), num_classes=2))
    assert sum(items.reads) == opening + len(data.train) + 32
    again = list(batches(data.train, epochs=1, augmentation=Augmentation((8, 8), crop="pad"), num_classes=2))
    assert sum(items.reads) == opening + len(data.train) + 32
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_random_transforms_are_not_frozen():
    # every fifth image changes, in such a way that opening, which looks at some, does not see it
    items = Items(change=lambda index, reads: reads if index % 5 == 2 else 0)
    source = open_data(items, val_fraction=0.25).train
    assert isinstance(source.source, CachedSource) and source.source.source.steady
    plain = Augmentation((8, 8))
    shown = {}
    for batch in batches(source, epochs=4, augmentation=plain, num_classes=2, batch_size=10):
        for index, image in zip(batch.index.tolist(), batch.image, strict=True):
            shown.setdefault(int(source.indices[index]), []).append(image)
    for index, images in shown.items():
        differ = any(not torch.equal(images[0], image) for image in images[1:])
        assert differ == (index % 5 == 2)


def test_restless_data_is_never_kept():
    data = open_data(Items(change=lambda index, reads: reads))
    assert any("gives another image each time" in note for note in data.notes)
    assert not is_in_memory(data.train)


def test_an_image_of_another_size_ends_the_keeping(tmp_path):
    root = write(tmp_path)
    Image.fromarray(PIXELS[5, :7]).save(root / "train" / "class2" / "05.png")
    names = sorted(path.relative_to(root).as_posix() for path in (root / "train").rglob("*.png"))
    files = FileSource(root, names, np.arange(24) % 3)
    kept = CachedSource(FileSource(root, names, np.arange(24) % 3), (10, 12))
    assert kept.in_memory(np.arange(3)) is not None
    assert all(same(a, b) for a, b in zip(batches(kept), batches(files), strict=True))
    assert kept.in_memory(np.array([names.index("train/class2/05.png")])) is None


def test_keeping_is_announced_and_bounded(monkeypatch):
    note = "100 images of 64x64 kept in memory (1 MB), each decoded once"
    assert note in open_data(Items(100, 64)).notes
    assert not any("memory" in note for note in open_data(Items(100, 8)).notes)  # not worth a line
    assert not is_in_memory(open_data(Items(100, 65)).train)
    monkeypatch.setattr(memory_cache, "BUDGET", 100 * 3 * 64 * 64)
    pair = open_data((Items(100, 64), Items(40, 64)))
    assert is_in_memory(pair.train) and not is_in_memory(pair.val)
    assert pair.notes == (
        "40 images of 64x64 would take 0 MB of memory, more than the 0 MB left for the cache: "
        "they are decoded again in each epoch",
        note,
    )


def test_processes_are_started_where_they_help(monkeypatch):
    monkeypatch.setattr("uhkd.training.machine.usable_cores", lambda: 16)
    small, large = open_data(Items()), open_data(Items(40, 65))
    recipe = FinetuneRecipe(data="digits", model="uhkd/resnet10")
    assert [choose_workers(recipe, small, device) for device in ("cpu", "cuda")] == [0, 4]
    assert [choose_workers(recipe, large, device) for device in ("cpu", "cuda")] == [8, 8]
    assert choose_workers(recipe, open_data("digits"), "cpu") == 0
    assert choose_workers(recipe.model_copy(update={"workers": 3}), small, "cpu") == 3
    monkeypatch.setattr(memory_cache, "BUDGET", 0)
    assert choose_workers(recipe, open_data(Items()), "cpu") == 8
