"""`uhkd cache` and what learns from it: the same views, the same losses, whole after kills, refused where anything differs."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import uhkd
from uhkd.__main__ import main
from uhkd.cache import TeacherCache, shards
from uhkd.data import BatchPlan, ViewPlan, train_loader
from uhkd.models import load_run
from uhkd.runs import RunFolder
from uhkd.runs.checksums import SUMS
from uhkd.training import CachedTeacher, fit
from uhkd.training import step as stepping
from uhkd.training import teachers as voices
from uhkd.training.teacher import Teacher as LiveTeacher

TINY: dict[str, Any] = {"data": "digits", "train_limit": 100, "device": "cpu", "precision": "fp32", "workers": 0}
VIEWS: dict[str, Any] = {"mixup": 0.4, "cutmix": 0.5, "erasing": 0.3, "crop": "pad"}
STUDENT = {"embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path_rate": 0.3}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Without pictures, and with several shards a view."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        patched.setattr(shards, "_SHARD", 32)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caching") / "teacher"
    words = TINY | {"image_size": 16, "batch_size": 20, "epochs": 2, "optimizer": "sgd", "lr": 0.1}
    uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 70]}, out=out, **words)
    return out


def cache_words(teacher: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return TINY | VIEWS | {"teacher": str(teacher), "out": str(out), "views": 3, "batch_size": 20, "seed": 5} | changes


@pytest.fixture(scope="module")
def cached(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caching") / "cache"
    uhkd.cache(**cache_words(teacher, out, allow_weak_teacher=True))
    return out


def distil_words(out: Path, **changes: Any) -> dict[str, Any]:
    words = {"student": "uhkd/vit_micro", "student_options": STUDENT, "method": "uhkd", "epochs": 3, "out": str(out)}
    return TINY | VIEWS | words | {"image_size": 16, "batch_size": 20, "log_every": 2} | changes


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("view-*/*"))}


def test_stored_signals_are_the_live_ones_record_by_record(teacher: Path, cached: Path):
    """Over epochs, batches and targets as training meets them, mixed images included."""
    stored = TeacherCache(cached)
    data = uhkd.open_data("digits", train_limit=100)
    live = LiveTeacher(load_run(teacher), stored.manifest.target)
    assert live.ftm is not None
    live.ftm.load_state_dict(stored.tensors("ftm."))
    kept = CachedTeacher(stored, stored.manifest.target)
    loader = train_loader(
        data.train,
        stored.manifest.augmentation,
        BatchPlan(seed=9, batch_size=30, epochs=4),
        num_classes=10,
        views=ViewPlan(seed=5, count=3, record_reader=stored.read_records),
    )
    needs = frozenset({"logits", "embedding", "spectra"})
    seen = 0
    for batch in loader:
        one, two = live.outputs(batch, needs), kept.outputs(batch, needs)
        for a, b in (
            (one.logits, two.logits),
            (one.embedding, two.embedding),
            *zip(one.spectra, two.spectra, strict=True),
        ):
            torch.testing.assert_close(a, b, rtol=2.0**-10, atol=2e-4 * float(a.square().mean().sqrt()))
        assert float((batch.target > 0).sum(1).float().mean()) > 1.2  # images are mixed
        seen += len(batch.index)
    assert seen == 4 * 90


def test_a_run_by_stored_views_is_the_live_run(teacher: Path, cached: Path, tmp_path: Path):
    """Views of seed 5 for a run of seed 5: the same images in the same order, so the same losses to fp16's rounding."""
    live = uhkd.distill(**distil_words(tmp_path / "live", teacher=str(teacher), seed=5, allow_weak_teacher=True))
    stored = uhkd.distill(**distil_words(tmp_path / "stored", teacher_cache=str(cached), seed=5))
    one, two = (RunFolder(r.run.path).read_metrics() for r in (live, stored))
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "ce", "uhkd.inter", "uhkd.features"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), name
    facts = RunFolder(stored.run.path).read_result()
    assert facts["teacher_cache"] == {
        "key": TeacherCache(cached).manifest.key,
        "views": 3,
        "seed": 5,
        "storage": "fp16",
    }
    assert facts["teacher"] == str(teacher) and 0 < facts["teacher_metrics"]["accuracy"] < 1
    shown = [RunFolder(r.run.path).read_arrays() for r in (live, stored)]
    of_a_live_teacher = {"teacher_prediction", "teacher_confidence"}
    assert shown[0].keys() - shown[1].keys() == of_a_live_teacher and shown[1].keys() <= shown[0].keys()
    np.testing.assert_allclose(shown[0]["teacher_spectrum_0"], shown[1]["teacher_spectrum_0"], rtol=1e-5)
    np.testing.assert_allclose(shown[0]["error_1"], shown[1]["error_1"], rtol=2e-2)
    np.testing.assert_allclose(shown[0]["cka_end"], shown[1]["cka_end"], atol=2e-2)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_teacher_is_needed_whatever_the_batch_and_workers(cached: Path, tmp_path: Path, monkeypatch, workers: int):
    """Its run folder may be gone: nothing of it is opened. Another seed, batch, method and accumulation, one cache."""
    opened: list[str] = []
    monkeypatch.setattr(voices, "prepare_teacher", lambda *_, **__: opened.append("teacher"))
    moved = tmp_path / "moved"
    shutil.copytree(cached, moved)
    words = distil_words(
        tmp_path / "run", teacher_cache=str(moved), seed=2, batch_size=24, workers=workers, grad_accum_steps=2
    )
    result = uhkd.distill(**words | {"method": "rsd+dist", "epochs": 1})
    assert (not opened and set(result.metrics) >= {"rsd.redundancy", "dist.inter"}) or set(result.metrics) >= {"ce"}


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `step`-th step of this process is its last, as if by Ctrl-C."""
    real, count = stepping.weighted_sum, [0]

    def stop(*args: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(stepping, "weighted_sum", stop)


def test_a_killed_run_by_stored_views_goes_on_and_notices_another_cache(
    teacher: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = uhkd.distill(**distil_words(tmp_path / "whole", teacher_cache=str(cached), checkpoint_minutes=1e-9))
    stop_at(9, monkeypatch)
    words = distil_words(tmp_path / "cut", teacher_cache=str(cached), checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        uhkd.distill(**words)
    other = tmp_path / "other"
    uhkd.cache(**cache_words(teacher, other, seed=6, allow_weak_teacher=True))
    with pytest.raises(ValueError, match="it was started with another cache of teacher outputs"):
        uhkd.distill(**words | {"teacher_cache": str(other), "resume": True})
    moved = tmp_path / "moved"
    shutil.copytree(cached, moved)
    again = uhkd.distill(**words | {"teacher_cache": str(moved), "resume": True})
    assert RunFolder(again.run.path).weights.read_bytes() == RunFolder(whole.run.path).weights.read_bytes()


def test_fewer_views_than_epochs_are_told(cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uhkd.distill(**distil_words(tmp_path / "run", teacher_cache=str(cached), epochs=5, method="kd"))
    assert "3 stored views for 5 epochs: each is used 1.67 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train_limit": 90},
            r"data: other images or labels than the cache's, train_limit was 100, is 90\n  images: the cache has 100",
        ),
        (
            {"mixup": 0.3, "erasing": 0.0},
            "view mixup: the cache has 0.4, expected 0.3\n  view erasing: the cache has 0.3",
        ),
        ({"crop": "none"}, "view crop: the cache has 'pad', expected 'none'"),
        ({"method": "fitnet"}, "fitnet needs teacher maps; the cache .* holds logits, embedding, spectra"),
        ({"settings": {"radius": 2}}, r"radius 2, stored 1 \(levels? [1-4]"),
        (
            {"settings": {"channels": 8, "standardise": "none"}},
            "standardise none, stored coefficient; channels 8, stored 64",
        ),
        ({"settings": {"form": "amplitude"}}, "channels None, stored 64; form amplitude, stored pairs"),
        ({"teacher": "timm/resnet18"}, "the cache is of .*teacher, the recipe has timm/resnet18"),
        ({"teacher_cache": "nowhere"}, "nowhere is not a cache"),
        ({"teacher_views": 4}, "teacher_views: expected at most 3, which .* holds, found 4"),
        (
            {"teacher_levels": ["layer1", "layer2"]},
            r"teacher levels: the cache has .*, expected \['layer1', 'layer2'\]",
        ),
        (
            {"teacher_start": "pretrained"},
            "teacher_start: the cache was created with None, the recipe has 'pretrained'",
        ),
        ({"teacher_head": "probe"}, "teacher_head: the cache was created with 'auto', the recipe has 'probe'"),
        ({"teacher_options": {"channels": [8, 8, 8, 8]}}, "teacher options: the cache has {}"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused_with_the_reason(cached: Path, tmp_path: Path, changes: dict, said: str):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=said):
        uhkd.distill(**distil_words(out, teacher_cache=str(cached)) | changes)
    assert not out.exists(), "the corrected command is not to meet a folder that exists"


def test_a_teacher_kept_in_half_precision_is_known_again(teacher: Path, tmp_path: Path):
    kept = shutil.copytree(teacher, tmp_path / "kept")
    halved = {k: v.half() if v.is_floating_point() else v for k, v in load_file(teacher / "model.safetensors").items()}
    save_file(halved, kept / "model.safetensors")
    (kept / SUMS).unlink()
    uhkd.cache(**cache_words(kept, tmp_path / "cache", allow_weak_teacher=True))
    words = distil_words(tmp_path / "student", teacher=str(kept), teacher_cache=str(tmp_path / "cache"))
    uhkd.distill(**words)
    assert (tmp_path / "student" / "result.json").is_file()
    with pytest.raises(ValueError, match="are not those of the teacher that was stored"):
        uhkd.distill(**words | {"teacher": str(teacher), "out": str(tmp_path / "other")})


def test_a_teacher_that_was_trained_on_is_noticed(teacher: Path, cached: Path, tmp_path: Path):
    other = tmp_path / "teacher"
    shutil.copytree(teacher, other)
    uhkd.distill(**distil_words(tmp_path / "ok", teacher=str(other), teacher_cache=str(cached), epochs=1, method="kd"))
    from safetensors.torch import load_file

    from uhkd.runs import write_tensors

    state = load_file(other / "model.safetensors")
    (other / SUMS).unlink()
    write_tensors(other / "model.safetensors", {k: v * 1.01 if v.is_floating_point() else v for k, v in state.items()})
    with pytest.raises(ValueError, match="are not those of the teacher that was stored"):
        uhkd.distill(**distil_words(tmp_path / "no", teacher=str(other), teacher_cache=str(cached)))
    shutil.copy(teacher / "model.safetensors", other)
    module = load_run(other)
    next(module.module.parameters()).data.mul_(2)
    with pytest.raises(ValueError, match="of the given module are not those of the teacher that was stored"):
        uhkd.distill(**distil_words(tmp_path / "no", teacher=module, teacher_cache=str(cached)))
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps(card | {"mean": [0.1, 0.2, 0.3]}))
    with pytest.raises(ValueError, match=r"teacher mean: the cache has .*, expected \[0\.1, 0\.2, 0\.3\]"):
        uhkd.distill(**distil_words(tmp_path / "no", teacher=str(other), teacher_cache=str(cached)))
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    with pytest.raises(ValueError, match=r"a cache of another recipe(.|\n)*teacher mean: the cache has"):
        uhkd.cache(**cache_words(other, copy, views=4, allow_weak_teacher=True))


def test_a_changed_image_is_noticed_though_the_listing_is_the_same(teacher: Path, tmp_path: Path, monkeypatch):
    from PIL import Image

    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for label in "0123456789":
        (folder / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / label / f"{i}.bmp")
    out = tmp_path / "cache"
    words = cache_words(teacher, out, data=str(folder), train_limit=None, views=2, teacher_head="probe")
    uhkd.cache(**words | {"allow_weak_teacher": True, "flip": False})
    run = distil_words(
        tmp_path / "run", data=str(folder), train_limit=None, teacher_cache=str(out), epochs=1, flip=False
    )
    uhkd.distill(**run)
    other = (
        r"view \d of image \d+ differs from the one that the teacher of .* received: the file of the image has changed"
    )
    kept = {file: file.read_bytes() for file in (folder / "4/3.bmp", folder / "4/4.bmp")}  # one of them may be held out
    for file in kept:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    # the early look is a sample; the training compares every view
    monkeypatch.setattr("uhkd.training.cache_checks._CHECKED_VIEWS", 0)
    with pytest.raises(ValueError, match=other):
        uhkd.distill(**run | {"out": str(tmp_path / "one"), "batch_size": 50})
    monkeypatch.undo()
    for file, content_before in kept.items():
        file.write_bytes(content_before)
    for file in folder.rglob("*.bmp"):  # of the same size in bytes
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    with pytest.raises(ValueError, match=other):
        uhkd.distill(**run | {"out": str(tmp_path / "again")})
    with pytest.raises(ValueError, match=other):
        uhkd.cache(**words | {"allow_weak_teacher": True, "flip": False, "views": 3})


def test_damaged_and_missing_shards_are_named_and_made_anew_alone(
    teacher: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    before, stamps = content(copy), {p.name + str(p.parent): p.stat().st_mtime_ns for p in copy.glob("view-*/*")}
    flipped, gone = copy / "view-0001/shard-00002.bin", copy / "view-0002/shard-00000.bin"
    broken = bytearray(flipped.read_bytes())
    broken[777] ^= 4
    flipped.write_bytes(broken)
    gone.unlink()
    assert main(["cache", "verify", str(copy)]) == 2
    said = capsys.readouterr().err
    assert (
        "view-0001/shard-00002.bin is damaged: the checksum of record" in said
        and "view-0002/shard-00000.bin is missing" in said
    )
    with pytest.raises(ValueError, match=r"view-0002/shard-00000\.bin is missing; rewrite only this shard"):
        uhkd.distill(**distil_words(tmp_path / "run", teacher_cache=str(copy)))
    uhkd.distill(**distil_words(tmp_path / "first", teacher_cache=str(copy), epochs=1))  # the first view is whole
    assert main(["cache", "-c", str(copy), "--out", str(copy)]) == 0
    assert content(copy) == before
    touched = {
        p.name + str(p.parent) for p in copy.glob("view-*/*") if p.stat().st_mtime_ns != stamps[p.name + str(p.parent)]
    }
    assert touched == {flipped.name + str(flipped.parent), gone.name + str(gone.parent)}
    assert main(["cache", "verify", str(copy), "--sample", "20"]) == 0
    assert "20 records recomputed: views are bit-equal, outputs equal up to rounding" in capsys.readouterr().out


def test_a_bit_that_flips_while_a_student_learns_stops_it_with_the_name(cached: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    file = copy / "view-0000/shard-00001.bin"
    broken = bytearray(file.read_bytes())
    broken[5000] ^= 1
    file.write_bytes(broken)
    with pytest.raises(
        ValueError, match=r"shard-00001\.bin is damaged: the checksum of record \d+ \(image \d+ of view 0\)"
    ):
        uhkd.distill(**distil_words(tmp_path / "run", teacher_cache=str(copy), epochs=1, batch_size=100))


def test_verify_notices_another_teacher_and_signals_that_are_not_its(teacher: Path, cached: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    stored = TeacherCache(copy)
    for shard in stored.shards.of_view(0):  # whole by their checksums, and wrong
        rows = stored.shards.read(0, np.arange(shard.start, shard.stop)).copy()
        sums = stored.shards.checksums(0, np.arange(shard.start, shard.stop))
        rows[:, :20] = torch.full((len(rows), 10), 3.0).half().view(torch.uint8).numpy()
        (copy / shard.name).write_bytes(stored.shards.encode(0, shard.start, sums, rows))
    from uhkd.commands import verify_cache
    from uhkd.recipe.arguments import VerifyArguments

    with pytest.raises(ValueError, match="logits of 64 records differ from the current teacher outputs"):
        verify_cache(VerifyArguments(cache=str(copy), device="cpu"))
    other = tmp_path / "other"
    words = TINY | {"image_size": 16, "batch_size": 20, "epochs": 1, "seed": 1}
    uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 70]}, out=other, **words)
    with pytest.raises(ValueError, match="the teacher differs from that of"):
        verify_cache(VerifyArguments(cache=str(cached), teacher=str(other), device="cpu"))


def test_another_recipe_does_not_write_into_a_cache(teacher: Path, cached: Path):
    with pytest.raises(
        ValueError, match=r"is a cache of another recipe(.|\n)*view mixup: the cache has 0\.4, expected 0\.0"
    ):
        uhkd.cache(**cache_words(teacher, cached, mixup=0.0, allow_weak_teacher=True))
    with pytest.raises(ValueError, match=r"storage: the cache has 'fp16', expected 'int8'"):
        uhkd.cache(**cache_words(teacher, cached, storage="int8", allow_weak_teacher=True))


def test_views_are_added_and_what_is_there_stays(teacher: Path, cached: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    before = content(copy)
    stored = uhkd.cache(**cache_words(teacher, copy, views=4, allow_weak_teacher=True))
    assert stored.manifest.views == 4 and TeacherCache(copy).manifest.key == TeacherCache(cached).manifest.key
    after = content(copy)
    assert {k: after[k] for k in before} == before and len(after) == len(before) * 4 // 3
    (
        copy / "view-0003/shard-00001.bin"
    ).unlink()  # the folder's own words name three views; the added one is mended too
    assert main(["cache", "-c", str(copy), "--out", str(copy)]) == 0
    assert content(copy) == after


def test_a_run_keeps_its_number_of_views_when_others_are_added(
    teacher: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "copy"
    uhkd.cache(**cache_words(teacher, copy, views=2, allow_weak_teacher=True))
    words = {"teacher_cache": str(copy), "epochs": 4, "checkpoint_minutes": 1e-9}
    whole = uhkd.distill(**distil_words(tmp_path / "whole", **words))
    some = uhkd.distill(**distil_words(tmp_path / "some", **words | {"teacher_cache": str(cached), "teacher_views": 2}))
    assert some.run.weights.read_bytes() == whole.run.weights.read_bytes()
    stop_at(9, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        uhkd.distill(**distil_words(tmp_path / "cut", **words))
    uhkd.cache(**cache_words(teacher, copy, views=4, allow_weak_teacher=True))
    again = uhkd.distill(**distil_words(tmp_path / "cut", **words, resume=True))
    assert again.run.weights.read_bytes() == whole.run.weights.read_bytes()
    assert again.run.read_result()["teacher_cache"]["views"] == 2
    with pytest.raises(ValueError, match="teacher_views was 2, now 3"):
        uhkd.distill(**distil_words(tmp_path / "cut", **words, resume=True, teacher_views=3))
    with pytest.raises(ValueError, match=r"cannot resume .*teacher_cache"):
        uhkd.distill(**distil_words(tmp_path / "cut", epochs=4, resume=True, teacher=str(teacher), teacher_views=None))


def test_words_on_views_that_are_left_open_are_the_caches(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = {k: v for k, v in distil_words(tmp_path / "run", teacher_cache=str(cached)).items() if k not in VIEWS}
    result = uhkd.distill(**words | {"epochs": 1, "image_size": 8})
    recipe = result.run.read_recipe()
    assert {k: recipe[k] for k in VIEWS} == VIEWS | {"crop": "auto"} and recipe["teacher_views"] == 3
    assert "images at 8x8, crop pad, flip off, erasing 0.3, mixup 0.4, cutmix 0.5" in capsys.readouterr().err


def test_another_precision_does_not_write_into_a_cache(teacher: Path, cached: Path):
    with pytest.raises(ValueError, match="precision: the cache has 'fp32', expected 'bf16'"):
        uhkd.cache(**cache_words(teacher, cached, precision="bf16", allow_weak_teacher=True))


def test_a_refusal_for_room_leaves_a_cache_as_it_was(
    teacher: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"1\.0 kB free"):
        uhkd.cache(**cache_words(teacher, copy, views=5000, allow_weak_teacher=True))
    assert (copy / "cache.json").read_bytes() == (cached / "cache.json").read_bytes()


def test_a_run_that_was_begun_is_not_taken_for_a_cache(teacher: Path, tmp_path: Path):
    run = RunFolder(tmp_path / "run")
    run.begin({"verb": "distill", "student": "x"})
    with pytest.raises(ValueError, match="already exists and is not a cache"):
        uhkd.cache(**cache_words(teacher, run.path))
    assert run.read_recipe()["student"] == "x"


def test_folders_of_others_and_full_disks_are_refused_before_work(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="already exists and is not a cache"):
        uhkd.cache(**cache_words(teacher, tmp_path / "mine"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"1\.0 kB free, but [\d.]+ .?B must be written; use fewer --views"):
        uhkd.cache(**cache_words(teacher, tmp_path / "full", allow_weak_teacher=True))
    assert not list((tmp_path / "full").glob("view-*/*"))


def test_bad_words_are_told_together(capsys: pytest.CaptureFixture[str]):
    assert main(["cache", "--data", "digits", "--keep", "logits", "maps", "--views", "0"]) == 2
    said = capsys.readouterr().err
    assert "teacher: required" in said and "out: required" in said and "views: expected" in said
    assert main(["cache", "--data", "digits", "--teacher", "x", "--out", "y", "--keep", "logits", "maps"]) == 2
    assert "keep: expected some of logits, embedding, spectra, each once, found logits, maps" in capsys.readouterr().err
    words = ["cache", "--data", "digits", "--teacher", "x", "--out", "y", "--form", "amplitude", "--channels", "8"]
    assert main(words) == 2
    assert "a linear mix of channels needs form pairs" in capsys.readouterr().err


def _command(words: dict[str, Any]) -> list[str]:
    flags = [f"--{k.replace('_', '-')}" if v is True else f"--{k.replace('_', '-')}={v}" for k, v in words.items()]
    return [sys.executable, "-m", "uhkd", "cache", *flags]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_a_killed_cache_goes_on_shard_by_shard(teacher: Path, tmp_path: Path):
    """Real processes, killed three times while they write; two at a time at the end; equal to an undisturbed one."""
    out, words = tmp_path / "killed", {"views": 60, "allow_weak_teacher": True}
    command = _command(cache_words(teacher, out, **words))
    for least in (1, 12, 25):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 90
        while len(list(out.glob("view-*/*.bin"))) < least and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(out.glob("view-*/*.bin"))) >= least
    there = content(out)
    assert len(there) < 60, "killed too late to say anything"
    subprocess.run([*command, "--jobs=2"], check=True, stderr=subprocess.DEVNULL)
    whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "_SHARD", 2048)  # as the processes above have it
        uhkd.cache(**cache_words(teacher, whole, **words))
    assert content(out) == content(whole) and len(content(whole)) == 60
    assert not list(out.rglob("*.tmp")) and not list((out / "locks").glob("view*"))
    assert (out / "view-0000/shard-00000.bin").stat().st_size == 100 * (
        8 + TeacherCache(out).manifest.record_format.size
    )
