"""The run folder: whole files or none, versions of checkpoints, refusals, and nothing that executes code."""

import errno
import io
import json
import os
import pickle
import platform
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from references.runs import seal
from uhkd.runs import Checkpoint, RunFolder, checkpoints, environment, lock, write_atomically, write_tensors

RECIPE = {"data": "digits", "epochs": 3, "lr": 0.001, "step_epochs": [1, 2], "out": "here", "resume": False}


def checkpoint(step: int) -> Checkpoint:
    weight = torch.nn.Parameter(torch.full((2, 3), float(step)))
    optimizer = torch.optim.AdamW([weight], lr=0.1 + step)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return Checkpoint(step, {"student.w": weight.detach()}, optimizer.state_dict(), {"rows": [{"loss": 0.1 + step}]})


def begun(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.begin(RECIPE)
    return folder


class Crash(Exception):
    pass


def crash(*_: Any, **__: Any) -> None:
    raise Crash


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, "new"),
        lambda path: write_tensors(path, {"x": torch.ones(3)}),
        lambda path: RunFolder(path.parent).write_json(path.name, {"new": 1}),
    ],
)
def test_a_crash_in_the_middle_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], moment: str
):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[moment], crash)
    with pytest.raises(Crash):
        write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]  # no litter either


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path):
    write_atomically(tmp_path / "text", "zwölf\n")
    write_atomically(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "zwölf\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"


def test_tensors_that_share_storage_or_lie_strided_come_back(tmp_path: Path):
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {"a": x, "same": x, "part": x[:, 1], "last": x.to(memory_format=torch.channels_last), "scalar": x.sum()}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) for k, v in tensors.items())


def test_weights_can_be_read_by_whoever_may_read_the_other_files(tmp_path: Path):
    folder = begun(tmp_path / "run")
    folder.write_model({"name": "x"}, {"x": torch.ones(3)})
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (folder.recipe, folder.config, folder.weights)}
    assert len(modes) == 1


