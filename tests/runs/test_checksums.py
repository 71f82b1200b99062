"""Checksums of the files of a finished run: what was changed or damaged is noticed by every command that trusts it."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import uhkd
from uhkd.runs import RunFolder
from uhkd.runs.checksums import SUMS, differs, read_sums

WORDS: dict[str, Any] = {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 8, 16, 16]},
    "data": "digits",
    "train_limit": 60,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "keep": "best",
}
WEIGHTS = {"model.safetensors", "last.safetensors"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uhkd.finetune(**WORDS, out=tmp_path_factory.mktemp("whole") / "run").run.path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path, seed: int) -> None:
    """Change one bit of a file."""
    content, place = bytearray(path.read_bytes()), random.Random(seed)
    content[place.randrange(len(content))] ^= 1 << place.randrange(8)
    path.write_bytes(content)


def test_every_file_that_a_command_reads_is_listed(whole: Path):
    sums = read_sums(whole)
    assert sums == {name: hashlib.sha256((whole / name).read_bytes()).hexdigest() for name in sums}
    unlisted = {path.name for path in whole.iterdir()} - sums.keys()
    assert unlisted <= {SUMS, ".lock", ".owner", "progress.json", "curves.png", "spectra.png", "cka.png"}
    assert sums.keys() >= WEIGHTS | {"recipe.yaml", "card.json", "result.json", "metrics.csv", "diagnostics.npz"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_one_changed_bit_in_weights_stops_what_would_use_them(run: Path, name: str, seed: int):
    flip(run / name, seed)
    start = str(run / name) if name == "last.safetensors" else str(run)
    users: list[Callable[[], object]] = [
        lambda: uhkd.create("uhkd/resnet10", num_classes=10, options=WORDS["options"], start=start)
    ]
    if name == "model.safetensors":
        users += [
            lambda: uhkd.evaluate(run=str(run)),
            lambda: uhkd.finetune(**WORDS, out=run, resume=True),
            lambda: uhkd.load_run(run),
        ]
    for use in users:
        with pytest.raises(uhkd.UhkdError, match=f"{name}' differs from its checksum in {SUMS}, so it is damaged"):
            use()


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "card.json", "result.json", "metrics.csv", "diagnostics.npz", "calibration.json"]
)
def test_a_changed_bit_in_another_file_is_reported(run: Path, name: str, capsys: pytest.CaptureFixture[str]):
    """By the report on its page too; a file that cannot be read any more is refused as before."""
    for seed in range(3):
        shutil.copy(run / name, run / "kept")
        flip(run / name, seed)
        assert differs(run / name)
        uhkd.report(runs=[str(run)], out=str(run / "page.html"))
        assert f"{name}: differs from its checksum in {SUMS}" in (run / "page.html").read_text(encoding="utf-8")
        shutil.copy(run / "kept", run / name)
    assert f"warning: {run / name} differs from its checksum in {SUMS}" in capsys.readouterr().err


def test_a_run_without_checksums_and_one_whose_line_was_removed_are_used(run: Path):
    flip(run / "model.safetensors", 0)
    lines = (run / SUMS).read_text().splitlines(keepends=True)
    (run / SUMS).write_text("".join(line for line in lines if "model.safetensors" not in line))
    assert uhkd.load_run(run)
    (run / SUMS).unlink()
    assert uhkd.load_run(run)


def test_damaged_checksums_stop_nothing_but_what_they_list(run: Path):
    for content in (b"", b"\xff\xfe\x00", b"x\n" * 9, b"one two  three\n"):
        (run / SUMS).write_bytes(content)
        assert uhkd.load_run(run) and read_sums(run).keys() <= {"", "three"}


def test_weights_that_are_written_anew_have_no_checksums(run: Path):
    network = uhkd.load_run(run)
    RunFolder(run).write_model(network.config.to_json(), {k: v + 1 for k, v in network.module.state_dict().items()})
    assert not (run / SUMS).exists() and uhkd.load_run(run)
