"""The digits, CIFAR-100 on disk, `.npz` files, users' data sets, and what is said when they do not fit."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import CIFAR100

from uhkd.data import ImageSource, open_data

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (30, 8, 10, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def test_digits_are_the_real_ones_with_a_fixed_test_part():
    data, other = open_data("digits"), open_data("digits", split_seed=1)
    assert data.classes == tuple("0123456789")
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert 350 < len(data.test) < 370
    assert data.native_size == (8, 8)
    assert not data.flip
    assert set(data.val.labels) == set(data.test.labels) == set(range(10))
    image = data.train.image(0)
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[2])
    assert max(int(data.train.image(i).max()) for i in range(20)) == 255
    assert data.test.fingerprint() == other.test.fingerprint()
    assert data.val.fingerprint() != other.val.fingerprint()
    assert isinstance(data.train, ImageSource)


def write_cifar(root, monkeypatch):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = {}
    entries = {"train": 40, "test": 20}
    for part, count in entries.items():
        pixels[part] = GENERATOR.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        planes = pixels[part].transpose(0, 3, 1, 2).reshape(count, -1)
        entry = {"data": planes, "fine_labels": [i % 4 for i in range(count)]}
        (folder / part).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear", "train", "wolf"]}))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5["meta"]})
    return pixels


@pytest.mark.parametrize("below", ["", "cifar-100-python"])
def test_cifar100_as_torchvision_stores_it(tmp_path, monkeypatch, below):
    pixels = write_cifar(tmp_path, monkeypatch)
    data = open_data(f"cifar100:{tmp_path / below}")
    assert data.name == "cifar100"
    assert data.classes == ("apple", "bear", "train", "wolf")
    assert (len(data.train), len(data.val), len(data.test)) == (32, 8, 20)
    assert data.native_size == (32, 32)
    assert np.array_equal(data.test.image(3).permute(1, 2, 0).numpy(), pixels["test"][3])
    assert data.test.labels.tolist() == [i % 4 for i in range(20)]


def test_cifar100_is_looked_for_in_the_usual_places(tmp_path, monkeypatch):
    write_cifar(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert len(open_data("cifar100").test) == 20


def test_cifar100_absent_or_damaged(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"CIFAR-100 not found: expected the folder .*cifar100:ROOT"):
        open_data(f"cifar100:{tmp_path}")
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"x")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        open_data(f"cifar100:{tmp_path}")


def write_npz(path, **changes):
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:6], "test_labels": LABELS[:6]}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


def test_npz(tmp_path):
    data = open_data(write_npz(tmp_path / "set.npz"))
    assert data.name == "set"
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 6)
    assert data.native_size == (8, 10)
    assert np.array_equal(data.test.image(5).permute(1, 2, 0).numpy(), IMAGES[5])
    assert open_data(tmp_path / "set.npz", class_names=["a", "b", "c"]).classes == ("a", "b", "c")


def test_npz_with_validation_part_grey_images_and_names(tmp_path):
    names = np.array(["x", "y", "z"])
    changes = {"train_images": IMAGES[..., 0], "val_images": IMAGES[:4, ..., :1], "val_labels": LABELS[:4]}
    data = open_data(write_npz(tmp_path / "set.npz", classes=names, **changes))
    assert data.classes == ("x", "y", "z")
    assert (len(data.train), len(data.val)) == (30, 4)
    assert torch.equal(data.train.image(1)[2], torch.from_numpy(IMAGES[1, ..., 0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "lacks train_images: expected .* found test_images, test_labels, train_labels"),
        ({"test_labels": None}, "only one of test_images and test_labels"),
        ({"train_images": IMAGES / 255}, "train_images must be uint8 .* found float64"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, r"found uint8 of shape \(30, 3, 8, 10\)"),
        (
            {"train_labels": LABELS[:-1]},
            r"train_labels must be integers of shape \(30,\).* found int64 of shape \(29,\)",
        ),
        ({"train_labels": LABELS.astype(float)}, "found float64"),
        ({"train_labels": LABELS - 1}, "labels must count from 0, found -1"),
        ({"test_labels": LABELS[:6] + 1}, "test labels go up to 3, but there are 3 classes"),
        ({"train_labels": LABELS * 0, "test_labels": LABELS[:6] * 0}, r"only one class with training images \(0\)"),
        ({"train_labels": np.array([{}] * 30)}, "not a readable .npz file of plain arrays"),
    ],
)
def test_unsuitable_npz(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_data(write_npz(tmp_path / "set.npz", **changes))


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "set.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a readable"):
        open_data(tmp_path / "set.npz")
    (tmp_path / "set.zip").write_text("hello")
    with pytest.raises(ValueError, match="is a file: expected a folder of class folders"):
        open_data(tmp_path / "set.zip")


class Pictures(Dataset):
    """Counts what is read, so that a test sees whether labels cost a pass."""

    def __init__(self, count=30, **attributes):
        self.count, self.read = count, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.read += 1
        return Image.fromarray(IMAGES[i % 30]), int(LABELS[i % 30])


def test_users_dataset_by_one_pass():
    data = open_data(Pictures())
    assert data.name == "Pictures"
    assert data.classes == ("0", "1", "2")
    assert (len(data.train), len(data.val)) == (24, 6)
    assert data.native_size == (8, 10)
    where = int(data.train.indices[4])
    assert np.array_equal(data.train.image(4).permute(1, 2, 0).numpy(), IMAGES[where])
    assert data.train.labels[4] == LABELS[where]


@pytest.mark.parametrize("attribute", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_listed_labels_spare_the_pass(attribute, kind):
    dataset = Pictures(300, **{attribute: kind(LABELS.tolist() * 10), "classes": ["a", "b", "c"]})
    data = open_data(dataset)
    assert data.classes == ("a", "b", "c")
    assert np.array_equal(np.bincount(data.train.labels), [80, 80, 80])
    assert dataset.read < 40


def test_share_of_held_out_images():
    labels = np.tile(LABELS, 24)
    opened = open_data(Pictures(720, targets=labels))
    assert (len(opened.val), opened.val_fraction) == (99, 100 / 720)  # rounded in each class
    recorded = open_data(Pictures(720, targets=labels), val_fraction=opened.val_fraction)
    assert recorded.fingerprint == opened.fingerprint
    chosen = open_data(Pictures(720, targets=labels), val_fraction=0.1)
    assert (len(chosen.val), chosen.val_fraction) == (72, 0.1)
    assert set(chosen.val.indices) < set(opened.val.indices)
    assert open_data((Pictures(), Pictures())).val_fraction is None


def test_a_subset_takes_the_listed_labels_of_the_whole():
    dataset = Pictures(300, targets=np.tile(LABELS, 10))
    data = open_data(Subset(dataset, list(range(299, 99, -1))), val_fraction=0.2)
    assert dataset.read < 40
    assert np.array_equal(data.train.source.labels, np.tile(LABELS, 10)[299:99:-1])


def test_listed_labels_that_disagree_with_the_items_are_not_used():
    data = open_data(Pictures(targets=(LABELS + 1) % 3))
    assert np.array_equal(data.train.source.labels, LABELS)


def test_a_pair_is_training_and_validation():
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    data = open_data((Pictures(), TensorDataset(pixels[:7] / 255, torch.from_numpy(LABELS[:7]))))
    assert (len(data.train), len(data.val), data.test) == (30, 7, None)
    assert torch.equal(data.val.image(6), pixels[6])
    assert data.val.labels.tolist() == LABELS[:7].tolist()


class Unlabelled(Pictures):
    def __getitem__(self, i):
        return torch.from_numpy(IMAGES[i]).permute(2, 0, 1)


def test_a_dataset_without_labels_is_label_free():
    data = open_data(Unlabelled(), train_limit=10)
    assert data.classes == ()
    assert data.train.labels is None
    assert (len(data.train), len(data.val)) == (10, 6)
    assert any("no labels" in note for note in data.notes)
    with pytest.raises(ValueError, match="one split has labels and another has none"):
        open_data((Pictures(), Unlabelled()))


class Restless(Pictures):
    def __getitem__(self, i):
        return Image.fromarray(GENERATOR.integers(0, 256, (4, 4, 3), dtype=np.uint8)), int(LABELS[i])


def test_random_transforms_are_noticed():
    assert any("another image each time" in note for note in open_data(Restless()).notes)


class Items(Pictures):
    def __init__(self, item):
        super().__init__(count=6)
        self.item = item

    def __getitem__(self, i):
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


PICTURE = Image.fromarray(IMAGES[0])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items({"image": PICTURE, "kind": 1}), "no columns with usual names of labels: choose one of kind"),
        (Items((PICTURE, None)), r"item 0 of the data set has no label \(None\)"),
        (Items((PICTURE, torch.ones(3))), r"is a Tensor of shape \(3,\): multi-label data .* not supported"),
        (Items((torch.full((3, 4, 4), -1.5), 1)), "item 0 of the data set cannot be read .*normalising transform"),
        (Items(KeyError("gone")), r"item 0 of the data set cannot be read \(KeyError: 'gone'\)"),
        (Pictures(count=0), "the data set is empty"),
        (iter([1]), "must have __len__ and __getitem__"),
        ((Pictures(),), r"must be \(train, val\), found 1 entries"),
        (("train", "val"), "the training data set must have __len__ and __getitem__ .*, found str"),
        (Items((PICTURE, 0)), "only one class"),
    ],
)
def test_unsuitable_datasets(dataset, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_data(dataset)
    assert "\n" not in str(raised.value)


def test_class_names_must_fit_the_labels():
    with pytest.raises(ValueError, match="training labels go up to 2, but there are 2 classes"):
        open_data(Pictures(), class_names=["a", "b"])
    with pytest.raises(ValueError, match="class names must differ"):
        open_data(Pictures(), class_names=["a", "b", "b"])


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("flowrs", "did you mean .*flowers"),
        ("flowrs/deeper/still", "did you mean .*flowers"),
        ("digit", "did you mean digits"),
        ("cifar-100", "did you mean cifar100"),
        ("qqqq", "give a path, or one of: digits, cifar100"),
    ],
)
def test_a_missing_path_gets_the_nearest_names(tmp_path, monkeypatch, wrong, hint):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"data {wrong} does not exist; {hint}"):
        open_data(wrong)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 2.5, -1.0])
def test_val_fraction_outside_its_range(fraction):
    with pytest.raises(ValueError, match="val_fraction must be between 0 and 1"):
        open_data("digits", val_fraction=fraction)
