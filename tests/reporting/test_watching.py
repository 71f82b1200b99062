"""`uhkd watch`: every state of a run, read from its folder alone, on a terminal and in a pipe."""

import json
import math
import os
import platform
import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import uhkd
from uhkd.__main__ import main
from uhkd.commands.watch import sparkline
from uhkd.runs import ProgressFile, RunFolder
from uhkd.runs.status import SILENT, collect_status, run_status

watching = import_module("uhkd.commands.watch")  # `uhkd.commands.watch` is the function
GONE = 2**22 + 1  # above the largest process number of Linux
RECIPE = {"teacher": "runs/teacher", "student": "uhkd/vit_micro", "method": "uhkd", "data": "digits", "epochs": 4}


def begun(folder: Path, rows: int = 0, **recipe: Any) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text(yaml.safe_dump(RECIPE | recipe))
    if rows:
        run.write_metrics(
            [
                {
                    "step": 10 * i,
                    "epoch": i,
                    "loss": 2.0 / i,
                    "val_accuracy": 0.2 * i,
                    "grad_ce": 1.0,
                    "grad_uhkd.kl": 3.0,
                }
                for i in range(1, rows + 1)
            ]
        )
    return run


def pulse(run: RunFolder, **changes: Any) -> ProgressFile:
    words = {
        "state": "running",
        "step": 25,
        "total": 40,
        "epoch": 3,
        "epochs": 4,
        "terms": {"loss": 1.5, "ce": 0.5, "uhkd.kl": 0.25},
        "recent": {"loss": [3.0, 2.0, 1.5], "ce": [1.0, 0.5], "uhkd.kl": [0.25, 0.25]},
        "lr": 0.001,
        "images_per_second": 812.4,
        "data_wait": 0.031,
        "seconds": 60.0,
        "eta_seconds": 100.0,
        "health": ["uhkd.kl dominates the gradient 9:1"],
        "process": os.getpid(),
        "machine": platform.node(),
        "time": time.time(),
    }
    made = ProgressFile(**words | changes)
    made.write(run.path)
    return made


def test_a_pulse_is_read_as_it_was_written_and_other_files_are_none(tmp_path: Path):
    run = begun(tmp_path / "run")
    assert ProgressFile.read(run.path) is None
    made = pulse(run, time=1.7e9 + 0.25)
    found = ProgressFile.read(run.path)
    assert found == made
    for text in ("", "[1]", "{", '{"state": "running"}', json.dumps(made.model_dump() | {"step": -1}), '{"a": NaN}'):
        (run.path / "progress.json").write_text(text)
        assert ProgressFile.read(run.path) is None, text


