"""Tar shards: every sample once, in an order that can be resumed and dealt out, by name and from elsewhere."""

import io
import json
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from references.tars import number_of, picture, sample, write_shards, write_tar
from references.views import training_loader, view
from uhkd.commands import index as index_verb
from uhkd.data import (
    INDEX,
    Augmentation,
    ShardOptions,
    ShardSource,
    Split,
    augment_batch,
    make_index,
    open_data,
)
from uhkd.data.remote import ShardStore
from uhkd.data.rng import stream
from uhkd.data.sampler import ShardShuffle, epoch_order
from uhkd.data.tar_index import read_index
from uhkd.data.tar_source import expand
from uhkd.errors import UhkdError

NEAR = ShardOptions(at_a_time=2, streams=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """48 training samples in shards of several sizes, 8 of validation."""
    write_shards(tmp_path / "tars", (10, 6, 12, 8, 7, 5))
    return write_shards(tmp_path / "tars", (8,), "val", first=100)


def train_part(folder: Path | str, **words: Any) -> ShardSource:
    source = open_data(folder, **words).train
    while not isinstance(source, ShardSource):
        source = source.source  # pyright: ignore[reportAttributeAccessIssue]
    return source


# ---- the order of an epoch


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    at_a_time=st.integers(1, 14),
    streams=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_an_order_shows_each_image_once_and_few_shuffle_shards(
    sizes: list[int], at_a_time: int, streams: int, seed: int
):
    shuffle = ShardShuffle(np.concatenate([[0], np.cumsum(sizes)]), at_a_time, streams)
    order = shuffle.order(stream("order", seed, 0))
    assert sorted(order) == list(range(sum(sizes)))
    each = sum(sizes) // streams
    shards = np.repeat(np.arange(len(sizes)), sizes)
    for lane in range(streams):
        seen = shards[order[: each * streams]][lane::streams].tolist()
        # a shard is left for good when `at_a_time` others were begun after it
        for place, shard in enumerate(seen):
            last = len(seen) - 1 - seen[::-1].index(shard)
            assert len(set(seen[place : last + 1])) <= at_a_time


def test_streams_read_shards_of_their_own_whatever_the_number_of_processes(folder: Path):
    source = train_part(folder, shards=ShardOptions(at_a_time=1, streams=4))
    order = epoch_order(source, seed=3, epoch=1)
    shards = np.searchsorted(source.index.bounds, order, side="right") - 1
    in_streams = [set(shards[lane::4]) for lane in range(4)]
    # six shards are cut into four equal stretches: a shard is in two streams at most, at the cut
    assert all(sum(shard in lane for lane in in_streams) <= 2 for shard in range(6))
    assert not np.array_equal(order, epoch_order(source, seed=3, epoch=2))
    assert np.array_equal(order, epoch_order(source, seed=3, epoch=1))


def batches(source: Any, **words: Any) -> list[list[int]]:
    augmentation = Augmentation((12, 12))
    asked = {"seed": 5, "batch_size": 8, "epochs": 2, "num_classes": 4} | words
    return [
        [number_of(image) for image in (batch.image * 255).byte().numpy()]
        for batch in training_loader(source, augmentation, **asked)
    ]


def visit(folder: Path, rank: int, workers: int, out: Path) -> None:
    """What one process of two sees, written down."""
    source = train_part(folder, shards=NEAR)
    out.write_text(json.dumps(batches(source, rank=rank, world_size=2, workers=workers)))


def test_two_processes_with_two_loaders_each_see_every_sample_once(folder: Path, tmp_path: Path):
    files = [tmp_path / f"rank-{rank}.json" for rank in range(2)]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=visit, args=(folder, rank, 2, file)) for rank, file in enumerate(files)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    first, second = (json.loads(file.read_text()) for file in files)
    assert len(first) == len(second) == 12
    for epoch in (slice(0, 6), slice(6, 12)):
        seen = [number for one in (first, second) for batch in one[epoch] for number in batch]
        assert sorted(seen) == list(range(48))
    alone = batches(train_part(folder, shards=NEAR))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in alone]
    # by as many streams as processes, each reads a half of the shards, but for the one at the cut
    bounds = np.cumsum([10, 6, 12, 8, 7, 5])
    halves = [
        set(np.searchsorted(bounds, [n for batch in one[:6] for n in batch], side="right")) for one in (first, second)
    ]
    assert len(halves[0] & halves[1]) <= 1


