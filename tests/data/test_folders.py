"""Image folders of both layouts, their oddities and their mistakes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from uhkd.console import listed
from uhkd.data import BatchPlan, ImageFolder, open_data, train_loader
from uhkd.data.augment import Augmentation


def fill(folder, *, classes=("ant", "bee"), count=4, size=(9, 6), ending="png", start=0):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = (40 * label, 20 * (i + start), 200)
            Image.new("RGB", size, colour).save(folder / name / f"{i + start}.{ending}")


def labels_from_pixels(source):
    return [int(source.image(i)[0, 0, 0]) // 40 for i in range(len(source))]


def test_one_folder_is_cut_stratified(tmp_path):
    fill(tmp_path, count=10)
    data = open_data(tmp_path, val_fraction=0.2)
    assert data.name == tmp_path.name
    assert data.classes == ("ant", "bee")
    assert (len(data.train), len(data.val), data.test) == (16, 4, None)
    assert np.bincount(data.val.labels).tolist() == [2, 2]
    assert labels_from_pixels(data.train) == data.train.labels.tolist()
    assert data.native_size == (6, 9)
    assert data.flip
    assert any("4 images taken from the training images" in note for note in data.notes)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_a_val_folder_is_the_validation_part(tmp_path, val):
    fill(tmp_path / "train")
    fill(tmp_path / val, count=1, start=5)
    fill(tmp_path / "test", count=2, start=7)
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 4)
    assert labels_from_pixels(data.test) == data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.notes == ()


def test_train_and_test_folders_still_cut_validation_from_train(tmp_path):
    fill(tmp_path / "train", count=10)
    fill(tmp_path / "test", count=3)
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path, classes=("apple", "test", "train"))
    assert open_data(tmp_path, val_fraction=0.25).classes == ("apple", "test", "train")


def test_val_may_lack_a_class(tmp_path):
    fill(tmp_path / "train", classes=("ant", "bee", "cat"))
    fill(tmp_path / "val", classes=("cat",))
    assert open_data(tmp_path).val.labels.tolist() == [2] * 4


def test_hidden_entries_other_files_and_nested_folders(tmp_path):
    fill(tmp_path)
    fill(tmp_path, classes=(".cache", "__MACOSX"))
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"")
    (tmp_path / "ant" / "notes.txt").write_text("x")
    (tmp_path / "ant" / "deeper").mkdir()
    Image.new("RGB", (9, 6)).save(tmp_path / "ant" / "deeper" / "x.JPEG")
    Image.new("RGB", (9, 6)).save(tmp_path / "cover.png")
    data = open_data(tmp_path, val_fraction=0.3)
    assert data.classes == ("ant", "bee")
    assert len(data.train) + len(data.val) == 9
    assert any(f"1 image directly in {tmp_path}" in note for note in data.notes)


def test_folders_beside_train_are_announced(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "drafts")
    assert any("drafts" in note for note in open_data(tmp_path, val_fraction=0.25).notes)


def test_native_size_is_none_when_sizes_differ(tmp_path):
    fill(tmp_path)
    fill(tmp_path, size=(5, 5), start=4)
    assert open_data(tmp_path).native_size is None


def test_class_names_fix_the_order_of_the_classes(tmp_path):
    fill(tmp_path)
    data = open_data(tmp_path, class_names=("cat", "bee", "ant"), val_fraction=0.25)
    assert data.classes == ("cat", "bee", "ant")
    assert set(data.train.labels.tolist()) == {1, 2}
    assert any("without training images (1): cat" in note for note in data.notes)


def test_train_limit_is_stratified_after_the_cut_and_deterministic(tmp_path):
    fill(tmp_path, count=12)
    whole, few, again = (open_data(tmp_path, val_fraction=0.25, train_limit=n) for n in (None, 6, 6))
    assert np.bincount(few.train.labels).tolist() == [3, 3]
    assert np.array_equal(few.val.indices, whole.val.indices)
    assert few.fingerprint == again.fingerprint != whole.fingerprint
    assert any("limited to 6 of 18" in note for note in few.notes)
    assert len(open_data(tmp_path, train_limit=1000).train) == 20


def test_of_many_names_the_first_are_listed():
    assert [listed(names, 2) for names in ([], ["a"], ["a", "b"])] == ["", "a", "a, b"]
    assert listed(["a\n", "b", "c", "d"], 2) == "a\\n, b and 2 more"


def test_fingerprint_follows_the_listing_and_not_the_place(tmp_path):
    fill(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = open_data(tmp_path / "a"), open_data(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != open_data(tmp_path / "a", split_seed=1).fingerprint
    (tmp_path / "b" / "ant" / "0.png").rename(tmp_path / "b" / "bee" / "new.png")
    assert first.fingerprint != open_data(tmp_path / "b").fingerprint


def test_decoded_images_stay_equal_when_read_again(tmp_path):
    fill(tmp_path)
    source = open_data(tmp_path).train
    first = source.image(0)
    first_bytes = first.clone()
    first.zero_()
    assert torch.equal(source.image(0), first_bytes)
    source.image(0).zero_()
    assert torch.equal(source.image(0), first_bytes)


def damage(tmp_path):
    fill(tmp_path / "train", count=8, size=(40, 40), ending="jpg")
    fill(tmp_path / "val", count=3)
    victim = tmp_path / "train" / "bee" / "2.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    (tmp_path / "train" / "ant" / "5.jpg").write_text("nothing")
    return victim


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_training_with_its_name(tmp_path, workers):
    damage(tmp_path)
    data = open_data(tmp_path)
    loader = train_loader(
        data.train, Augmentation((8, 8)), BatchPlan(seed=0, batch_size=8, epochs=1), num_classes=2, workers=workers
    )
    with pytest.raises(ValueError, match=r"^image file .*(2|5)\.jpg cannot be decoded .*--skip-bad-images$") as raised:
        list(loader)
    assert "\n" not in str(raised.value)


def test_damaged_images_are_skipped_and_counted_by_choice(tmp_path):
    damage(tmp_path)
    data = open_data(tmp_path, skip_bad_images=True)
    assert np.bincount(data.train.labels).tolist() == [7, 7]
    assert any("2 images in" in note and "train/bee/2.jpg" in note for note in data.notes)
    for i in range(len(data.train)):
        assert data.train.image(i).shape == (3, 40, 40)


def test_a_class_whose_images_are_all_damaged_is_named(tmp_path):
    fill(tmp_path, count=3)
    for path in (tmp_path / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"class folder .*bee has no image that can be decoded"):
        open_data(tmp_path, skip_bad_images=True)


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="no images found in"):
        open_data(tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no images found in .*<class>/<image>"):
        open_data(tmp_path)


@pytest.mark.parametrize("below", ["", "train"])
def test_images_without_class_folders_have_no_labels(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / below / f"{i}.png")
    data = open_data(tmp_path)
    assert (data.classes, data.train.labels, len(data.train) + len(data.val)) == ((), None, 3)
    with pytest.raises(ValueError, match="holds 3 images but no class folders: expected one folder for each class"):
        open_data(tmp_path, class_names=("ant", "bee"))


def test_empty_class_folder_is_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"class folder without any image in .*: wasp"):
        open_data(tmp_path)


def test_one_class_only(tmp_path):
    fill(tmp_path, classes=("ant",))
    with pytest.raises(ValueError, match=r"only one class with training images \(ant\)"):
        open_data(tmp_path)


@pytest.mark.parametrize("part", ["val", "test"])
def test_unknown_classes_in_another_part_are_listed(tmp_path, part):
    fill(tmp_path / "train")
    fill(tmp_path / part, classes=("bee", "dog", "eel"))
    with pytest.raises(ValueError, match=rf"{part} has class folders that are not among .*: dog, eel; .*ant, bee"):
        open_data(tmp_path)


def test_classes_outside_the_given_names_are_listed(tmp_path):
    fill(tmp_path)
    with pytest.raises(ValueError, match="bee; expected only: ant, cat"):
        open_data(tmp_path, class_names=("ant", "cat"))


def test_a_class_too_small_for_a_cut_is_named(tmp_path):
    fill(tmp_path)
    fill(tmp_path, classes=("lynx",), count=1)
    with pytest.raises(ValueError, match="too few images to take a validation split, only 1 in lynx"):
        open_data(tmp_path)
    opened = open_data(tmp_path, class_names=("ant", "bee", "cat", "lynx"))  # to evaluate a network of these classes
    assert sum(int((part.labels == 3).sum()) for part in (opened.train, opened.val)) == 1
    opened = open_data(tmp_path, class_names=("ant", "bee", "cat", "lynx"))  # to evaluate, not to train
    assert sorted(np.unique(opened.train.labels, return_counts=True)[1].tolist())[0] <= 1


def test_files_of_two_splits_with_one_content_are_noted(tmp_path):
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        for i, image in enumerate(pixels):
            place = tmp_path / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i}.bmp")  # all of one size
    assert not [note for note in open_data(tmp_path).notes if "content" in note]
    shutil.copy(tmp_path / "train" / "a" / "0.bmp", tmp_path / "val" / "a" / "x.bmp")
    shutil.copy(tmp_path / "train" / "b" / "1.bmp", tmp_path / "val" / "b" / "3.bmp")
    changed = bytearray((tmp_path / "train" / "a" / "2.bmp").read_bytes())
    changed[60] ^= 1  # one bit of one pixel
    (tmp_path / "test" / "a" / "2.bmp").write_bytes(changed)
    (note,) = [note for note in open_data(tmp_path).notes if "content" in note]
    assert note.startswith("2 files of val with the content of a training file") and "x.bmp = " in note


def test_parts_without_train(tmp_path):
    fill(tmp_path / "val")
    fill(tmp_path / "test")
    with pytest.raises(ValueError, match="holds test, val but no train folder"):
        open_data(tmp_path)


def test_train_limit_below_the_number_of_classes(tmp_path):
    fill(tmp_path)
    with pytest.raises(ValueError, match="train_limit 1 is too small: expected at least 2"):
        open_data(tmp_path, train_limit=1)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", "Validation", "Testing"), ("TRAIN", "dev", "EVAL"), ("train", "valid", "evaluation")],
)
def test_parts_by_their_usual_names(tmp_path, train, val, test):
    for i, part in enumerate((train, val, test)):
        fill(tmp_path / part, count=3 - i)
    data = open_data(tmp_path)
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (("ant", "bee"), 6, 4, 2)


def test_a_wrapping_folder_is_looked_through_with_a_note(tmp_path):
    fill(tmp_path / "data" / "images" / "train")
    fill(tmp_path / "data" / "images" / "val", count=1)
    (tmp_path / "data" / "attributes").mkdir()
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val)) == (8, 2)
    assert (
        f"the images of {tmp_path} are in {tmp_path}/data/images; folders next to it ignored: attributes" in data.notes
    )


def test_options_settle_the_layout(tmp_path):
    for part, count in (("splitA", 3), ("splitB", 2), ("extra", 1)):
        fill(tmp_path / part, count=count)
    data = open_data(ImageFolder(tmp_path, train="splitA", val="splitB"))
    assert (data.classes, len(data.train), len(data.val), data.test) == (("ant", "bee"), 6, 4, None)
    assert f"folders next to {tmp_path}/splitA ignored: extra" in data.notes
    elsewhere = open_data(ImageFolder(tmp_path / "splitA", val=str(tmp_path / "splitB")))
    assert (len(elsewhere.train), len(elsewhere.val)) == (6, 4)
    merged = open_data(ImageFolder(tmp_path, train="."), val_fraction=0.3)
    assert merged.classes == ("extra", "splitA", "splitB")
    assert any("12 images in subfolders of class folders" in note and "3 classes" in note for note in merged.notes)
    assert open_data(tmp_path, class_names=("splitA", "splitB", "extra"), val_fraction=0.3).classes[0] == "splitA"


def test_the_fingerprint_of_a_part_outside_does_not_depend_on_its_place(tmp_path):
    for place in ("a", "b"):
        fill(tmp_path / place / "train")
        fill(tmp_path / place / "other" / "val", count=1)
    prints = {
        open_data(ImageFolder(tmp_path / p / "train", val=str(tmp_path / p / "other/val"))).fingerprint for p in "ab"
    }
    assert len(prints) == 1


def test_test_images_without_labels_are_left_out_with_a_note(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / "1.png")
    data = open_data(tmp_path, val_fraction=0.3)
    assert data.test is None
    assert any("no class folders in" in note and "not used" in note for note in data.notes)
    with pytest.raises(ValueError, match="test holds 1 image but no class folders"):
        open_data(ImageFolder(tmp_path, test="test"))


def test_a_class_named_as_a_part_is_announced(tmp_path):
    fill(tmp_path, classes=("apple", "train"))
    data = open_data(tmp_path, val_fraction=0.3)
    assert "read as classes, because they hold images and are next to apple: train" in data.notes


def test_every_ending_of_an_image_is_listed_and_others_are_counted(tmp_path):
    fill(tmp_path, count=3)
    image = Image.new("RGB", (9, 6), (40, 0, 200))
    for ending in ("jfif", "jpe", "avif", "tga", "jp2", "ico"):
        image.save(tmp_path / "bee" / f"x.{ending}")
    (tmp_path / "ant" / "a.npy").write_bytes(b"x")
    (tmp_path / "LICENSE").write_bytes(b"x")
    data = open_data(tmp_path, val_fraction=0.3)
    assert len(data.train) + len(data.val) == 12
    assert any(note.endswith("not images: 1 without ending, 1 .npy") for note in data.notes)
    for source in (data.train, data.val):
        for i in range(len(source)):
            source.image(i)