def test_a_run_of_an_older_version_goes_on_where_new_words_say_what_it_did(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({k: v for k, v in RECIPE.items() if k != "lr"})
    words, defaults = RECIPE | {"resume": True}, {"lr": 0.001, "epochs": 99}
    folder.check(words, resume=True, defaults=defaults)  # what the folder says itself counts
    with pytest.raises(ValueError, match=r"lr was 0\.001, now 0\.5"):
        folder.check(words | {"lr": 0.5}, resume=True, defaults=defaults)
    with pytest.raises(ValueError, match="lr was None"):
        folder.check(words, resume=True)


def test_begin_notes_recipe_and_environment_and_resuming_keeps_them(tmp_path: Path):
    folder = begun(tmp_path / "deep" / "run")
    assert folder.read_recipe() == {k: v for k, v in RECIPE.items() if k not in ("resume", "out")}
    noted = json.loads((folder.path / "environment.json").read_text())
    assert noted["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "commit", "cpu_cores", "threads", "gpu", "command", "platform"} <= noted.keys()
    before = folder.recipe.read_bytes()
    folder.begin(RECIPE | {"epochs": 99, "resume": True})
    assert folder.recipe.read_bytes() == before
    with pytest.raises(ValueError, match="add --resume"):  # another run began here since it was looked at
        folder.begin(RECIPE)


def test_environment_is_plain_data():
    assert json.loads(json.dumps(environment())) == environment()


def test_a_folder_in_use_is_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.check(RECIPE, resume=False)  # empty: fine
    RunFolder(tmp_path / "new").check(RECIPE, resume=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty; please choose another --out"):
        folder.check(RECIPE, resume=False)
    with pytest.raises(ValueError, match=r"notes\.txt is a file: expected a folder"):
        RunFolder(tmp_path / "notes.txt").check(RECIPE, resume=False)
    with pytest.raises(ValueError, match="--resume"):
        begun(tmp_path / "run").check(RECIPE, resume=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_needs_a_run_and_the_same_recipe(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nothing to resume in .*recipe\.yaml"):
        RunFolder(tmp_path).check(RECIPE, resume=True)
    folder = begun(tmp_path / "run")
    # tuples come back from YAML as lists; where it lies and that it is resumed are no differences
    folder.check(RECIPE | {"step_epochs": (1, 2), "resume": True, "out": "elsewhere"}, resume=True)
    with pytest.raises(ValueError) as refusal:
        folder.check(RECIPE | {"epochs": 5, "lr": 0.01, "seed": 1}, resume=True)
    message = str(refusal.value)
    changes = "another recipe: epochs was 3, now 5, lr was 0.001, now 0.01, seed was None, now 1; "
    assert message.endswith(f"{changes}give the options as they were, or choose another --out")


def test_checkpoints_round_trip_and_the_newest_two_stay(tmp_path: Path):
    folder = begun(tmp_path / "run")
    assert folder.read_checkpoint() is None
    for step in (2, 9, 10):  # 10 is newer than 9, though not in the alphabet
        folder.write_checkpoint(checkpoint(step))
        found, wanted = folder.read_checkpoint(), checkpoint(step)
        assert found is not None
        assert found.step == step
        assert torch.equal(found.tensors["student.w"], wanted.tensors["student.w"])
        assert found.facts == {"step": step, "rows": [{"loss": 0.1 + step}]}
        assert found.optimizer["param_groups"] == wanted.optimizer["param_groups"]
        state, other = found.optimizer["state"][0], wanted.optimizer["state"][0]
        assert all(torch.equal(state[k], other[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    assert {p.name for p in folder.checkpoints.iterdir()} == {"step-9", "step-10"}
    folder.drop_checkpoints()
    assert not folder.checkpoints.exists()
    folder.drop_checkpoints()


@pytest.mark.parametrize("part", ["tensors.safetensors", "optimizer.pt", "facts.json"])
def test_the_previous_checkpoint_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    folder = begun(tmp_path / "run")
    folder.write_checkpoint(checkpoint(4))
    write = write_atomically

    def fails(path: Path, content: bytes | str) -> None:
        if path.name == part:
            path.write_bytes(b"half")  # as a process that is killed leaves it
            raise Crash
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_atomically", fails)
        with pytest.raises(Crash):
            folder.write_checkpoint(checkpoint(5))
    assert len(list(folder.checkpoints.iterdir())) == 2  # the leftover lies there and is not looked at
    found = folder.read_checkpoint()
    assert found is not None and found.step == 4
    folder.write_checkpoint(checkpoint(5))
    found = folder.read_checkpoint()
    assert found is not None and found.step == 5
    assert {p.name for p in folder.checkpoints.iterdir()} == {"step-4", "step-5"}  # and no leftover


def test_a_full_disk_leaves_what_was_there_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = begun(tmp_path / "run")
    folder.write_checkpoint(checkpoint(4))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            folder.write_checkpoint(checkpoint(5))
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-4"]


def test_the_same_step_can_be_written_again(tmp_path: Path):
    folder = begun(tmp_path / "run")
    folder.write_checkpoint(checkpoint(4))
    again = checkpoint(4)
    folder.write_checkpoint(Checkpoint(4, again.tensors, again.optimizer, {"rows": []}))
    found = folder.read_checkpoint()
    assert found is not None and found.facts["rows"] == []
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-4"]


def test_foreign_folders_among_the_checkpoints_are_left_alone(tmp_path: Path):
    folder = begun(tmp_path / "run")
    (folder.checkpoints / "step-3 (copy)").mkdir(parents=True)
    assert folder.read_checkpoint() is None
    folder.write_checkpoint(checkpoint(4))
    assert (folder.checkpoints / "step-3 (copy)").is_dir()


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("container", ["pickle", "torch"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(tmp_path: Path, container: str):
    folder = begun(tmp_path / "run")
    folder.write_checkpoint(checkpoint(4))
    content, trap = io.BytesIO(), tmp_path / "executed"
    state = {"state": _Bomb(trap), "param_groups": []}
    if container == "pickle":
        pickle.dump(state, content, protocol=2)
    else:
        torch.save(state, content)
    (folder.checkpoints / "step-4" / "optimizer.pt").write_bytes(content.getvalue())
    seal(folder.checkpoints / "step-4")
    with pytest.raises(ValueError, match=r"step-4: optimizer.pt holds more than tensors"):
        folder.read_checkpoint()
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Bomb(trap)))  # the bomb is a live one
    assert trap.exists()


def test_a_checkpoint_is_checked_by_anyone_with_sha256sum(tmp_path: Path):
    folder = begun(tmp_path / "run")
    folder.write_checkpoint(checkpoint(4))
    there = folder.checkpoints / "step-4"
    before = (there / "SHA256SUMS").read_text()
    seal(there)
    assert (there / "SHA256SUMS").read_text() == before
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=there, check=True, capture_output=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", save({"x": torch.ones(2)})[:-3], None])
@pytest.mark.parametrize("part", ["tensors.safetensors", "optimizer.pt", "facts.json", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_damaged_and_named(tmp_path: Path, part: str, content: bytes | None):
    folder = begun(tmp_path / "run")
    for step in (3, 4):
        folder.write_checkpoint(checkpoint(step))
    for step in (4, 3):
        file = folder.checkpoints / f"step-{step}" / part
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        if step == 4:
            found = folder.read_checkpoint()
            assert found is not None and found.step == 3 and found.facts["rows"] == [{"loss": 3.1}]
            assert len(found.damaged) == 1 and found.damaged[0].startswith("step-4: ")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be used: step-4: .*; step-3: .*delete the folder"):
        folder.read_checkpoint()


def test_any_flipped_bit_is_noticed(tmp_path: Path):
    folder = begun(tmp_path / "run")
    for step in (3, 4):
        folder.write_checkpoint(checkpoint(step))
    rng = np.random.default_rng(0)
    for file in sorted((folder.checkpoints / "step-4").iterdir()):
        whole = file.read_bytes()
        for place in rng.integers(len(whole), size=40):
            bad = bytearray(whole)
            bad[place] ^= 1 << rng.integers(8)
            file.write_bytes(bad)
            found = folder.read_checkpoint()
            assert found is not None and found.step == 3, (file.name, place)
        file.write_bytes(whole)
    found = folder.read_checkpoint()
    assert found is not None and found.step == 4 and not found.damaged


HOLDING = """
import sys, time
from uhkd.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_share_a_folder_and_a_dead_one_holds_nothing(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLDING, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        refusal = rf"run is in use by process {process.pid} on {platform.node()} since 20\d\d-"
        with pytest.raises(ValueError, match=refusal), folder.lock():
            pass
        process.kill()
    with folder.lock():
        assert json.loads((folder.path / ".owner").read_text())["process"] == os.getpid()
    assert not (folder.path / ".owner").exists()
    folder.check(RECIPE, resume=False)  # what guards an empty folder does not fill it


def test_what_is_left_of_a_dead_owner_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Workers of a loader that inherited the lock need a moment to notice that their training is gone."""
    folder = RunFolder(tmp_path / "run")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-c", HOLDING.replace("60", "1.5"), str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        owner = json.loads((folder.path / ".owner").read_text())
        (folder.path / ".owner").write_text(json.dumps(owner | {"process": gone.pid}))
        with monkeypatch.context() as patched:
            patched.setattr(lock, "PATIENCE", 0.1)
            with pytest.raises(ValueError, match=f"is in use by process {gone.pid}"), folder.lock():
                pass
        with folder.lock():
            assert process.poll() == 0 or process.wait(10) == 0


def test_a_malicious_recipe_or_array_is_refused_and_not_executed(tmp_path: Path):
    folder, trap = begun(tmp_path / "run"), tmp_path / "executed"
    folder.recipe.write_text(f"data: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        folder.read_recipe()
    np.savez(folder.diagnostics, steps=np.array([_Bomb(trap)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        folder.read_arrays()
    assert not trap.exists()


def test_metrics_round_trip(tmp_path: Path):
    folder = begun(tmp_path / "run")
    assert folder.read_metrics() == []
    rows = [{"step": 5, "loss": 1 / 3}, {"step": 10, "loss": 1e-17, "late": 2.5}, {"step": 15, "late": float("inf")}]
    folder.write_metrics(rows)
    assert folder.read_metrics() == rows  # to the last bit; cells that were never written are left out
    assert folder.metrics.read_text().splitlines()[0] == "step,loss,late"
    folder.write_metrics(rows[:1])
    assert folder.read_metrics() == rows[:1]


def test_arrays_round_trip(tmp_path: Path):
    folder = begun(tmp_path / "run")
    assert folder.read_arrays() == {}
    arrays = {"steps": np.array([3, 6]), "spectrum": np.random.default_rng(0).random((2, 5), dtype=np.float32)}
    folder.write_arrays(arrays)
    found = folder.read_arrays()
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_a_model_exists_once_weights_and_card_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = begun(tmp_path / "run")
    assert folder.started() and not folder.has_model()
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_json", crash)
        with pytest.raises(Crash):
            folder.write_model({"name": "x"}, {"w": torch.ones(2)})
    assert not folder.has_model()  # weights without a card are no model yet
    folder.write_model({"name": "x"}, {"w": torch.ones(2)})
    assert folder.has_model()
    assert folder.read_config() == {"name": "x"}
    folder.write_json(folder.result.name, {"metrics": {"loss": 0.1}})
    assert folder.read_result() == {"metrics": {"loss": 0.1}}


@pytest.mark.parametrize("moment", ["owner", "environment", "recipe"])
def test_a_run_that_was_killed_while_it_began_can_be_begun_again(tmp_path: Path, moment: str):
    """Before its recipe is there it can neither be resumed nor be in the way."""
    folder = RunFolder(tmp_path / "run")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from uhkd.runs import RunFolder, files\n"
        "def die(path, to):\n"
        "    if sys.argv[2] in str(to): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path, to)\n"
        "real, Path.replace = Path.replace, die\n"
        "folder = RunFolder(sys.argv[1])\n"
        "with folder.lock(): folder.begin({'resume': False})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder.path), moment], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(folder.path.glob(".*.tmp")) and not folder.started()
    folder.check(RECIPE, resume=False)
    with folder.lock():
        assert not list(folder.path.glob(".*.tmp"))
        folder.begin(RECIPE)
    assert folder.started()


def test_foreign_files_are_no_beginnings(tmp_path: Path):
    for name in (".mine.tmp", ".recipe.yaml.tmp", "metrics.csv", ".model.safetensors.12.tmp"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).touch()
        with pytest.raises(ValueError, match="is not empty"):
            RunFolder(tmp_path / "run").check(RECIPE, resume=False)
        shutil.rmtree(tmp_path / "run")