def test_a_loader_begun_in_the_middle_goes_on_exactly(folder: Path):
    source = train_part(folder, shards=NEAR)
    whole = batches(source)
    assert batches(source, start_step=7, workers=1) == whole[7:]
    with pytest.raises(ValueError, match="batch size 9 must be a multiple of the number of shuffle streams, 2"):
        batches(source, batch_size=9)


# ---- samples are known by their names


def resharded(folder: Path, sizes: tuple[int, ...]) -> Path:
    """The same samples as `folder`'s training ones in other shards, and eight more before them."""
    write_shards(folder, (8,), "train-a", first=200)
    return write_shards(folder, sizes, "train-b")


def by_key(source: ShardSource, augmentation: Augmentation) -> dict[int, torch.Tensor]:
    images, _ = augment_batch(source, np.arange(len(source)), seed=1, view=3, augmentation=augmentation, num_classes=4)
    return dict(zip(source.keys.tolist(), images, strict=True))


def test_a_view_is_that_of_the_sample_wherever_it_lies(folder: Path, tmp_path: Path):
    augmentation = Augmentation(
        (12, 12), crop="resized", flip=True, randaugment="rand-m9", color_jitter=0.3, erasing=0.5
    )
    other = train_part(resharded(tmp_path / "other", (20, 28)))
    mine, theirs = by_key(train_part(folder), augmentation), by_key(other, augmentation)
    assert len(mine) == 48 and len(theirs) == 56 and mine.keys() < theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    part = Split(other, np.arange(20, 40))
    images, _ = augment_batch(part, np.arange(20), seed=1, view=3, augmentation=augmentation, num_classes=4)
    assert all(torch.equal(image, theirs[int(key)]) for image, key in zip(images, part.keys, strict=True))


@pytest.mark.parametrize("shards", [None, NEAR])
def test_views_one_by_one_are_those_of_a_batch(folder: Path, shards: ShardOptions | None):
    augmentation = Augmentation((12, 12), crop="pad", flip=True, mixup=0.5, cutmix=0.5, erasing=0.3)
    source = train_part(folder, shards=shards)
    words = {"seed": 2, "view": 1, "augmentation": augmentation, "num_classes": 4}
    images, targets = augment_batch(source, np.arange(48), **words)
    for i in range(48):
        image, target = view(source, i, **words)
        assert (
            torch.equal(image, images[i])
            and targets is not None
            and target is not None
            and torch.equal(target, targets[i])
        )


def test_where_few_shards_are_read_a_partner_is_of_the_same_shard(folder: Path):
    near, far = train_part(folder, shards=NEAR), train_part(folder)
    labels = np.zeros(48, np.int64)
    labels[near.index.bounds[2] : near.index.bounds[3]] = 1  # the third shard
    near.labels = far.labels = labels
    words = {"seed": 0, "view": 0, "augmentation": Augmentation((12, 12), mixup=1.0), "num_classes": 2}
    inside = augment_batch(near, np.arange(48), **words)[1]
    assert (
        inside is not None
        and torch.equal(inside.argmax(1), torch.from_numpy(labels))
        and bool((inside.amax(1) == 1).all())
    )
    across = augment_batch(far, np.arange(48), **words)[1]
    assert across is not None and bool((across.amax(1) < 1).any())


def test_a_name_that_is_in_two_shards_counts_with_its_shard(tmp_path: Path):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [m for n in range(4) for m in sample(10 * shard + n, 2, key=f"{n}")])
    assert len(set(train_part(tmp_path).keys.tolist())) == 8
    write_tar(tmp_path / "0.tar", [*sample(1, key="a"), *sample(2, key="b"), *sample(3, key="a")])
    with pytest.raises(ValueError, match=r"two samples of one shard have the name 0\.tar/a"):
        open_data(tmp_path)


# ---- what is found in a folder