@pytest.mark.parametrize(
    ("changes", "state", "advice"),
    [
        (None, "beginning", ""),
        ({}, "running", ""),
        ({"doing": "validating"}, "running", ""),
        ({"state": "finished"}, "running", ""),  # its network is still being written
        ({"age": SILENT - 60}, "running", ""),
        (
            {"age": SILENT + 30, "machine": "another"},
            "lost",
            "no progress for 10 min 3",  # and some seconds
        ),
        ({"process": GONE}, "lost", "its process has ended; no checkpoint was written: start it again with --resume"),
        ({"process": GONE, "machine": "another"}, "running", ""),
        ({"state": "stopped"}, "stopped", "no checkpoint was written: start it again with --resume"),
        (
            {"state": "failed", "why": "loss is NaN"},
            "failed",
            "no checkpoint was written: start it again with --resume",
        ),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="asks for a process by its number")
def test_where_a_run_stands(changes: dict[str, Any] | None, state: str, advice: str, tmp_path: Path):
    run = begun(tmp_path / "run")
    if changes is not None:
        age = changes.get("age", 0.0)
        pulse(run, **{k: v for k, v in changes.items() if k != "age"}, time=time.time() - age)
    found = run_status(run.path)
    assert found["state"] == state and found["advice"].startswith(advice) and bool(found["advice"]) == bool(advice)
    assert found["what"] == "uhkd/vit_micro by uhkd from runs/teacher on digits"
    json.dumps(found)  # plain data
    (run.checkpoints / "step-20").mkdir(parents=True)
    if advice:
        assert run_status(run.path)["advice"].endswith("resume with the same command and --resume")
    run.write_json("result.json", {})
    assert run_status(run.path)["state"] == "finished"


def test_runs_below_a_folder_are_found_and_what_lies_in_them_is_not(tmp_path: Path):
    for name in ("pair/kd/seed-0", "pair/uhkd/seed-1", "teachers/cnn"):
        begun(tmp_path / name)
    begun(tmp_path / "pair" / "kd" / "seed-0" / "wandb" / "inner")
    begun(tmp_path / "a/b/c/d/e/f/too-deep")
    begun(tmp_path / ".hidden" / "run")
    begun(tmp_path / "caches" / "one").write_json("cache.json", {})
    found = collect_status(tmp_path)
    assert [Path(s["run"]).relative_to(tmp_path).as_posix() for s in found] == [
        "pair/kd/seed-0",
        "pair/uhkd/seed-1",
        "teachers/cnn",
    ]
    RunFolder(tmp_path / "teachers" / "cnn").write_json("result.json", {})
    known = collect_status(tmp_path)
    (tmp_path / "teachers" / "cnn" / "recipe.yaml").write_text("{")  # what is finished is not read again
    assert collect_status(tmp_path, known)[-1] is known[-1] and collect_status(tmp_path)[-1]["advice"] != ""


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], ""),
        ([1.0], "▄"),
        ([2.0, 2.0], "▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([9.0, 0.0, 8.0], "▁█"),
        ([-1, 1], "▁█"),
    ],
)
def test_a_curve_of_bars(values: list[float], drawn: str):
    assert sparkline(values, 2 if len(values) == 3 else 8) == drawn


def test_one_look_in_a_pipe_is_a_table_with_whole_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begun(tmp_path / "run", rows=2)
    pulse(run, eta_seconds=90.5, time=time.time() + 30)  # a clock that runs ahead
    assert main(["watch", str(run.path), "--once"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert lines == [
        "run state epoch loss",
        "run running 3/4 62% 1.5 █▃▁",
        "ce 25% of gradient 0.5 █▁",
        "uhkd.kl 75% of gradient 0.25 ▄▄",
        "val accuracy best 40.00% 40.00% ▁█",
        "uhkd/vit_micro by uhkd from runs/teacher on digits",
        "step 25/40, epoch 3/4 lr 0.001 812.4 img/s, waiting for data 3% ETA 1 min 30 s",
        "run: uhkd.kl dominates the gradient 9:1",
    ]


def test_a_pipe_gets_a_line_whenever_a_run_moves_until_all_are_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    one, two = begun(tmp_path / "one", rows=1), begun(tmp_path / "two", model="uhkd/resnet10")
    pulse(one)
    changes = iter(
        [
            lambda: None,  # nothing moves, nothing is said
            lambda: pulse(one, step=30, doing="validating"),
            lambda: (pulse(one, state="failed", why="a disk"), pulse(two, state="stopped")),
            lambda: two.write_json("result.json", {}),
        ]
    )
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(changes)())
    assert main(["watch", str(tmp_path), "--every", "0.5"]) == 0
    lines = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().out.splitlines()]
    assert [line.split("  ")[0] for line in lines] == [
        "one: running",
        "two: beginning",
        "one: running, validating",
        "one: failed: a disk; no checkpoint was written: start it again with --resume",
        "two: stopped: no checkpoint was written: start it again with --resume",
        "two: finished",
    ]
    assert lines[0].endswith("health: uhkd.kl dominates the gradient 9:1") and "step 30/40" in lines[2]


