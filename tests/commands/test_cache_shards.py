"""Stored signals of samples that have names: learned from wherever the samples lie, by as many of them as there are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uhkd
from references.tars import sample, write_shards, write_tar
from uhkd.cache import TeacherCache, shards
from uhkd.data import open_data
from uhkd.runs import RunFolder
from uhkd.training import fit

TINY: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 8}
VIEWS: dict[str, Any] = {"crop": "pad", "flip": True, "erasing": 0.3}
STUDENT = {"embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        patched.setattr(shards, "_SHARD", 16)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples in tars, a teacher, and its signals, with views mixed and not."""
    place = tmp_path_factory.mktemp("named")
    write_shards(place / "tars", (14, 10, 16))
    write_shards(place / "tars", (8,), "val", first=100)
    data = str(place / "tars")
    words = TINY | {"data": data, "epochs": 1, "image_size": 12, "lr": 0.01, "out": str(place / "teacher")}
    uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 24]}, **words)
    for name, mixup in (("plain", 0.0), ("mixed", 0.5)):
        asked = {"teacher": str(place / "teacher"), "out": str(place / name), "views": 2, "mixup": mixup, "seed": 3}
        uhkd.cache(**TINY | VIEWS | asked, data=data, allow_weak_teacher=True)
    return place


def distil(place: Path, data: str | Path, out: Path, cache: str = "plain", **words: Any) -> list[dict[str, Any]]:
    asked = {
        "student": "uhkd/vit_micro",
        "student_options": STUDENT,
        "image_size": 12,
        "epochs": 2,
        "seed": 3,
        "lr": 1e-3,
    }
    asked |= {"teacher_cache": str(place / cache), "data": str(data), "out": str(out)}
    return RunFolder(uhkd.distill(**TINY | asked | words).run.path).read_metrics()


def test_a_cache_serves_the_same_samples_in_other_shards(place: Path, tmp_path: Path):
    distil(place, place / "tars", tmp_path / "first")
    order = np.random.default_rng(0).permutation(40).tolist()
    for shard, some in enumerate((order[:25], order[25:])):
        write_tar(tmp_path / "other" / f"train-{shard}.tar", [m for n in some for m in sample(n)])
    write_shards(tmp_path / "other", (8,), "val", first=100)
    # every view that is shown is compared with the one its teacher saw: the records found are those of the samples
    distil(place, tmp_path / "other", tmp_path / "second", shuffle_shards=1)
    stored, source = TeacherCache(place / "plain"), open_data(tmp_path / "other").train
    keys = source.keys  # pyright: ignore[reportAttributeAccessIssue]
    assert stored.map_keys(keys) == 0
    found = stored.keys()
    assert found is not None and np.array_equal(found[stored.row_indices(np.arange(40))], keys)


def test_some_of_the_samples_learn_from_the_cache_of_all(place: Path, tmp_path: Path):
    rows = distil(place, place / "tars", tmp_path / "some", train_limit=24)
    assert rows[-1]["step"] == 6


def test_other_validation_images_are_not_taken_for_those_of_the_cache(place: Path, tmp_path: Path, capsys: Any):
    """By a pattern of training shards a validation part is cut from them."""
    distil(place, f"{place}/tars/train-{{0000..0001}}.tar", tmp_path / "run", val_fraction=0.25)
    assert "its validation images differ from this run's" in capsys.readouterr().err
    run = RunFolder(tmp_path / "run")
    assert not run.read_result()["teacher_metrics"]
    assert not [name for name in run.read_arrays() if name.startswith(("cka", "teacher_spectrum", "error_"))]


def test_samples_that_the_cache_lacks_are_counted(place: Path, tmp_path: Path):
    write_shards(tmp_path / "more", (20, 26))
    write_shards(tmp_path / "more", (8,), "val", first=100)
    with pytest.raises(ValueError, match="6 of 46 samples are not in the cache"):
        distil(place, tmp_path / "more", tmp_path / "run")


def test_mixed_views_need_the_same_shards(place: Path, tmp_path: Path):
    distil(place, place / "tars", tmp_path / "same", "mixed")
    with pytest.raises(ValueError, match="data: other images or labels than the cache's, train_limit was None, is 24"):
        distil(place, place / "tars", tmp_path / "some", "mixed", train_limit=24)


def test_a_pixel_that_changed_is_noticed(place: Path, tmp_path: Path):
    write_tar(
        tmp_path / "t" / "train-0.tar", [m for n in range(40) for m in sample(n + (n == 7) * 100, 4, key=f"{n:06d}")]
    )
    write_shards(tmp_path / "t", (8,), "val", first=100)
    with pytest.raises(ValueError, match="differs from the one that the teacher of"):
        distil(place, tmp_path / "t", tmp_path / "run", epochs=2)