def test_layouts(folder: Path, tmp_path: Path):
    data = open_data(folder)
    assert (len(data.train), len(data.val), data.classes, data.native_size) == (48, 8, tuple("0123"), (12, 12))
    assert data.notes[:2] == ("48 train images in 6 shards", "8 val images in 1 shard")
    assert [number_of(data.val.image(i).numpy()) for i in range(8)] == list(range(100, 108))
    assert data.val.labels is not None and data.val.labels.tolist() == [n % 4 for n in range(100, 108)]
    assert len(open_data(f"wds/{folder}").train) == 48
    some = open_data(f"{folder}/train-{{0001..0003}}.tar", val_fraction=0.25)
    assert len(some.train) + len(some.val) == 26 and len(some.val) in range(5, 9)
    assert len(open_data(folder / "train-0002.tar").train) < 12
    limited = open_data(folder, train_limit=20, shards=NEAR)
    order = epoch_order(limited.train, seed=0, epoch=0)
    assert len(limited.train) == 20 and sorted(order) == list(range(20))
    for part, first in (("train", 0), ("val", 50)):
        write_shards(tmp_path / "nested" / part, (4, 4), "shard", first=first)
    nested = open_data(tmp_path / "nested")
    assert (len(nested.train), len(nested.val)) == (8, 8)
    assert expand("a-{08..11}-{0..1}.tar")[::3] == ["a-08-0.tar", "a-09-1.tar", "a-11-0.tar"]


def test_classes_by_folders_in_the_tars_and_by_json(tmp_path: Path):
    members = [(f"./{name}/{n}.png", picture(n)) for n, name in enumerate(["dog", "cat", "dog", "owl", "cat", "owl"])]
    write_tar(tmp_path / "a" / "train.tar", members)
    write_tar(tmp_path / "a" / "val.tar", [("cat/90.png", picture(90)), ("owl/91.png", picture(91))])
    data = open_data(tmp_path / "a")
    assert data.classes == ("cat", "dog", "owl")
    assert data.train.labels is not None and data.train.labels.tolist() == [1, 0, 1, 2, 0, 2]
    assert data.val.labels is not None and data.val.labels.tolist() == [0, 2]
    renamed = open_data(tmp_path / "a", class_names=("owl", "dog", "cat"))
    assert renamed.val.labels is not None and renamed.val.labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="train shards have classes that are not among those expected: owl"):
        open_data(tmp_path / "a", class_names=("cat", "dog"))
    said = [({"label": 1, "caption": "x"}, 0), ({"cls": 0}, 1), ({"label": 1}, 2), ({"label": 0}, 3)]
    write_tar(
        tmp_path / "b.tar",
        [m for w, n in said for m in ((f"{n}.png", picture(n)), (f"{n}.json", json.dumps(w).encode()))],
    )
    assert (found := train_part(tmp_path / "b.tar").labels) is not None and found.tolist() == [1, 0, 1, 0]
    write_tar(tmp_path / "c.tar", [(f"{n}.png", picture(n)) for n in range(4)])
    assert open_data(tmp_path / "c.tar").classes == ()  # label-free


def test_a_tar_beside_class_folders_makes_no_shards_of_them(tmp_path: Path):
    for name in ("a", "b"):
        for n in range(3):
            file = tmp_path / name / f"{n}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture(n))
    write_shards(tmp_path, (2,))
    assert open_data(tmp_path).classes == ("a", "b")