def test_ctrl_c_ends_the_watching(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    pulse(begun(tmp_path / "run"))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupted)
    assert main(["watch", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "\nuhkd watch: stopped\n"


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 110) -> Console:
    console = Console(
        markup=False, emoji=False, highlight=False, force_terminal=True, width=width, record=True, height=40
    )
    monkeypatch.setattr(watching, "Console", lambda **_: console)
    return console


def test_a_terminal_shows_progress_curves_gradient_and_health(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = begun(tmp_path / "run", rows=2)
    pulse(run)
    console = on_terminal(monkeypatch)
    looks = iter([lambda: pulse(run, step=40, epoch=4), lambda: run.write_json("result.json", {})])
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(looks)())
    (state,) = uhkd.watch(run=str(run.path))
    assert state["state"] == "finished" and state["step"] == 40
    shown = console.export_text()
    for part in ("step 40/40, epoch 4/4", "100%", "1.5", "█▃▁", "75% of gradient", "9:1", "40.00%", "finished"):
        assert part in shown, part
    capsys.readouterr()


@pytest.mark.parametrize("width", [110, 50])
def test_a_terminal_shows_many_runs_as_a_table(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for i in range(3):
        pulse(begun(tmp_path / f"seed-{i}", rows=i + 1), state=("running", "failed", "running")[i], why="a disk")
    console = on_terminal(monkeypatch, width)
    looks = iter([lambda: [RunFolder(tmp_path / f"seed-{i}").write_json("result.json", {}) for i in (0, 2)]])
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: (first.append(console.export_text()), next(looks)()))
    first: list[str] = []
    assert len(uhkd.watch(run=str(tmp_path))) == 3
    (shown,) = first
    assert "2 running, 1 failed" in shown and max(map(len, shown.splitlines())) <= width
    if width > 100:
        rows = [line for line in shown.splitlines() if "seed-" in line and "62%" in line]
        assert [line.split()[0] for line in rows] == ["seed-0", "seed-2", "seed-1"]  # those at work first
        assert "1.5" in rows[1] and "60.00% ▁▄█" in rows[1]
    capsys.readouterr()


def test_words_from_elsewhere_do_not_rule_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begun(tmp_path / "run", data="\x1b]0;owned\x07[red]x", rows=1)
    pulse(run, terms={"a\x1b[2J.b": 1.0}, health=["\x1b[31mred"], state="failed", why="\x1b[5m")
    assert main(["watch", str(run.path), "--once"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[red]x" in said and "\\x1b[31mred" in said


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"uhkd watch: error: {tmp_path} is no run folder and contains none: ")


def watched(place: Path, monkeypatch: pytest.MonkeyPatch, *changes: Any) -> list[dict[str, Any]]:
    """What `watch` returns when one thing happens a look; it must end with the last."""
    left = iter(changes)
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(left)())
    return uhkd.watch(run=str(place), every=0.5)


def planned(root: Path, *names: str) -> None:
    for name in names:
        file = root / "plan" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"words": RECIPE, "choices": {}, "measured": False}))
    (root / "plan" / "caches").mkdir(exist_ok=True)
    (root / "plan" / "caches" / "one.json").write_text(json.dumps({"words": {"views": 4, "teacher": "t"}}))


def test_a_comparison_is_over_when_all_that_it_planned_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    planned(tmp_path, "vit/kd/seed-0", "vit/uhkd/seed-0", "vit/uhkd/seed-1")
    (tmp_path / "plan" / f".order-{platform.node()}-{os.getpid()}.json").write_text("{}")
    first = begun(tmp_path / "vit/kd/seed-0")
    first.write_json("result.json", {})
    second = tmp_path / "vit/uhkd/seed-0"
    failed = tmp_path / "failed/vit/uhkd/seed-1.txt"
    failed.parent.mkdir(parents=True)
    states = watched(
        tmp_path,
        monkeypatch,
        lambda: None,  # nothing moves, but whoever gave the orders lives
        lambda: pulse(begun(second)),
        lambda: RunFolder(second).write_json("result.json", {}),
        lambda: failed.write_text("no disk\x1b\nand more"),
    )
    assert [state["state"] for state in states] == ["finished", "finished", "failed"]
    lines = [line.removeprefix(f"{tmp_path}/vit/").split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "kd/seed-0: finished",
        "uhkd/seed-0: waiting",
        "uhkd/seed-1: waiting",
        "uhkd/seed-0: running",
        "uhkd/seed-0: finished",
        "uhkd/seed-1: failed: no disk\\x1b; the same comparison tries it again",
    ]


