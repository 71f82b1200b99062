"""The queue for a lent GPU: what is carried, what is begun anew, and that it goes on where another machine ended."""

import json
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_queue
from gpu_queue import Queue, place_data

LIST = {
    "teachers": {
        "a": {"verb": "finetune", "recipe": "digits/teacher", "epochs": 2, "warmup_epochs": 0, "train_limit": 64},
        "b": {
            "verb": "distill",
            "recipe": "digits/vit",
            "teacher": "a",
            "method": "kd",
            "epochs": 2,
            "warmup_epochs": 0,
            "train_limit": 64,
            "allow_weak_teacher": True,
        },
    },
    "comparisons": {
        "one": {
            "teacher": "b",
            "pairs": ["digits/cnn"],
            "cache": "never",
            "changes": {"epochs": 2, "warmup_epochs": 0, "train_limit": 64, "allow_weak_teacher": True},
        }
    },
    "methods": {"first": ["scratch", "kd"]},
    "steps": [{"comparisons": ["one"], "methods": "first", "seeds": 1}],
}


def queue(state: Path, work: Path, seconds: float = 600.0) -> Queue:
    return Queue(LIST, state, work, "digits", 1, time.monotonic() + seconds)


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def test_only_finished_runs_are_carried_without_their_weights(tmp_path: Path):
    here = queue(tmp_path / "state", tmp_path / "a")
    cells = tmp_path / "a" / "cells"
    write(cells / "one" / "pair" / "kd" / "seed-0", "recipe.yaml", "result.json", "model.safetensors", "curves.png")
    write(cells / "one" / "pair" / "kd" / "seed-1", "recipe.yaml", "metrics.csv")
    write(cells / "one" / "caches" / "0", "shard.bin")
    write(cells / "one" / "plan", "kd.json")
    here.pack("cells.tar.gz", [cells])
    queue(tmp_path / "state", tmp_path / "b")
    there = sorted(p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*") if p.is_file())
    assert there == [
        "cells/one/pair/kd/seed-0/recipe.yaml",
        "cells/one/pair/kd/seed-0/result.json",
        "cells/one/plan/kd.json",
    ]


def test_a_run_whose_test_images_are_not_read_yet_needs_its_weights(tmp_path: Path):
    here = queue(tmp_path / "state", tmp_path / "a")
    cells = tmp_path / "a" / "cells"
    for seed, measured in ((0, True), (1, True), (2, False)):
        write(cells / "one" / "pair" / "kd" / f"seed-{seed}", "recipe.yaml", "result.json")
        plan = cells / "one" / "plan" / "pair" / "kd" / f"seed-{seed}.json"
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps({"measured": measured}))
    write(cells / "one" / "pair" / "kd" / "seed-1", "test.json")
    here.pack("cells.tar.gz", [cells])
    queue(tmp_path / "state", tmp_path / "b")
    assert sorted(p.parent.name for p in (tmp_path / "b").rglob("result.json")) == ["seed-1", "seed-2"]


def test_a_kept_teacher_is_copied(tmp_path: Path):
    words = LIST | {"teachers": {"cnn": "results/teachers/cnn"}}
    here = Queue(words, tmp_path / "state", tmp_path / "a", "digits", 1, time.monotonic())
    assert here.teacher("cnn")
    assert (tmp_path / "a" / "teachers" / "cnn" / "model.safetensors").is_file()
    assert not list((tmp_path / "state").iterdir())


def test_what_is_too_large_to_be_carried_is_refused_and_the_last_archive_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = queue(tmp_path / "state", tmp_path / "a")
    write(tmp_path / "a" / "cells", "small.json")
    here.pack("cells.tar.gz", [tmp_path / "a" / "cells"])
    monkeypatch.setattr(gpu_queue, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"more than the .* that may be carried"):
        here.pack("cells.tar.gz", [tmp_path / "a" / "cells"])
    with tarfile.open(tmp_path / "state" / "cells.tar.gz") as packed:
        assert packed.getnames() == ["cells/small.json"]
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["cells.tar.gz"]


def test_when_the_time_is_over_a_command_ends_with_its_children(tmp_path: Path):
    here = queue(tmp_path / "state", tmp_path / "a", gpu_queue.PACKING + 1)
    child = f"import pathlib, time; time.sleep(4); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not here.run(["-c", parent])
    time.sleep(4)
    assert not (tmp_path / "late").exists()


