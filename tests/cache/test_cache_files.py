"""Stored records: bytes and back, shards on disk that notice every changed byte, and the folder that says what they are."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uhkd.cache import CorruptShard, Manifest, RecordFormat, Shards, TeacherCache, identity_of, image_checksums, shards
from uhkd.data import Augmentation, file_cache
from uhkd.features import NetworkOutput, OutputShapes
from uhkd.spectral import FTM, SpectralTarget, teacher_levels

SPECTRA = ((6, 9), (4, 1))


def said(images: int = 5, seed: int = 0, scale: float = 1.0) -> NetworkOutput:
    g = torch.Generator().manual_seed(seed)
    spectra = tuple(scale * torch.randn(images, *shape, generator=g) for shape in SPECTRA)
    return NetworkOutput(torch.randn(images, 3, generator=g) * 10, None, spectra, torch.randn(images, 7, generator=g))


def fields(signals: NetworkOutput) -> list[torch.Tensor]:
    assert signals.logits is not None and signals.embedding is not None and signals.spectra is not None
    return [signals.logits, signals.embedding, *signals.spectra]


# Layout.


@pytest.mark.parametrize("scale", [1e-5, 1.0, 3e3])
def test_fp16_records_are_the_signals_rounded_to_fp16(scale: float):
    record_format, signals = RecordFormat(3, 7, SPECTRA), said(scale=scale)
    records = record_format.encode(signals)
    assert records.shape == (5, record_format.size) and record_format.size == 2 * (3 + 7 + 54 + 4)
    for x, y in zip(fields(signals), fields(record_format.decode(records)), strict=True):
        assert y.dtype == torch.float32
        assert torch.equal(y, torch.from_numpy(x.numpy().astype(np.float16).astype(np.float32)))


def test_int8_records_lie_within_half_a_step_of_their_block_and_take_half_the_room():
    record_format, signals = RecordFormat(3, 7, SPECTRA, "int8"), said()
    decoded = record_format.decode(record_format.encode(signals))
    assert torch.equal(fields(decoded)[0], fields(signals)[0].half().float())  # logits stay fp16
    for x, y in zip(fields(signals)[1:], fields(decoded)[1:], strict=True):
        step = x.flatten(1).abs().amax(1) / 127  # of each image by itself
        assert ((x - y).flatten(1).abs() <= 0.5001 * step[:, None]).all()
    whole = [RecordFormat(100, 768, ((64, 9),) * 4, storage).size for storage in ("fp16", "int8")]
    assert whole[1] < 0.53 * whole[0]


def test_swin_ts_four_levels_take_less_than_13_kilobytes_by_default():
    maps = ((96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7))
    target = SpectralTarget(teacher_levels(maps, 1, "pairs"), channels=64)
    size = RecordFormat(1000, 768, FTM(target, maps).shapes).size
    assert size == 2 * (1000 + 768 + 4 * 64 * 9) < 13_000


def test_zero_blocks_and_odd_selections_survive():
    zeros = NetworkOutput(None, None, None, torch.zeros(2, 7))
    record_format = RecordFormat(None, 7, (), "int8")
    assert record_format.holds == ("embedding",)
    assert torch.equal(record_format.decode(record_format.encode(zeros)).embedding, torch.zeros(2, 7))
    record_format = RecordFormat(3, None, ())
    part = record_format.encode(said())[1::2]  # rows of a larger tensor, as a micro-batch is
    assert torch.equal(record_format.decode(part).logits, said().logits[1::2].half().float())


@pytest.mark.parametrize(
    ("storage", "value", "message"),
    [
        ("fp16", float("nan"), "spectra of level 2 of the teacher hold 1 NaN or infinite"),
        ("int8", float("inf"), "spectra of level 2 of the teacher hold 1 NaN or infinite"),
        ("fp16", 1e5, r"reach 1e\+05, more than fp16 holds \(65504\); use --storage int8"),
    ],
)
def test_numbers_that_cannot_be_stored_are_refused_by_name(storage: str, value: float, message: str):
    signals = said()
    assert signals.spectra is not None
    signals.spectra[1][2, 1] = value
    with pytest.raises(ValueError, match=message):
        RecordFormat(3, 7, SPECTRA, storage).encode(signals)


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_the_stated_tolerance_holds(storage: str):
    record_format, signals = RecordFormat(3, 7, SPECTRA, storage), said(200)
    again = record_format.tolerance(record_format.decode(record_format.encode(signals)))
    for (name, x, allowed), (_, y, _) in zip(record_format.tolerance(signals), again, strict=True):
        assert ((x - y).abs() <= 1.001 * allowed).all(), name
        assert ((x - y).abs() > 0.4 * allowed).any(), name  # and says no more than it must


# Shards.


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD", 4)


def written(folder: Path, images: int = 10, views: int = 2, size: int = 6, key: str = "k") -> tuple[Shards, np.ndarray]:
    found = Shards(folder, images, size, key)
    bodies = np.random.default_rng(0).integers(0, 256, (views, images, size), np.uint8)
    for view in range(views):
        for shard in found.of_view(view):
            place = folder / shard.name
            place.parent.mkdir(exist_ok=True, parents=True)
            span = slice(shard.start, shard.stop)
            place.write_bytes(found.encode(view, shard.start, np.arange(100)[span], bodies[view, span]))
    return found, bodies


@pytest.mark.usefixtures("small_shards")
def test_records_are_read_in_any_order(tmp_path: Path):
    found, bodies = written(tmp_path)
    index = np.array([9, 0, 3, 4, 4, 8])
    assert np.array_equal(found.read(1, index), bodies[1, index])
    assert found.checksums(1, index).tolist() == index.tolist()
    assert [(s.start, s.stop) for s in found.of_view(0)] == [(0, 4), (4, 8), (8, 10)]
    assert not found.missing(2)
    assert [s.name for s in found.missing(3)] == [f"view-0002/shard-0000{i}.bin" for i in range(3)]


@pytest.mark.usefixtures("small_shards")
def test_readers_may_be_pickled_forked_and_have_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_cache, "_OPEN", 2)
    found, bodies = written(tmp_path, images=30)
    index = np.arange(30)[::-1]
    assert np.array_equal(found.read(0, index), bodies[0, index])
    assert len(found._files._open) == 2
    assert np.array_equal(pickle.loads(pickle.dumps(found)).read(1, index), bodies[1, index])
    if "fork" in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for view, rows in enumerate(pool.starmap(found.read, [(0, index), (1, index)])):
                assert np.array_equal(rows, bodies[view, index])
    assert np.array_equal(found.read(0, index), bodies[0, index])


@pytest.mark.usefixtures("small_shards")
@given(place=st.integers(0, 4 * 14 - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed_and_named(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int):
    folder = tmp_path_factory.mktemp("flip")
    found, bodies = written(folder)
    file = folder / "view-0001/shard-00001.bin"
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    image = 4 + place // 14
    with pytest.raises(
        CorruptShard,
        match=rf"shard-00001.bin is damaged: the checksum of record {image - 4} \(image {image} of view 1\)",
    ):
        found.read(1, np.arange(10))
    others = np.array([i for i in range(10) if i != image])
    assert np.array_equal(found.read(1, others), bodies[1, others])
    with pytest.raises(CorruptShard, match=f"rewrite only this shard with: uhkd cache -c {folder} --out {folder}"):
        found.check(next(s for s in found.of_view(1) if s.number == 1))


@pytest.mark.usefixtures("small_shards")
def test_shards_in_a_wrong_place_or_of_another_cache_are_noticed(tmp_path: Path):
    found, _ = written(tmp_path / "a")
    written(tmp_path / "b", key="other")
    one, two = tmp_path / "a/view-0000/shard-00000.bin", tmp_path / "a/view-0001/shard-00000.bin"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(CorruptShard, match="image 0 of view 0"):
        found.read(0, np.array([0]))
    one.write_bytes((tmp_path / "a/view-0000/shard-00001.bin").read_bytes())
    with pytest.raises(CorruptShard, match="image 0 of view 0"):
        Shards(tmp_path / "a", 10, 6, "k").read(0, np.array([0]))
    one.write_bytes((tmp_path / "b/view-0000/shard-00000.bin").read_bytes())
    with pytest.raises(CorruptShard, match="image 0 of view 0"):
        Shards(tmp_path / "a", 10, 6, "k").read(0, np.array([0]))
    one.write_bytes(content)
    Shards(tmp_path / "a", 10, 6, "k").read(0, np.array([0]))


@pytest.mark.usefixtures("small_shards")
def test_missing_and_short_shards_are_named_with_what_was_found(tmp_path: Path):
    found, _ = written(tmp_path)
    (tmp_path / "view-0000/shard-00001.bin").unlink()
    with pytest.raises(CorruptShard, match=r"view-0000/shard-00001\.bin is missing; rewrite only this shard"):
        found.read(0, np.array([0, 5]))
    file = tmp_path / "view-0001/shard-00002.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert [s.name for s in found.missing(2)] == ["view-0000/shard-00001.bin", "view-0001/shard-00002.bin"]
    with pytest.raises(CorruptShard, match="expected 28 bytes, found 27"):
        found.check(found.missing(2)[1])
    with pytest.raises(CorruptShard, match="image 9 of view 1"):
        found.read(1, np.array([9]))


# The folder.


MAPS = ((6, 8, 8), (4, 2, 2))


def manifest(**changes: object) -> tuple[Manifest, FTM]:
    target = SpectralTarget(teacher_levels(MAPS, 1, "pairs"), "channel", 3)
    ftm = FTM(target, MAPS)
    ftm.calibrate(ftm.raw([torch.randn(9, *shape) for shape in MAPS]))
    record_format = RecordFormat(3, 7, ftm.shapes, "int8")
    augmentation = Augmentation((8, 8), "pad", flip=True, mixup=0.2)
    names = ("a", "b")
    identity = identity_of(
        teacher={"fingerprint": "t", "weights": "w", "levels": names, "mean": (0.5,)}, precision="fp32", data="d", classes=3,
        augmentation=augmentation, seed=4, record_format=record_format, ftm=ftm,
    )  # fmt: skip
    shapes = OutputShapes(MAPS, 7, 3, tokens=True)
    made = Manifest(
        identity, 10, 2, record_format, augmentation, 4, shapes, names, target, "runs/t", {"accuracy": 0.5}, {"v": 1}
    )
    return Manifest(**{**made.__dict__, **changes}), ftm


def test_a_cache_is_read_as_it_was_written(tmp_path: Path):
    made, ftm = manifest()
    TeacherCache.create(tmp_path, made, {f"ftm.{k}": v for k, v in ftm.state_dict().items()})
    stored = TeacherCache(tmp_path)
    assert replace(stored.manifest, tensors="") == made
    again = FTM(made.target, MAPS)
    again.load_state_dict(stored.tensors("ftm."))
    batch = [torch.randn(2, *shape) for shape in MAPS]
    assert all(torch.equal(a, b) for a, b in zip(ftm(batch), again(batch), strict=True))
    assert stored.differences(made.identity) == []
    assert stored.differences({"data": "e", "view seed": 4, "view mixup": 0.1}) == [
        "data: the cache has 'd', expected 'e'",
        "view mixup: the cache has 0.2, expected 0.1",
    ]


def test_the_key_changes_with_everything_but_the_number_of_views():
    made, _ = manifest()
    assert manifest(views=9)[0].identity.keys() == made.identity.keys()
    assert Manifest(**{**made.__dict__, "views": 9}).key == made.key
    for name in made.identity:
        assert Manifest(**{**made.__dict__, "identity": made.identity | {name: "other"}}).key != made.key


@given(st.data())
def test_a_damaged_manifest_gives_our_own_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("manifest")
    made, _ = manifest()
    TeacherCache.create(folder, made, {"x": torch.zeros(1)})
    file = folder / "cache.json"
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "field"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 2))]
    elif kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    else:
        said = json.loads(content)
        del said[data.draw(st.sampled_from(sorted(said)))]
        content = bytearray(json.dumps(said).encode())
    file.write_bytes(content)
    try:
        found = TeacherCache(folder)
    except ValueError as error:
        told = str(error)
    else:  # a flip may make another spelling of the same number
        told = "cache.json" if replace(found.manifest, tensors="") == made else "unnoticed"
    assert "cache.json" in told


def test_no_cache_another_format_and_lost_tensors_are_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a cache \(no cache.json\)"):
        TeacherCache(tmp_path)
    TeacherCache.create(tmp_path, manifest()[0], {"x": torch.zeros(1)})
    file = tmp_path / "cache.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ValueError, match="is of format 1, this version reads 2"):
        TeacherCache(tmp_path)
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    content = bytearray((tmp_path / "teacher.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "teacher.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"teacher\.safetensors is missing or damaged.*checksum differs"):
        TeacherCache(tmp_path).tensors("ftm.")
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"cache\.json is damaged"):
        TeacherCache(tmp_path)
    TeacherCache.create(tmp_path, manifest()[0], {"x": torch.zeros(1)})
    (tmp_path / "teacher.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"teacher\.safetensors is missing or damaged"):
        TeacherCache(tmp_path).tensors("ftm.")


def test_picture_sums_change_with_any_pixel_and_share():
    image = torch.randint(0, 256, (3, 3, 4, 4)).float() / 255
    target = torch.eye(3)
    sums = image_checksums(image, target)
    changed = image.clone()
    changed[1, 2, 3, 3] = (changed[1, 2, 3, 3] * 255 + 1).remainder(256) / 255
    assert (image_checksums(changed, target) != sums).tolist() == [False, True, False]
    mixed = target.clone()
    mixed[2] = torch.tensor([0.0, 0.25, 0.75])
    assert (image_checksums(image, mixed) != sums).tolist() == [False, False, True]
    assert np.array_equal(image_checksums(image[1:2], target[1:2]), sums[1:2])
    assert np.array_equal(image_checksums((image * 255).round().to(torch.uint8), target), sums), (
        "bytes and floats alike"
    )


def test_a_record_is_only_given_for_the_view_that_the_teacher_saw(tmp_path: Path):
    made, _ = manifest()
    TeacherCache.create(tmp_path, made, {})
    stored, rng = TeacherCache(tmp_path), np.random.default_rng(0)
    image = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    bodies = rng.integers(0, 256, (10, made.record_format.size), np.uint8)
    (tmp_path / "view-0001").mkdir()
    (tmp_path / "view-0001/shard-00000.bin").write_bytes(
        stored.shards.encode(1, 0, image_checksums(image, None), bodies)
    )
    order = np.array([7, 2, 9])
    assert np.array_equal(stored.read_records(1, order, image[order], None), bodies[order])
    image[2, 0, 0, 0] += 1
    with pytest.raises(
        ValueError,
        match=r"view 1 of image 2 differs from the one that the teacher of .* received: the file of the image has changed",
    ):
        stored.read_records(1, order, image[order], None)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, _ = written(tmp_path, 5, 1)

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"shard-00000\.bin cannot be read: .*Too many open files") as told:
        found.read(0, np.array([1]))
    assert not isinstance(told.value, CorruptShard)
