"""Caches from elsewhere: whatever lies there, it is read or refused in words, before anything is trained or executed."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uhkd
from uhkd.cache import TeacherCache, shards
from uhkd.commands.cache_verify import verify_cache
from uhkd.data import DataSplits, open_data
from uhkd.recipe import DistillRecipe, build, load_yaml
from uhkd.recipe.arguments import VerifyArguments
from uhkd.runs import RunFolder
from uhkd.training.cache_checks import cache_metadata, inherit_cache_views, open_cache

MACHINE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
WORDS: dict[str, Any] = MACHINE | {"data": "digits", "train_limit": 40, "epochs": 2}
SHARD = "view-0001/shard-00001.bin"
FILES = ["cache.json", "teacher.safetensors", "recipe.yaml", SHARD]
often = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Several shards a view, and a few views looked at."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "_SHARD", 32)
        patched.setattr("uhkd.training.cache_checks._CHECKED_VIEWS", 4)
        yield


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return open_data("digits", train_limit=40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of a teacher that knows nothing."""
    teacher, cache = (tmp_path_factory.mktemp("hostile") / name for name in ("teacher", "cache"))
    words = WORDS | {"epochs": 1, "image_size": 16, "batch_size": 8, "options": {"channels": [4, 4, 8, 8]}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("uhkd.training.fit.draw", lambda folder: [])
        uhkd.finetune(model="uhkd/resnet10", out=teacher, **words)
    words = {k: v for k, v in WORDS.items() if k != "epochs"}
    uhkd.cache(teacher=str(teacher), out=cache, views=2, allow_weak_teacher=True, **words)
    return cache


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "cache")


def opened(folder: Path, data: DataSplits) -> TeacherCache:
    """The cache as a training opens it, every record read."""
    asked = build(DistillRecipe, WORDS | {"student": "uhkd/vit_micro", "teacher_cache": str(folder)})
    recipe = inherit_cache_views(asked, RunFolder(folder / "run"))
    stored = open_cache(recipe, data)
    cache_metadata(stored, recipe)
    for view in range(2):
        for shard in stored.shards.of_view(view):
            stored.shards.check(shard)
    return stored


def read_or_refused(folder: Path, data: DataSplits) -> bool:
    with contextlib.suppress(ValueError, OSError):
        opened(folder, data)
        return True
    return False


def test_a_whole_cache_is_read(whole: Path, data: DataSplits):
    assert opened(whole, data).manifest.views == 2


@pytest.mark.parametrize("name", FILES)
@often
@given(content=st.binary(max_size=300))
def test_any_bytes(copied: Path, data: DataSplits, name: str, content: bytes):
    (copied / name).write_bytes(content)
    assert read_or_refused(copied, data) == (name == "recipe.yaml")  # that is for people, and for another `uhkd cache`


@pytest.mark.parametrize("name", FILES[:2] + FILES[3:])
@often
@given(draw=st.data())
def test_a_changed_piece_is_noticed(whole: Path, copied: Path, data: DataSplits, name: str, draw: st.DataObject):
    before = (whole / name).read_bytes()
    content = bytearray(before)
    start = draw.draw(st.integers(0, len(content)))
    content[start : start + draw.draw(st.integers(0, 40))] = draw.draw(st.binary(max_size=40))
    (copied / name).write_bytes(content)
    if read_or_refused(copied, data):
        # white space of JSON is all that may differ
        assert bytes(content) == before or (name == "cache.json" and json.loads(content) == json.loads(before))


def sealed(content: dict[str, Any]) -> str:
    """A cache.json with the checksum that its content asks for: whoever forges the one forges the other."""
    body = {key: value for key, value in content.items() if key != "sum"}
    digest = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
    return json.dumps(body | {"sum": digest})


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**18) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(often, max_examples=80)
@given(draw=st.data())
def test_a_forged_manifest(whole: Path, copied: Path, data: DataSplits, draw: st.DataObject):
    """Any plain data in place of a field, or of something within it, under a checksum that fits."""
    content = json.loads((whole / "cache.json").read_text())
    place, key = content, draw.draw(st.sampled_from(sorted(content.keys() - {"sum"})))
    while isinstance(place[key], dict | list) and place[key] and draw.draw(st.integers(0, 3)):
        place = place[key]
        key = draw.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = draw.draw(plain)
    (copied / "cache.json").write_text(sealed(content))
    read_or_refused(copied, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": 10**12}, "views"),
        ({"images": 10**15}, "images"),
        ({"images": -1}, "images"),
        (
            {"record_format": {"logits": 10**12, "embedding": None, "spectra": [], "storage": "fp16"}},
            "expected .* bytes, found",
        ),
        ({"images": "many"}, "images: input should be a valid integer"),
        ({"environment": {}}, "environment: no versions"),
        ({"teacher_metrics": {"accuracy": "high"}}, "teacher_metrics.accuracy: input should be a valid number"),
        ({"target": {"levels": [[1, 2]]}}, "target.levels.0"),
    ],
)
def test_a_forged_manifest_is_refused_at_once(copied: Path, data: DataSplits, change: dict[str, Any], said: str):
    (copied / "cache.json").write_text(sealed(json.loads((copied / "cache.json").read_text()) | change))
    with pytest.raises(ValueError, match=said):
        opened(copied, data)


def test_brackets_in_brackets(copied: Path):
    (copied / "cache.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"cache\.json is damaged"):
        TeacherCache(copied)


def test_what_a_manifest_may_lack_or_have_beside(copied: Path, data: DataSplits):
    """Facts that another version notes otherwise: the cache is read, and checked too."""
    content = json.loads((copied / "cache.json").read_text())
    identity = {name: value for name, value in content["identity"].items() if name != "teacher"}
    change = {
        "identity": identity,
        "environment": {"versions": {}},
        "teacher_options": {"teacher_mood": "good"},
        "mood": "good",
    }
    (copied / "cache.json").write_text(sealed(content | change))
    stored = TeacherCache(copied)
    assert (
        cache_metadata(stored, build(DistillRecipe, WORDS | {"student": "s", "teacher": "t"}))["teacher_fingerprint"]
        is None
    )
    with pytest.raises(ValueError, match="is damaged: the checksum of record"):  # another identity has another key
        opened(copied, data)
    (copied / "cache.json").write_text(
        sealed(content | {"environment": {"versions": {}}, "teacher_options": {"teacher_mood": "good"}})
    )
    assert opened(copied, data).manifest.teacher_options == {"teacher_mood": "good"}
    verify_cache(VerifyArguments(cache=str(copied), sample=2, device="cpu"))


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_executed(copied: Path, data: DataSplits, tmp_path: Path, name: str):
    trap = tmp_path / "executed"
    bomb = pickle.dumps(_Bomb(trap))
    (copied / name).write_bytes(
        f"data: !!python/object/apply:os.mkdir ['{trap}']\n".encode() if name == "recipe.yaml" else bomb
    )
    read_or_refused(copied, data)
    with contextlib.suppress(ValueError):
        load_yaml(copied / "recipe.yaml")
    assert not trap.exists()