@pytest.mark.skipif(os.name != "posix", reason="asks for a process by its number")
def test_runs_that_nobody_works_on_end_the_watching(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pulse(begun(tmp_path / "lost"), process=GONE)
    pulse(begun(tmp_path / "stopped"), state="stopped")
    old = begun(tmp_path / "old")
    os.utime(old.path, (1e9, 1e9))
    killed = begun(tmp_path / "killed")
    killed.write_json(".owner", {"process": GONE, "machine": platform.node()})
    states = watched(tmp_path, monkeypatch, lambda: None)
    assert [s["state"] for s in states] == ["beginning", "lost", "beginning", "stopped"]
    killed.write_json(".owner", {"process": os.getpid(), "machine": platform.node()})
    watched(
        tmp_path,
        monkeypatch,
        lambda: None,
        lambda: None,
        lambda: (killed.path / ".owner").unlink(),
        lambda: os.utime(killed.path, (1e9, 1e9)),
    )
    planned(tmp_path, "a", "b")
    (tmp_path / "plan" / f".order-{platform.node()}-{GONE}.json").write_text("{}")
    assert watched(tmp_path, monkeypatch, lambda: None)[-1]["state"] == "waiting"
    capsys.readouterr()


def test_odd_numbers_break_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begun(tmp_path / "run")
    odd = [math.nan, math.inf, -1e308, 1e308, 0.5]
    run.write_metrics([{"epoch": i, "val_accuracy": v, "grad_ce": v, "grad_uhkd.kl": -1e10} for i, v in enumerate(odd)])
    pulse(
        run,
        data_wait=None,
        terms={"loss": 1e308, "ce": -1e308},
        recent={"loss": [-1e308, 1e308]},
        eta_seconds=1e308,
        step=90,
    )
    assert uhkd.watch(run=str(tmp_path), once=True)[0]["rows"][1] == {"epoch": 1.0, "grad_uhkd.kl": -1e10}
    said = capsys.readouterr().out
    assert "812.4 img/s  ETA over 30 years" in said and "best 50.00%" in said
    assert re.search(r"1e\+308 +▁█", said) and "100% of gradient" in said and max(map(len, said.splitlines())) < 200
    assert "1e+308" in watching.line(run_status(run.path)) and len(watching.line(run_status(run.path))) < 400
    pulse(begun(tmp_path / "other"))
    uhkd.watch(run=str(tmp_path), once=True)
    capsys.readouterr()


def test_columns_of_a_balance_and_terms_that_were_switched_off_break_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = begun(tmp_path / "run", rows=2)
    first, last = run.read_metrics()
    last = {k: v for k, v in last.items() if not k.startswith("grad_")} | {"factor_logits": 0.0, "lead": 0.0}
    run.write_metrics([first | {"uhkd.kl": 0.5, "factor_logits": 1.0, "lead": 0.3}, last])
    said = "the teacher no longer leads: its terms have weight 0.00"
    pulse(run, terms={"loss": 1.5, "ce": 0.5}, health=[said])
    (state,) = uhkd.watch(run=str(run.path), once=True)
    shown = capsys.readouterr().out
    assert state["rows"][-1] == last and said in shown and "uhkd.kl" not in shown and "factor" not in shown


@pytest.mark.parametrize(
    "words",
    [
        {"teacher": ["runs/teacher", "runs/vit"]},
        {"teacher": None, "teachers": [{"teacher": "runs/teacher", "share": 2}, {"teacher": "runs/vit"}]},
    ],
)
def test_several_teachers_are_named(words: dict[str, Any], tmp_path: Path):
    what = run_status(begun(tmp_path / "run", **words).path)["what"]
    assert what == "uhkd/vit_micro by uhkd from runs/teacher and runs/vit on digits"
