"""Labels of users' data sets: their forms, lists beside the items, class names, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from uhkd.data import Columns, open_data

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(300)]
NAMES = ["ant", "bee", "cow"]


class Pairs(Dataset):
    """Counts what is read; attributes as given."""

    def __init__(self, values, **attributes):
        self.values, self.read = values, 0
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        self.read += 1
        return Image.fromarray(IMAGES[i % 20]), self.values[i]


class Wrapper(Dataset):
    def __init__(self, dataset, change=lambda label: label):
        self.dataset, self.change = dataset, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        image, label = self.dataset[i]
        return image, self.change(label)


def labels_of(data):
    """The labels of all images, in the order of the data set."""
    return data.train.source.labels.tolist()


def read_all(data):
    return any("are read from all" in note for note in data.notes)


@pytest.mark.parametrize(
    "listed",
    [
        LABELS[:150] + [(label + 1) % 3 for label in LABELS[150:]],
        [*LABELS[:-1], 0],
        LABELS[::-1],
        [str(label) for label in LABELS],
        [None] * 300,
        [0, 1, 2],
    ],
    ids=["second half", "last", "reversed", "text", "none", "length"],
)
def test_a_list_that_differs_from_the_items_is_not_trusted(listed):
    data = open_data(Pairs(LABELS, targets=listed))
    assert labels_of(data) == LABELS and read_all(data)


def test_a_class_that_is_listed_wrongly_is_found():
    """Sorted by class, so that the class of one image is between two positions of the spread."""
    values = [0] * 100 + [1] * 3 + [2] * 197
    data = open_data(Pairs(values, targets=[3 if value == 1 else value for value in values]), val_fraction=0.05)
    assert labels_of(data) == values and read_all(data)


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": LABELS},
        {"_labels": np.array(LABELS)},
        {"samples": [("x", label) for label in LABELS]},
        {"labels": pytest.importorskip("pandas").DataFrame({"y": LABELS}, index=range(300, 0, -1))["y"]},
        {"targets": np.eye(3)[LABELS]},
    ],
    ids=["list", "underscore", "samples", "pandas", "one-hot"],
)
@pytest.mark.parametrize("wrap", [Wrapper, lambda d: Subset(d, torch.arange(300)), lambda d: ConcatDataset([d])])
def test_lists_are_found_through_wrappers(attributes, wrap):
    dataset = Pairs(LABELS, classes=NAMES, **attributes)
    data = open_data(wrap(dataset))
    assert labels_of(data) == LABELS and data.classes == tuple(NAMES)
    assert dataset.read < 60 and not read_all(data)


def test_random_split_keeps_class_names():
    train, val = random_split(Pairs(LABELS, targets=LABELS, class_to_idx={"b": 1, "a": 0, "c": 2}), [200, 100])
    data = open_data((train, val))
    assert data.classes == ("a", "b", "c") and not read_all(data)
    assert data.val.labels.tolist() == [LABELS[i] for i in val.indices]


def test_a_wrapper_that_changes_labels_has_other_classes():
    data = open_data(Wrapper(Pairs(LABELS, targets=LABELS, classes=NAMES), lambda label: (label + 1) % 3))
    assert labels_of(data) == [(label + 1) % 3 for label in LABELS] and data.classes == ("0", "1", "2")


def test_tensor_datasets_list_their_labels():
    data = open_data(TensorDataset(torch.zeros(30, 3, 8, 8), torch.arange(30) % 3))
    assert labels_of(data) == LABELS[:30] and not read_all(data)


@pytest.mark.parametrize(
    "values",
    [
        [NAMES[label] for label in LABELS],
        np.array(NAMES)[LABELS],
        [float(label) for label in LABELS],
        list(torch.eye(3)[LABELS]),
        np.eye(3, dtype=int)[LABELS].tolist(),
        torch.tensor(LABELS)[:, None],
    ],
    ids=["names", "array of names", "floats", "one-hot tensors", "one-hot lists", "tensors (1,)"],
)
def test_other_forms_of_labels(values):
    data = open_data(Pairs(values))
    assert labels_of(data) == LABELS and len(data.classes) == 3 and read_all(data)
    form = {str: "names", np.str_: "names", float: "floats"}.get(type(values[0]), "one-hot")
    assert isinstance(values, torch.Tensor) or any(form in note for note in data.notes)


def test_names_have_the_order_of_the_class_list():
    data = open_data(Pairs([NAMES[label] for label in LABELS], classes=[*NAMES[::-1], "dog"]))
    assert labels_of(data) == [2 - label for label in LABELS] and data.classes == ("cow", "bee", "ant", "dog")


def test_labels_from_1_are_pointed_out():
    data = open_data(Pairs([label + 1 for label in LABELS]))
    assert data.classes == ("0", "1", "2", "3")
    assert any("labels start at 1" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"labels go up to 3, but there are 3 classes .*subtract 1"):
        open_data(Pairs([label + 1 for label in LABELS], classes=NAMES))


def test_validation_classes_are_matched_by_name():
    train, val = Pairs(LABELS, classes=NAMES), Pairs([0, 1] * 9, classes=["cow", "bee"])
    data = open_data((train, val))
    assert data.val.labels.tolist() == [2, 1] * 9
    assert any("only 2 of the 3 classes" in note for note in data.notes)
    text = open_data((Pairs([NAMES[label] for label in LABELS]), Pairs(["cow", "bee"] * 9)))
    assert text.val.labels.tolist() == [2, 1] * 9
    split = open_data({"train": train, "validation": Pairs(LABELS), "test": Pairs(["cow"] * 4)})
    assert split.test.labels.tolist() == [2] * 4


def test_one_validation_class_is_pointed_out():
    data = open_data((Pairs(LABELS, classes=NAMES), Pairs([1] * 9)))
    assert any("validation images of only 1 of 3 classes (bee)" in note for note in data.notes)


def test_classes_are_those_of_the_network():
    data = open_data(Pairs(LABELS, classes=NAMES), class_names=["cow", "dog", "bee", "ant"])
    assert data.classes == ("cow", "dog", "bee", "ant")
    assert labels_of(data) == [3 - label if label < 2 else 0 for label in LABELS]
    # a network that was trained on the subset when subsets had no class names
    old = open_data(Subset(Pairs(LABELS, targets=LABELS, classes=NAMES), range(90)), class_names=["0", "1", "2"])
    assert old.classes == ("0", "1", "2") and labels_of(old) == LABELS[:90]
    with pytest.raises(ValueError, match="not those of the network"):
        open_data(Pairs(LABELS, classes=NAMES), class_names=["0", "1", "2"])


def test_unusable_labels_can_be_ignored():
    assert open_data(Pairs([torch.ones(3)] * 30), labels=False).train.labels is None


class Dicts(Pairs):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return {"id": i, "pixel_values": image, "kind": label, "note": "x"}


def test_items_that_are_dicts():
    data = open_data(Columns(Dicts(LABELS, targets=LABELS, classes=NAMES), label="kind"))
    assert labels_of(data) == LABELS and "the data set: images from column pixel_values, labels from kind" in data.notes
    assert open_data(Dicts(LABELS), labels=False).train.labels is None
    unused = open_data(Columns(Pairs(LABELS), label="kind"))
    assert any("label_column are not used" in note for note in unused.notes)
