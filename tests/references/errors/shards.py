"""Tar shards, here and elsewhere, and their index."""

import gzip
from collections.abc import Callable
from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import FINETUNE
from references.tars import picture, sample, write_shards, write_tar
from uhkd.commands import index
from uhkd.data import INDEX, open_data

TRAIN = f"{FINETUNE} --data shards"


def tar(*members: tuple[str, bytes]) -> None:
    """shards/train-0000.tar of some files."""
    write_tar(Path("shards/train-0000.tar"), members)


def whole() -> None:
    """Three shards for training and one of validation."""
    write_shards(Path("shards"), (6, 6, 6))
    write_shards(Path("shards"), (6,), "val", first=50)


def compressed() -> None:
    """One shard, as tar czf makes it."""
    file = write_shards(Path("shards"), (6,)) / "train-0000.tar"
    file.with_name("train-0000.tar.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def second(change: Callable[[bytes], bytes]) -> None:
    """Two shards, of which the second has other bytes."""
    file = write_shards(Path("shards"), (6, 6)) / "train-0001.tar"
    file.write_bytes(change(file.read_bytes()))


def stale() -> str:
    whole()
    index(folder="shards")
    write_shards(Path("shards"), (5, 6, 6))
    return next(note for note in open_data("shards").notes if "index" in note)


def outside() -> str:
    """Names that lead out of the folder: nothing is unpacked."""
    tar(*(member for n in range(4) for member in sample(n, 2, key=f"../../out/{n}")))
    data = open_data("shards", val_fraction=0.5)
    assert not Path("../../out").exists()
    return f"{len(data.train) + len(data.val)} images are read, and no file is written outside the folder"


CASES = (
    Case("a shard that does not exist", f"{FINETUNE} --data none.tar", "shard none.tar does not exist"),
    Case(
        "a pattern with missing shards",
        f"{FINETUNE} --data 'shards/train-{{0000..0004}}.tar'",
        "shard shards/train-0003.tar and 1 other do not exist",
        make=whole,
    ),
    Case(
        "a pattern with a descending range",
        f"{FINETUNE} --data 'train-{{9..0}}.tar'",
        "train-{9..0}.tar: expected {FIRST..LAST} with LAST from FIRST up, and fewer than a million shards",
    ),
    Case(
        "only validation shards",
        f"{FINETUNE} --data shards/val-0000.tar",
        "shards/val-0000.tar holds no training shards, only val: expected names like train-0000.tar",
        make=whole,
    ),
    Case(
        "a compressed shard",
        TRAIN,
        "shards/train-0001.tar cannot be read as a tar file (…): expected a plain one, not compressed",
        make=lambda: second(gzip.compress),
    ),
    Case(
        "a shard that is cut short",
        TRAIN,
        "shard shards/train-0001.tar is cut short: its headers describe more bytes than its 800",
        make=lambda: second(lambda whole: whole[:800]),
    ),
    Case(
        "shards without images",
        TRAIN,
        "no images in shards/train-0000.tar: expected tar files of images, NAME.jpg with NAME.cls or in class folders",
        make=lambda: tar(("a.txt", b"words")),
    ),
    Case(
        "a class that is not a number",
        TRAIN,
        "a.cls in shards/train-0000.tar is 'dog': expected the number of a class, from 0",
        make=lambda: tar(("a.png", picture(1)), ("a.cls", b"dog")),
    ),
    Case(
        "a class below 0",
        TRAIN,
        "b.cls in shards/train-0000.tar is '-2': expected the number of a class, from 0",
        make=lambda: tar(*sample(1), ("b.png", picture(2)), ("b.cls", b"-2")),
    ),
    Case(
        "a description that is not JSON",
        TRAIN,
        "a.json in shards/train-0000.tar is not JSON: expected a description with a label",
        make=lambda: tar(("a.png", picture(1)), ("a.json", b"{label: 1}")),
    ),
    Case(
        "some samples without a class",
        TRAIN,
        "1 samples of shards/train-0000.tar have no class (.cls or .json), others have: b, ...",
        make=lambda: tar(*sample(1), ("b.png", picture(2))),
    ),
    Case(
        "two images with the same name",
        TRAIN,
        "the image of sample a in shards/train-0000.tar is not clear (png, jpg): expected one NAME.jpg, others as "
        "NAME.kind.png with a NAME.cls; a name ends at its first dot",
        make=lambda: tar(("a.png", picture(1)), ("a.jpg", picture(2)), ("a.cls", b"0")),
    ),
    Case(
        "one shard without train, val or test in its name",
        TRAIN,
        "the name of shard more.tar names no split, others do (train): put train, val or test into each name, "
        "as in train-0000.tar",
        make=lambda: (tar(*sample(1)), write_tar(Path("shards/more.tar"), sample(2))),
    ),
    Case(
        "--shuffle-streams without --shuffle-shards",
        f"{TRAIN} --shuffle-streams 2",
        "shuffle_streams=2 has no effect without shuffle_shards",
        make=whole,
    ),
    Case(
        "a shard with damaged bytes in the middle",
        TRAIN,
        "shard shards/train-0001.tar is damaged at byte …, or contains a second tar archive there; create the shard again",
        make=lambda: second(lambda whole: whole[:5000] + b"x" * 3000 + whole[8000:]),
    ),
    Case(
        "members of a sample that are not next to each other",
        TRAIN,
        "two samples of one shard have the name train-0000.tar/a: members of a sample must be next to each other",
        make=lambda: tar(*sample(1, key="a"), *sample(2, key="b"), *sample(3, key="a")),
    ),
    Case(
        "a batch size that is not a multiple of the streams",
        f"{TRAIN} --shuffle-shards 2 --shuffle-streams 5 --batch-size 8",
        "shuffle_streams: expected a divisor of batch_size (8), found 5",
        make=whole,
    ),
    Case(
        "names in a tar that point outside the folder",
        outside,
        "4 images are read, and no file is written outside the folder",
        refused=False,
    ),
    Case(
        "an index of other shards",
        stale,
        "shards/uhkd-index.safetensors does not match these shards, so the tar headers are read instead; "
        "run uhkd index to rebuild it",
        refused=False,
    ),
    Case(
        "a damaged index",
        TRAIN,
        "shards/uhkd-index.safetensors is not an index of shards, or damaged (…): make it again with uhkd index",
        make=lambda: (whole(), Path("shards", INDEX).write_bytes(b"hello")),
    ),
    Case(
        "uhkd index of a folder without shards",
        "index nowhere",
        "nowhere does not exist: expected the folder that contains all shards",
    ),
    Case(
        "uhkd index of a pattern",
        "index 'shards/train-{0000..0002}.tar'",
        "shards/train-{0000..0002}.tar is a pattern: expected the folder that contains all shards",
        make=whole,
    ),
    Case(
        "a folder of compressed shards",
        TRAIN,
        "shards is compressed (train-0000.tar.gz): images are read by position, from uncompressed .tar files; unpack them "
        "to .tar files or class folders",
        make=compressed,
    ),
    Case(
        "an address with an unsupported scheme",
        f"{FINETUNE} --data ftp://host/set",
        "data at ftp://host/set: expected an address that begins with https://, http://, s3://, gs://, hf://, file://",
    ),
    Case(
        "an address without an index",
        lambda: open_data(f"file://{Path.cwd()}/shards"),
        "file://…/shards/uhkd-index.safetensors cannot be fetched (…)",
        make=whole,
    ),
    Case(
        "a data set that can only be streamed",
        f"{FINETUNE} --data tfds/mnist",
        "data tfds/mnist: timm's reader tfds/ only streams images in a fixed order, which can be neither shuffled nor resumed "
        "exactly; use hfds/, torch/, or tar shards (wds/FOLDER or a URL: docs/scaling.md)",
    ),
    Case(
        "a torchvision data set that was not downloaded",
        f"{FINETUNE} --data torch/cifar10:nowhere",
        "data torch/cifar10:nowhere cannot be opened (RuntimeError: Dataset not found or corrupted. You can use "
        "download=True to download it)",
    ),
)