def test_a_command_may_end_what_it_started_in_a_session_of_its_own(tmp_path: Path):
    here = queue(tmp_path / "state", tmp_path / "a", gpu_queue.PACKING + 2)
    child = f"import pathlib, time; time.sleep(5); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "try:\n    time.sleep(60)\nfinally:\n    child.kill()\n"
    )
    assert not here.run(["-c", parent])
    time.sleep(4)
    assert not (tmp_path / "late").exists()


def test_nothing_is_begun_that_cannot_be_finished(tmp_path: Path):
    here = queue(tmp_path / "state", tmp_path / "a", gpu_queue.PACKING + gpu_queue.LEAST - 5)
    assert not here.step(["one"], ["scratch"], 1)
    assert not (tmp_path / "a" / "teachers").exists()


def test_data_has_one_name_on_every_machine(tmp_path: Path):
    (tmp_path / "cifar.npz").touch()
    assert place_data(str(tmp_path / "cifar.npz"), tmp_path / "work") == "data.npz"
    assert (tmp_path / "work" / "data.npz").resolve() == tmp_path / "cifar.npz"
    assert place_data("digits", tmp_path / "work") == "digits"


def test_the_list_names_only_what_there_is():
    words = yaml.safe_load((Path(gpu_queue.__file__).parent / "gpu_queue.yaml").read_text())
    assert gpu_queue.wrong(words) is None
    assert {name for step in words["steps"] for name in step["comparisons"]} == set(words["comparisons"])
    assert {step["methods"] for step in words["steps"]} == set(words["methods"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [{"comparison": "one", "methods": "first", "seeds": 1}]}, "lacks comparisons"),
        ({"steps": [{"comparisons": ["two"], "methods": "first", "seeds": 1}]}, "names two; expected of one"),
        ({"steps": [{"comparisons": ["one"], "methods": "last", "seeds": 1}]}, "names last; expected of first"),
        ({"comparisons": {"one": {"teacher": "c"}}}, "one has the teacher c; expected one of a, b"),
        ({"teachers": {"b": "results/teachers/none"}}, "results/teachers/none is no finished run"),
    ],
)
def test_a_list_that_cannot_work_is_refused_before_anything_runs(
    change: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file, state = tmp_path / "list.yaml", tmp_path / "state"
    file.write_text(yaml.safe_dump(LIST | change))
    monkeypatch.setattr(sys, "argv", ["gpu_queue.py", "--data", "digits", "--state", str(state), "--list", str(file)])
    with pytest.raises(SystemExit):
        gpu_queue.main()
    assert said in capsys.readouterr().err and not state.exists()


def test_comparisons_of_a_step_run_side_by_side_and_each_lane_joins_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = LIST | {"teachers": {"b": "results/teachers/cnn"}}
    words["comparisons"] = dict.fromkeys(("one", "two", "three"), LIST["comparisons"]["one"])
    here = Queue(words, tmp_path / "state", tmp_path / "a", "digits", 7, time.monotonic() + 600)
    (tmp_path / "a" / "cells").mkdir()
    told: list[str] = []
    monkeypatch.setattr(here, "run", lambda command: told.append(command[-1]) is None)
    assert here.step(["one", "two", "three"], ["scratch"], 1)
    assert len(told) == 9
    assert Counter(told) == dict.fromkeys(("one.yaml", "two.yaml", "three.yaml"), 3)
    assert yaml.safe_load((tmp_path / "a" / "two.yaml").read_text())["jobs"] == 2
    assert here.done() == ["one two three: scratch 1"]


@pytest.mark.slow
def test_the_queue_goes_on_where_another_machine_ended(tmp_path: Path):
    work = tmp_path / "work"
    assert queue(tmp_path / "state", work).teacher("b")
    weights = load_file(work / "teachers" / "b" / "model.safetensors")
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float16}
    work.rename(tmp_path / "forgotten")
    (tmp_path / "state" / "teacher-a.tar").unlink()  # not needed any more
    assert queue(tmp_path / "state", work).step(["one"], ["scratch"], 1)
    work.rename(tmp_path / "forgotten too")
    again = queue(tmp_path / "state", work)
    first = (work / "cells" / "one" / "cnn" / "scratch" / "seed-0" / "result.json").read_bytes()
    assert again.step(["one"], ["scratch"], 1), "done: nothing is run"
    assert again.step(["one"], ["scratch", "kd"], 1)
    assert (work / "cells" / "one" / "cnn" / "scratch" / "seed-0" / "result.json").read_bytes() == first
    assert (work / "cells" / "one" / "compare.json").is_file()
    assert not (work / "teachers" / "a").exists()