def test_images_that_cannot_be_read_are_named_or_skipped(folder: Path):
    content = bytearray((folder / "train-0001.tar").read_bytes())
    source = train_part(folder)
    place = int(source.index.offsets[13])
    content[place : place + 8] = bytes(8)  # the fourth of the second shard
    (folder / "train-0001.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"image 3 of shard .*train-0001.tar cannot be decoded .*--skip-bad-images"):
        source.image(13)
    data = open_data(folder, skip_bad_images=True)
    assert len(data.train) == 47 and "1 of 48 train images cannot be decoded: skipped" in data.notes
    (folder / "train-0000.tar").write_bytes(content[:600])
    with pytest.raises(ValueError, match=r"image 9 of shard .* is cut short: expected .* restore the shard"):
        source.image(9)
    (folder / "train-0002.tar").unlink()
    with pytest.raises(ValueError, match=r"image 0 of shard .*train-0002.tar cannot be read"):
        source.image(16)


def numbers(path: Path | str, **words: Any) -> list[int]:
    source = train_part(path, **words)
    return [number_of(source.image(i).numpy()) for i in range(len(source))]


def test_the_image_of_a_sample_is_its_plain_one(tmp_path: Path):
    members = []
    for n in range(6):
        kinds = {"cls": b"%d" % (n % 2), "depth.png": picture(200 + n), "png": picture(n), "seg.png": picture(100 + n)}
        members += [(f"{n:03d}.{kind}", content) for kind, content in kinds.items()]
    assert numbers(write_tar(tmp_path / "a.tar", members)) == list(range(6))
    # of class folders further dots belong to the name
    members = [(f"{'cat' if n % 2 else 'dog'}/IMG_2019.{n:02d}.png", picture(n)) for n in range(6)]
    assert numbers(write_tar(tmp_path / "b.tar", members)) == list(range(6))


def test_members_that_are_not_read_are_counted_by_ending(tmp_path: Path):
    """From the headers and from an index file, also from one that was written before they were counted."""
    members = [(".hidden.txt", b"x"), ("LICENSE", b"x")]
    for n in range(6):
        kinds = {
            "cls": b"%d" % (n % 2),
            "png": picture(n),
            "seg.png": picture(100 + n),
            "TXT": b"a caption",
            "npy": b"x",
        }
        members += [(f"{n:03d}.{kind}", content) for kind, content in kinds.items()]
    write_tar(tmp_path / "train-0.tar", members[:20])
    write_tar(tmp_path / "train-1.tar", members[20:])
    note = "left aside, because they are neither images nor labels: 6 .seg.png, 6 .txt, 6 .npy, 1 without ending"

    def found() -> list[str]:
        return [line for line in open_data(tmp_path, val_fraction=0.4).notes if "left aside" in line]

    def parts(line: str) -> set[str]:
        return set(line.partition(": ")[2].split(", "))

    assert [parts(line) for line in found()] == [parts(note)] and found()[0].startswith(note.partition(":")[0])
    assert make_index(tmp_path, ["train-0.tar"]).other_files.total() < 19
    file = index_verb(folder=str(tmp_path))
    assert [parts(line) for line in found()] == [parts(note)]
    index = read_index(file.read_bytes(), "it")
    file.write_bytes(index.to_bytes().replace(b"other_files", b"some_text__"))
    assert found() == [] and len(open_data(tmp_path, val_fraction=0.4).train) == 4


UNCLEAR = {
    "two images": [("a.png", picture(1)), ("a.jpg", picture(2)), ("a.cls", b"0")],
    "only others": [("a.depth.png", picture(1)), ("a.cls", b"0")],
    "others without a class": [("a.png", picture(1)), ("a.1.png", picture(2))],
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_sample_whose_image_is_not_clear_is_refused(tmp_path: Path, case: str):
    with pytest.raises(ValueError, match=r"the image of sample a in .* is not clear"):
        open_data(write_tar(tmp_path / "x.tar", UNCLEAR[case]))


def test_names_that_would_lose_samples_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"shot\.1\.cls in .*: a sample's name ends at its first dot"):
        open_data(write_tar(tmp_path / "x.tar", [("shot.1.png", picture(1)), ("shot.1.cls", b"0")]))
    with pytest.raises(ValueError, match=r"readme of .* is outside the class folders \(cat, dog\)"):
        open_data(
            write_tar(
                tmp_path / "y.tar", [("cat/1.png", picture(1)), ("dog/2.png", picture(2)), ("readme.png", picture(3))]
            )
        )
    with pytest.raises(ValueError, match="mixes train and val: expected separate tars for each split"):
        open_data(
            write_tar(tmp_path / "z.tar", [(f"{p}/{c}/1.png", picture(1)) for p in ("train", "val") for c in "ab"])
        )


@pytest.mark.parametrize("name", ["testing-0.tar", "heldout-0.tar", "testA-0.tar", "0.tar"])
def test_a_shard_without_a_part_beside_others_with_one_is_refused(folder: Path, name: str):
    write_tar(folder / name, sample(1))
    with pytest.raises(ValueError, match=rf"the name of shard {name} names no split, others do \(train, val\)"):
        open_data(folder)


def test_words_for_validation(folder: Path):
    for word in ("eval", "dev", "valid"):
        (folder / "val-0000.tar").rename(folder / f"{word}-0000.tar")
        assert len(open_data(folder).val) == 8
        (folder / f"{word}-0000.tar").rename(folder / "val-0000.tar")


def test_a_tar_beside_train_and_val_folders_makes_no_shards_of_them(tmp_path: Path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            for n in range(3):
                file = tmp_path / part / name / f"{n}.png"
                file.parent.mkdir(exist_ok=True, parents=True)
                file.write_bytes(picture(n))
    write_shards(tmp_path, (12,), "backup")
    data = open_data(tmp_path)
    assert data.classes == ("a", "b") and (len(data.train), len(data.val)) == (6, 6)


def test_names_shared_with_another_part_change_no_key(folder: Path):
    before = set(train_part(folder).keys.tolist())
    write_shards(folder, (8,), "val", first=0)
    assert set(train_part(folder).keys.tolist()) == before


def test_a_header_that_is_damaged_in_the_middle_is_noticed(folder: Path):
    content = bytearray((folder / "train-0002.tar").read_bytes())
    source = train_part(folder)
    place = int(source.index.offsets[16 + 8]) - 512
    content[place + 3] ^= 1
    (folder / "train-0002.tar").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"train-0002\.tar is damaged at byte {place:,}, or contains a second tar archive there"
    ):
        open_data(folder)
    (folder / "train-0002.tar").write_bytes(
        (folder / "train-0001.tar").read_bytes() + (folder / "train-0003.tar").read_bytes()
    )
    with pytest.raises(ValueError, match="or contains a second tar archive there"):
        open_data(folder)


def test_a_class_that_was_corrected_after_the_index_is_read(folder: Path):
    index_verb(folder=str(folder))
    file = folder / "train-0000.tar"
    write_tar(
        file, [(name, b"3" if name.endswith(".cls") else content) for n in range(10) for name, content in sample(n)]
    )
    os.utime(file, (file.stat().st_atime, (folder / INDEX).stat().st_mtime + 10))
    labels = train_part(folder).labels
    assert labels is not None and labels[:10].tolist() == [3] * 10


def test_a_value_error_of_a_storage_library_is_no_bug(monkeypatch: pytest.MonkeyPatch):
    def refuses(*_: object) -> None:
        raise ValueError("invalid repository name")

    monkeypatch.setattr("fsspec.open", refuses)
    with pytest.raises(UhkdError, match=r"cannot be fetched \(ValueError: invalid repository name\)"):
        open_data("hf://datasets/a b")


def test_skipping_bad_images_does_not_hide_a_shard_that_is_gone(folder: Path, tmp_path: Path):
    index_verb(folder=str(folder))
    (folder / "train-0004.tar").unlink()
    with pytest.raises(ValueError, match=r"train-0004\.tar cannot be fetched"):
        open_data(f"file://{folder}", skip_bad_images=True, shards=ShardOptions(keep=str(tmp_path / "there")))


def test_many_threads_read_few_descriptors(tmp_path: Path):
    write_shards(tmp_path / "many", (2,) * 80)
    data = open_data(tmp_path / "many", skip_bad_images=True, val_fraction=0.2)
    assert len(data.train) + len(data.val) == 160
    assert len(list(Path("/proc/self/fd").iterdir())) < 200


def test_order_and_partners_are_part_of_what_data_is(folder: Path, tmp_path: Path):
    other = write_shards(tmp_path / "other", (24, 24))
    write_shards(other, (8,), "val", first=100)
    prints = [open_data(place, shards=how).fingerprint for place in (folder, other) for how in (None, NEAR)]
    assert prints[0] == prints[2] and len(set(prints)) == 3


# ---- hostile and unusable tars


def hostile_tar(path: Path) -> Path:
    """Members that would lie elsewhere if they were unpacked, links and devices among them."""
    with tarfile.open(path, "w") as archive:
        for n, name in enumerate(["../../escaped", "/absolute", "a/../../up", "fine", "fine2"]):
            for member, content in ((f"{name}.png", picture(n)), (f"{name}.cls", str(n % 2).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for kind, target in (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.LNKTYPE, "../../x"),
            (tarfile.CHRTYPE, ""),
            (tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def test_names_in_a_tar_are_only_names(tmp_path: Path):
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    source = train_part(hostile_tar(place / "x.tar"))
    assert [number_of(source.image(i).numpy()) for i in range(len(source))] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "er", "x.tar"]


def compressed(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))


REFUSED = {
    "no tar": (lambda p: p.write_bytes(b"no tar at all" * 99), "cannot be read as a tar file"),
    "compressed": (compressed, "cannot be read as a tar file .* not compressed"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as a tar file"),
    "no images": (lambda p: write_tar(p, [("a.txt", b"x")]), "no images in .*: expected tar files of images"),
    "cut short": (
        lambda p: p.write_bytes(write_tar(p, sample(1)).read_bytes()[:700]),
        "is cut short|cannot be read as a tar",
    ),
    "a class that is no number": (
        lambda p: write_tar(p, [("a.png", picture(1)), ("a.cls", b"dog\x1b[2J")]),
        r"a.cls in .* is 'dog\\\\x1b\[2J': expected the number of a class",
    ),
    "an enormous class": (
        lambda p: write_tar(p, [("a.png", picture(1)), ("a.cls", b"1" * 2**21)]),
        "has 2,097,152 bytes: expected",
    ),
    "a class of many digits": (
        lambda p: write_tar(p, [("a.png", picture(1)), ("a.cls", b"9" * 30)]),
        "expected the number of a class",
    ),
    "no JSON": (lambda p: write_tar(p, [("a.png", picture(1)), ("a.json", b"[" * 9999)]), "a.json in .* is not JSON"),
    "some without a class": (
        lambda p: write_tar(p, [*sample(1), ("b.png", picture(2))]),
        "1 samples of .* have no class",
    ),
    "negative classes": (
        lambda p: write_tar(p, [("a.png", picture(1)), ("a.cls", b"-1"), *sample(2)]),
        "negative class",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_shard_is_refused_in_words(case: str, tmp_path: Path):
    make, said = REFUSED[case]
    make(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=said):
        open_data(tmp_path / "x.tar")


def test_other_mistakes(folder: Path, tmp_path: Path):
    for word, said in (
        (f"{tmp_path}/none.tar", "shard .*none.tar does not exist"),
        (f"{folder}/train-{{0004..0009}}.tar", "train-0006.tar and 3 others do not exist"),
        (f"{folder}/train-{{5..2}}.tar", "with LAST from FIRST up"),
        (f"{folder}/train-{{0..99999999}}.tar", "fewer than a million shards"),
        (f"{folder}/val-0000.tar", "holds no training shards, only val"),
        (f"wds/{tmp_path / 'nothing'}", "does not exist"),
        ("ftp://host/x", "expected an address that begins with https://"),
        ("https://host::file:///etc", "expected an address"),
        (f"file://{tmp_path}/none", "cannot be fetched"),
        (f"{folder}/train-*.tar", r"\* is not supported: give the folder, or a range"),
        (f"file://{folder}/train-{{0..1}}.tar", "a URL must be a folder of shards with uhkd-index"),
        ("hfids/x", "can be neither shuffled nor resumed"),
    ):
        with pytest.raises(ValueError, match=said):
            open_data(word)


@given(content=st.binary(max_size=4096), place=st.integers(0, 10**6), start=st.booleans())
@settings(max_examples=60)
def test_a_tar_of_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, start: bool
):
    path = tmp_path_factory.mktemp("any") / "x.tar"
    whole = bytearray(write_tar(path, [m for n in range(3) for m in sample(n)]).read_bytes())
    if start:
        place %= len(whole)
        whole[place : place + len(content)] = content
    path.write_bytes(whole if start else content)
    try:
        source = train_part(path)
        for i in range(len(source)):
            source.image(i)
    except ValueError:
        pass


# ---- an index that is kept


def test_a_kept_index_is_that_of_the_headers_and_not_used_for_other_shards(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    before = train_part(folder)
    assert index_verb(folder=str(folder)) == folder / INDEX
    assert "56 samples in 7 shards, classes by number" in capsys.readouterr().out
    for name in ("sizes", "bounds", "offsets", "lengths", "headers", "keys", "labels"):
        assert np.array_equal(getattr(train_part(folder).index, name), getattr(before.index, name))
    size = (folder / "train-0001.tar").stat().st_size
    write_tar(folder / "train-0001.tar", [m for n in range(10, 15) for m in sample(n)])
    assert (folder / "train-0001.tar").stat().st_size == size  # tars are filled up to whole blocks
    data = open_data(folder)
    assert len(data.train) == 47 and any("not match these shards" in note for note in data.notes)
    with pytest.raises(ValueError, match=r"image 5 of shard .* is not the image in the index: restore the shard"):
        before.image(15)
    with pytest.raises(ValueError, match="nowhere does not exist: expected the folder that contains all shards"):
        index_verb(folder=str(folder / "nowhere"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = write_shards(tmp_path_factory.mktemp("kept"), (3, 2))
    return make_index(folder, ["train-0000.tar", "train-0001.tar"]).to_bytes()


@given(data=st.data())
def test_an_index_of_any_bytes_is_read_or_refused(kept: bytes, data: st.DataObject):
    content = bytearray(kept)
    place = data.draw(st.integers(0, len(content) - 1))
    content[place : place + data.draw(st.integers(0, 16))] = data.draw(st.binary(max_size=16))
    try:
        found = read_index(bytes(content), "it")
    except ValueError:
        return
    assert found.bounds[-1] == len(found.keys) and (found.offsets >= 0).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("labels", [7, 0, 1, 0, 1]),
        ("labels", [-2, 0, 1, 0, 1]),
        ("lengths", [2**62] * 5),
        ("offsets", [2**62] * 5),
        ("offsets", [0] * 5),
        ("bounds", [0, 6, 5]),
        ("bounds", np.array([0, 6, 5], np.uint32)),
        ("sizes", [1, 1]),
    ],
)
def test_an_index_of_impossible_numbers_is_refused(tmp_path: Path, name: str, values: Any):
    for shard, numbers in enumerate(((0, 1, 2), (3, 4))):
        write_tar(tmp_path / f"{shard}.tar", [(f"{'ab'[n % 2]}/{n}.png", picture(n)) for n in numbers])
    index = make_index(tmp_path, ["0.tar", "1.tar"])
    assert index.classes == ("a", "b")
    odd = replace(index, **{name: values if isinstance(values, np.ndarray) else np.array(values, np.int64)})
    with pytest.raises(ValueError, match=r"is not an index of shards, or damaged \(its "):
        read_index(odd.to_bytes(), "it")


def test_an_index_cannot_point_out_of_its_folder(kept: bytes):
    with pytest.raises(ValueError, match="its shards are outside its folder"):
        read_index(kept.replace(b"train-0001.tar", b"../secret1.tar"), "it")


# ---- shards from elsewhere


@pytest.fixture
def asked() -> list[str]:
    """What the server was asked for."""
    return []


@pytest.fixture
def server(folder: Path, asked: list[str]) -> Iterator[str]:
    """A real server on this machine."""

    class Noting(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            if self.command == "GET":
                asked.append(self.path.strip("/"))

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Noting, directory=str(folder))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_shards_are_fetched_when_they_are_first_asked_for(folder: Path, server: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{INDEX} cannot be fetched"):
        open_data(server)
    index_verb(folder=str(folder))
    there = tmp_path / "there"
    data = open_data(server, shards=ShardOptions(keep=str(there)))
    assert (len(data.train), len(data.val)) == (48, 8)
    assert "remote shards are shuffled 8 at a time (--shuffle-shards)" in data.notes
    assert len(list(there.rglob("*.tar"))) == 1  # of the first, whose headers say the size of images
    here = train_part(folder)
    source = train_part(server, shards=ShardOptions(keep=str(there)))
    assert torch.equal(source.image(30), here.image(30)) and np.array_equal(source.keys, here.keys)
    assert {path.name for path in there.rglob("*.tar")} == {"train-0000.tar", "train-0003.tar"}
    # and is not fetched again
    (folder / "train-0003.tar").unlink()
    assert torch.equal(train_part(server, shards=ShardOptions(keep=str(there))).image(31), source.image(31))
    (folder / "train-0004.tar").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"train-0004.tar has 5 bytes, but .* in its index: make the index again"):
        source.image(40)
    assert not list(there.rglob("*.tmp"))


def test_only_so_much_is_kept(folder: Path, tmp_path: Path):
    index_verb(folder=str(folder))
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    there = tmp_path / "there"
    source = train_part(
        f"file://{folder}", shards=ShardOptions(at_a_time=2, keep=str(there), keep_gb=2.5 * largest / 1e9)
    )
    for i in range(48):
        assert number_of(source.image(i).numpy()) == i
        assert sum(path.stat().st_size for path in there.rglob("*.tar")) <= 2.5 * largest
    assert 1 <= len(list(there.rglob("*.tar"))) < 6


def fetch(address: str, keep: Path, size: int) -> None:
    ShardStore.remote(address, b"", str(keep), 1.0).path("train-0002.tar", size)


def together(work: Callable[..., None], *orders: tuple[Any, ...]) -> list[int | None]:
    """Exit codes of processes that do work side by side."""
    fork = multiprocessing.get_context("fork")
    tasks = [fork.Process(target=work, args=order) for order in orders]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    return [task.exitcode for task in tasks]


def test_several_processes_fetch_a_shard_once(folder: Path, server: str, asked: list[str], tmp_path: Path):
    size = (folder / "train-0002.tar").stat().st_size
    assert together(fetch, *[(server, tmp_path / "there", size)] * 3) == [0, 0, 0]
    (found,) = (tmp_path / "there").rglob("train-0002.tar")
    assert found.read_bytes() == (folder / "train-0002.tar").read_bytes()
    assert asked == ["train-0002.tar"]


def wander(address: str, keep: Path, seed: int, gb: float) -> None:
    """Read samples at random, out of a cache that has no room for all."""
    source = train_part(address, shards=ShardOptions(at_a_time=2, keep=str(keep), keep_gb=gb))
    for i in np.random.default_rng(seed).integers(0, 48, 150).tolist():
        assert number_of(source.image(i).numpy()) == i


def test_processes_that_make_room_do_not_disturb_each_other(folder: Path, tmp_path: Path):
    index_verb(folder=str(folder))
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    stale = tmp_path / "there" / "shards"
    orders = [(f"file://{folder}", tmp_path / "there", seed, 2.5 * largest / 1e9) for seed in range(4)]
    assert together(wander, *orders) == [0, 0, 0, 0]
    (place,) = stale.iterdir()
    (place / ".train-0009.tar.1.tmp").write_bytes(b"of a process that was killed")
    os.utime(place / ".train-0009.tar.1.tmp", (0, 0))
    wander(*orders[0])
    assert not list(place.glob("*.tmp"))


def test_what_is_open_is_not_fetched_again(folder: Path, server: str, asked: list[str], tmp_path: Path):
    index_verb(folder=str(folder))
    source = train_part(server, shards=ShardOptions(keep=str(tmp_path / "there")))
    source.image(30)
    for kept in (tmp_path / "there").rglob("*.tar"):
        kept.unlink()
    asked.clear()
    source.image(31)
    assert not asked


def test_another_set_at_the_same_address_is_another_set(folder: Path, server: str, tmp_path: Path):
    index_verb(folder=str(folder))
    train_part(server, shards=ShardOptions(keep=str(tmp_path / "there"))).image(0)
    write_shards(folder, (10, 6, 12, 8, 7, 5), first=60)
    index_verb(folder=str(folder))
    assert number_of(train_part(server, shards=ShardOptions(keep=str(tmp_path / "there"))).image(0).numpy()) == 60


def test_a_cache_must_hold_what_is_read_at_a_time(folder: Path):
    index_verb(folder=str(folder))
    with pytest.raises(
        ValueError, match=r"shard_cache_gb: expected at least 0\.000.*, for the 2 shards in each of 3 streams"
    ):
        open_data(f"file://{folder}", shards=ShardOptions(at_a_time=2, streams=3, keep_gb=1e-6))
