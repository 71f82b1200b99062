"""Comparisons: the plan, equal tuning, a queue that survives kills and is shared, and a table that says what was measured."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from uhkd.__main__ import main
from uhkd.commands.compare import compare
from uhkd.commands.comparing.naming import look_up
from uhkd.commands.comparing.plan import TUNING_SEED, make_plan
from uhkd.commands.comparing.report import write
from uhkd.commands.comparing.search import changes_tried
from uhkd.commands.comparing.summary import _test_accuracy, gather, table_rows, verdicts
from uhkd.commands.comparing.tables import csv_text, latex, markdown, overview, pair_rows, run_rows
from uhkd.commands.comparing.task_store import TaskStore, work
from uhkd.methods import method_class, method_names, parse_methods
from uhkd.recipe import CompareRecipe, DistillRecipe, RecipeError, build, find_recipe, load_yaml, recipe_names
from uhkd.reporting.stats import paired_difference
from uhkd.runs import RunFolder
from uhkd.training.defaults import LENGTH, default_length

SHORT = {"data": "digits", "epochs": 1, "batch_size": 64, "train_limit": 128, "precision": "fp32"}
STUDENT = SHORT | {
    "student": "uhkd/vit_micro",
    "student_options": {"embed_dim": 16, "num_heads": 2},
    "image_size": 8,
    "allow_weak_teacher": True,
}
TEACHER = SHORT | {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 8, 16, 16]},
    "image_size": 16,
    "optimizer": "sgd",
}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A folder with the recipes of a teacher and two students."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    mixer = STUDENT | {"student": "uhkd/mixer_micro", "student_options": {"embed_dim": 16}}
    for name, words in {"teacher": TEACHER, "vit": STUDENT, "mlp": mixer}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(words))
    return folder


def asked(recipes: Path, **words: Any) -> CompareRecipe:
    given = {
        "pairs": [str(recipes / "vit.yaml")],
        "teachers": [str(recipes / "teacher.yaml")],
        "methods": ["scratch", "kd"],
        "seeds": 1,
        "out": str(recipes.parent / "out"),
    }
    return build(CompareRecipe, given | words)


def done(recipe: CompareRecipe) -> tuple[Any, TaskStore]:
    """The plan and board of a comparison, worked through in this process."""
    out = Path(recipe.out)
    plan, board = make_plan(recipe, out), TaskStore(out)
    board.begin(plan)
    work(plan.tasks, out)
    return plan, board


# The plan.


def test_cells_come_seed_by_seed_and_share_one_teacher(recipes: Path):
    both = [str(recipes / "vit.yaml"), str(recipes / "mlp.yaml")]
    recipe = asked(recipes, pairs=both, methods=["scratch", "kd"], seeds=2, overrides={"epochs": 3})
    plan = make_plan(recipe, Path(recipe.out))
    assert [task.name for task in plan.tasks] == ["teachers/teacher"] + [
        f"{pair}/{method}/seed-{seed}" for seed in (0, 1) for pair in ("vit", "mlp") for method in ("scratch", "kd")
    ]
    by_name = {task.name: task for task in plan.tasks}
    assert by_name["mlp/kd/seed-1"].after == ("teachers/teacher",)
    assert by_name["mlp/scratch/seed-1"].after == (), "scratch waits for no teacher"
    words = by_name["vit/kd/seed-1"].options
    assert (words["seed"], words["method"], words["epochs"]) == (1, "kd", 3)
    assert words["teacher"] == str(Path(recipe.out) / "teachers" / "teacher")
    assert by_name["teachers/teacher"].options["epochs"] == 1, "changes are the students'"


def test_a_variant_and_data_reach_the_words(recipes: Path):
    variants = {"wide": {"method": "uhkd", "settings": {"hidden": 8}, "lr": 0.5}}
    recipe = asked(
        recipes, methods=["wide"], variants=variants, data="elsewhere", overrides={"settings": {"radius": 2}}
    )
    (task,) = [task for task in make_plan(recipe, Path(recipe.out)).tasks if "student" in task.options]
    assert task.options["method"] == "uhkd" and task.options["lr"] == 0.5 and task.options["data"] == "elsewhere"
    assert task.options["settings"] == {"radius": 2, "hidden": 8}


def test_a_comparison_states_what_its_recipe_leaves_open(recipes: Path):
    """Every method, setting tried and seed gets the same numbers, and equal views can share a cache."""
    words = {name: word for name, word in STUDENT.items() if name not in ("epochs", "batch_size")}
    (recipes / "open.yaml").write_text(yaml.safe_dump(words))
    asked_for = asked(recipes, pairs=[str(recipes / "open.yaml")], methods=["scratch", "kd", "dist"], seeds=2, tune=2)
    plan = make_plan(asked_for, Path(asked_for.out))
    lengths = [tuple(task.options.get(name) for name in LENGTH) for task in plan.tasks if "student" in task.options]
    assert len(lengths) == 12 and set(lengths) == {(*default_length(128), 0.0)}
    assert {cache.options["views"] for cache in plan.caches} == {default_length(128)[1]}


def test_teachers_that_are_there_are_not_trained(recipes: Path):
    recipe = asked(recipes, teachers=["timm/resnet18"])
    plan = make_plan(recipe, Path(recipe.out))
    assert all("student" in task.options for task in plan.tasks) and plan.teachers == {"vit": "timm/resnet18"}


def test_a_pair_may_not_be_called_like_a_folder_of_the_comparison(recipes: Path):
    (recipes / "logs.yaml").write_text((recipes / "vit.yaml").read_text())
    with pytest.raises(RecipeError, match="pairs: logs is the name of a folder in every comparison; rename the recipe"):
        make_plan(asked(recipes, pairs=[str(recipes / "logs.yaml")]), recipes / "out")


def test_given_paths_mean_the_same_wherever_a_worker_is_started(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    _, board = done(asked(recipes, methods=["scratch", "kd"]))
    monkeypatch.chdir(board.path)
    (board.path / "images").mkdir()
    words = {"teachers": ["teachers/teacher"], "data": "images", "methods": ["kd"]}
    (task,) = make_plan(asked(recipes, **words), board.path / "other").tasks
    assert task.options["teacher"] == str(board.path / "teachers" / "teacher") and task.options["data"] == str(
        board.path / "images"
    )
    (board.path / "teachers" / "teacher" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="teachers: the run teachers/teacher is not finished"):
        make_plan(asked(recipes, **words), board.path / "other")
    assert make_plan(asked(recipes, teachers=["runs/nowhere"], methods=["scratch"]), board.path).cells, (
        "scratch needs none"
    )


def test_pairs_of_one_name_are_told_apart_by_their_folders(recipes: Path):
    other = recipes / "other"
    other.mkdir()
    (other / "vit.yaml").write_text((recipes / "vit.yaml").read_text())
    recipe = asked(recipes, pairs=[str(recipes / "vit.yaml"), str(other / "vit.yaml")])
    assert list(make_plan(recipe, Path(recipe.out)).teachers) == ["recipes-vit", "other-vit"]


BAD = [
    ({"methods": ["scratch", "uhdk"]}, "did you mean 'uhkd'"),
    ({"methods": ["kd", "kd"]}, "methods: expected each once"),
    ({"teachers": ["a", "b"]}, "teachers: expected one"),
    ({"overrides": {"seed": 3}}, "overrides: seed cannot be overridden"),
    ({"overrides": {"epochz": 3}}, "did you mean 'epochs'"),
    ({"variants": {"x": {"lr": 1}}, "methods": ["x"]}, "variants: x needs 'method: NAME'"),
    ({"pairs": ["nowhere.yaml"]}, "no recipe 'nowhere.yaml'"),
    ({"teachers": ["nowhere.yaml"]}, "no recipe 'nowhere.yaml'"),
    ({"teacher_overrides": {"epochs": "many"}}, "epochs: expected a whole number"),
    ({"seeds": 0}, "seeds: expected a value >= 1"),
    ({"methods": ["uhkd"], "changes": {"settings": {"radiu": 2}}}, "did you mean 'radius'"),
    ({"variants": {"kd": {"method": "uhkd"}}}, "variants: kd is a method; choose another name"),
    ({"variants": {"../up": {"method": "kd"}}}, "variants: '../up' must consist of letters"),
    ({"variants": {"x": {"method": "kd", "seed": 7}}}, "variants: x cannot set seed"),
    ({"variants": {"x": {"method": "kd", "teacher": "t"}}}, "variants: x cannot set teacher"),
    ({"pairs": ["digits/teacher"]}, "pairs: teacher is not a recipe of distill"),
    ({"teachers": ["digits/vit"]}, "teachers: digits/vit is not a recipe of finetune"),
    ({"teachers": ["nowhere/teacher"]}, "neither a folder nor a model is called 'nowhere/teacher'"),
    ({"methods": ["kd"], "tune": 2, "changes": {"min_lr": 0.0009}}, "setting tried"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_mistakes_are_told_before_anything_is_trained(recipes: Path, words: dict[str, Any], said: str):
    def planned() -> None:
        recipe = asked(recipes, **words)
        make_plan(recipe, Path(recipe.out))

    with pytest.raises(RecipeError, match=re.escape(said)):
        planned()
    assert not (recipes.parent / "out").exists()


def test_a_recipe_without_teacher_is_told(recipes: Path):
    recipe = asked(recipes, teachers=[])
    with pytest.raises(RecipeError, match="its recipe names no teacher"):
        make_plan(recipe, Path(recipe.out))


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("compare/")])
def test_packaged_comparisons_can_be_planned(name: str, tmp_path: Path):
    recipe = build(CompareRecipe, load_yaml(find_recipe(name)))
    plan = make_plan(recipe, tmp_path)
    assert len(plan.cells) == len(recipe.pairs) * len(recipe.methods) * recipe.seeds
    assert {"scratch", "kd", "uhkd"} <= set(recipe.methods) and all(
        path.startswith(str(tmp_path)) for path in plan.teachers.values()
    )


# Tuning.


def recipe_of(method: str, **words: Any) -> DistillRecipe:
    return build(DistillRecipe, STUDENT | {"teacher": "t", "method": method} | words)


@pytest.mark.parametrize("method", method_names())
def test_every_method_tries_as_many_settings_within_its_ranges(method: str):
    tried = changes_tried(recipe_of(method), 8)
    assert len(tried) == 8 and tried[0] == {} and len({json.dumps(change) for change in tried}) == 8, "no setting twice"
    for change in tried[1:]:
        assert 0.25 * 1e-3 <= change["lr"] <= 4 * 1e-3
        parse_methods(method, change.get("settings"), change.get("weights"))
    kind = method_class(method)
    assert all(("weights" in change) == (kind.main_term is not None) for change in tried[1:])
    assert all(("settings" in change) == (kind.tunable is not None) for change in tried[1:])
    if kind.main_term is not None:
        own = kind.default_weights[kind.main_term]
        weights = [change["weights"][f"{method}.{kind.main_term}"] for change in tried[1:]]
        assert 0.1 * own <= min(weights) < own < max(weights) <= 10 * own
    if method != "scratch":
        assert kind.main_term is not None, "each method has a weight to tune"


def test_all_methods_try_the_same_points():
    rates = [
        [change.get("lr") for change in changes_tried(recipe_of(m), 6)] for m in ("scratch", "kd", "uhkd", "rkd+kd")
    ]
    assert all(found == rates[0] for found in rates)
    assert changes_tried(recipe_of("kd"), 1) == [{}]


def test_the_recipes_own_weight_is_the_middle_of_the_range():
    tried = changes_tried(recipe_of("uhkd", weights={"uhkd.features": 2.0}), 30)
    weights = sorted(c["weights"]["uhkd.features"] for c in tried[1:])
    assert 0.2 <= weights[0] < 0.3 and 15 < weights[-1] <= 20 and 1 < weights[15] < 4


def test_the_best_setting_on_the_held_out_part_runs_in_the_table(recipes: Path):
    recipe = asked(recipes, methods=["scratch"], tune=3, split="test")
    plan, board = done(recipe)
    tried = {name: board.run(name).read_recipe() for name in plan.trials}
    assert len(tried) == 3 and {words["seed"] for words in tried.values()} == {TUNING_SEED}
    scores = {name: board.run(name).read_result()["metrics"]["val_accuracy"] for name in tried}
    best = max(scores, key=lambda name: scores[name])
    assert board.run("vit/scratch/seed-0").read_recipe()["lr"] == tried[best]["lr"]
    summary = gather(plan, board, title="t", part="test", tune=3)
    assert [trial["accuracy"] for trial in summary["tuning"]] == list(scores.values())
    assert [trial["taken"] for trial in summary["tuning"]] == [name == best for name in scores]
    assert [line.settings_tried for line in table_rows(summary)] == [3]
    assert (
        summary["runs"][0]["accuracy"]
        == json.loads((board.path / "vit/scratch/seed-0/test.json").read_text())["accuracy"]
    )


def test_a_setting_that_fails_was_tried_and_is_not_chosen(recipes: Path):
    recipe = asked(recipes, methods=["uhkd"], tune=2, overrides={"settings": {"radius": 1}})
    out = Path(recipe.out)
    plan, board = make_plan(recipe, out), TaskStore(out)
    board.begin(plan)
    board.fail("tune/vit/uhkd/setting-0", "the loss stopped being finite")
    work(plan.tasks, out)
    chosen, tried = (board.run(name).read_recipe() for name in ("vit/uhkd/seed-0", "tune/vit/uhkd/setting-1"))
    assert chosen["lr"] == tried["lr"] != 1e-3 and chosen["weights"] == tried["weights"] != {}
    summary = gather(plan, board, title="t", part="val", tune=2)
    assert [(trial["accuracy"] is None, trial["taken"]) for trial in summary["tuning"]] == [
        (True, False),
        (False, True),
    ]
    assert summary["tuning"][0]["why"] == "the loss stopped being finite"


@pytest.mark.slow
def test_a_choice_once_made_stays(recipes: Path):
    """A setting that failed and is tried again with success must not give later seeds another setting than earlier ones."""
    recipe = asked(recipes, methods=["kd"], tune=2)
    out = Path(recipe.out)
    plan, board = make_plan(recipe, out), TaskStore(out)
    board.begin(plan)
    board.fail("tune/vit/kd/setting-0", "out of memory")
    work(plan.tasks, out)
    assert board.state(next(task for task in plan.tasks if task.name == "tune/vit/kd/setting-0")) == "failed"
    first = board.run("vit/kd/seed-0").read_recipe()
    plan, board = done(asked(recipes, methods=["kd"], tune=2, seeds=2))
    scores = [board.run(f"tune/vit/kd/setting-{i}").read_result()["metrics"]["val_accuracy"] for i in (0, 1)]
    second = board.run("vit/kd/seed-1").read_recipe()
    assert len(scores) == 2 and (first["lr"], first["weights"]) == (second["lr"], second["weights"])
    summary = gather(plan, board, title="t", part="val", tune=2)
    assert [trial["taken"] for trial in summary["tuning"]] == [False, True] and not summary["warnings"]


# The queue.


def test_a_finished_comparison_repeats_nothing_and_may_grow(recipes: Path):
    recipe = asked(recipes)
    plan, board = done(recipe)
    assert {board.state(task) for task in plan.tasks} == {"done"}
    before = {task.name: board.run(task.name).result.stat().st_mtime_ns for task in plan.tasks}
    plan, board = done(asked(recipes, seeds=2, methods=["scratch", "kd", "uhkd"]))
    assert len(plan.tasks) == 7 and {board.state(task) for task in plan.tasks} == {"done"}
    assert {name: board.run(name).result.stat().st_mtime_ns for name in before} == before
    summary = gather(plan, board, title="t", part="val", tune=0)
    assert {run["method"]: run["balance"] for run in summary["runs"]} == {
        "scratch": "constant",
        "kd": "constant",
        "uhkd": "lead",
    }
    assert not summary["warnings"], "a method's own balance makes no rows incomparable"
    with pytest.raises(RecipeError, match=r"belongs to another recipe(.|\n)*epochs was 1, now 2"):
        done(asked(recipes, overrides={"epochs": 2}))


def test_the_same_trainings_may_be_wanted_on_the_test_part_later(recipes: Path):
    plan, board = done(asked(recipes))
    before = {task.name: board.run(task.name).result.stat().st_mtime_ns for task in plan.tasks}
    plan, board = done(asked(recipes, split="test"))
    assert {task.name: board.run(task.name).result.stat().st_mtime_ns for task in plan.tasks} == before
    summary = gather(plan, board, title="t", part="test", tune=0)
    told = json.loads((board.path / "vit/kd/seed-0/test.json").read_text())["accuracy"]
    assert summary["runs"][1]["accuracy"] == told and summary["pairs"]["vit"]["teacher"]["part"] == "test"


def test_a_part_that_the_data_lacks_is_missed_before_anything_is_trained(recipes: Path):
    arrays = recipes / "small.npz"
    labels = np.arange(40) % 2
    np.savez(arrays, train_images=np.zeros((40, 8, 8, 3), np.uint8), train_labels=labels)
    recipe = asked(recipes, data=str(arrays), split="test")
    with pytest.raises(ValueError, match="data small has no test split; leave out --split test"):
        compare(recipe)
    assert not list(Path(recipe.out).rglob("result.json"))


@pytest.mark.slow
def test_what_makes_runs_incomparable_is_told_and_loses_nothing(recipes: Path):
    variants = {"small": {"method": "kd", "student_options": {"embed_dim": 8, "num_heads": 2}, "train_limit": 64}}
    plan, board = done(asked(recipes, methods=["small", "scratch", "kd"], variants=variants, seeds=2))
    summary = gather(plan, board, title="t", part="val", tune=0)
    assert len(summary["runs"]) == 6 and not summary["warnings"], (
        "a variant may differ, also in what follows from its words"
    )
    assert set(summary["runs"][0]["differs"]) >= {"student_options", "parameters", "train_images"}
    settings = {"temperature": 4.0, "standardise_logits": False}
    assert summary["runs"][2]["effective"] == {"kd": {"settings": settings, "weights": {"kl": 1.0}}}
    for name, key, value in (
        ("vit/kd/seed-1", "teacher_fingerprint", "another"),
        ("vit/scratch/seed-1", "data_fingerprint", "another"),
    ):
        result = board.run(name).read_result()
        board.run(name).write_json("result.json", result | {key: value})
    told = gather(plan, board, title="t", part="val", tune=0)
    assert told["warnings"] == [
        "vit/scratch/seed-1 differs from other runs of vit in data_fingerprint",
        "runs of vit have 2 different teachers",
    ]
    assert len(told["runs"]) == 6
    write(board.path, told)
    assert "**warning: runs of vit have 2 different teachers**" in (board.path / "compare.md").read_text()


def test_two_workers_share_the_work(recipes: Path):
    recipe = asked(recipes, methods=["scratch"], seeds=3, teachers=["timm/resnet18"])
    out = Path(recipe.out)
    plan, board = make_plan(recipe, out), TaskStore(out)
    board.begin(plan)
    with board.claim(plan.tasks[0].name) as mine:  # another worker has the first cell
        assert mine
        with board.claim(plan.tasks[0].name) as again:
            assert not again
        other = threading.Thread(target=work, args=(plan.tasks, out))
        other.start()
        deadline = time.monotonic() + 120
        while [board.state(task) for task in plan.tasks] != ["waiting", "done", "done"]:
            assert time.monotonic() < deadline and other.is_alive()
            time.sleep(0.1)
    other.join(120)  # the claim is gone as if its holder had died: the cell is taken over
    assert {board.state(task) for task in plan.tasks} == {"done"}


def test_a_failed_training_stops_no_other_and_is_tried_again(recipes: Path, capsys: pytest.CaptureFixture[str]):
    variants = {"lost": {"method": "kd", "student_levels": ["nowhere"]}}
    recipe = asked(recipes, methods=["lost", "scratch"], variants=variants)
    plan, board = done(recipe)
    assert board.state(plan.tasks[1]) == "failed" and "nowhere" in (board.failure("vit/lost/seed-0") or "")
    assert "Traceback" in (board.path / "logs/vit/lost/seed-0.txt").read_text()
    summary = gather(plan, board, title="t", part="val", tune=0)
    assert list(summary["missing"]) == ["vit/lost/seed-0"] and [run["method"] for run in summary["runs"]] == ["scratch"]
    leftover = board.path / "locks/vit/lost/.seed-0.pid.1.tmp"  # of a worker that was killed while it wrote
    leftover.write_text("x")
    with pytest.raises(ValueError, match=r"1 of 3 trainings failed(.|\n)*vit/lost/seed-0: .*nowhere"):
        compare(recipe)
    assert not leftover.exists()
    assert "Missing cells" in (board.path / "compare.md").read_text()


def _bug(*_: Any, **__: Any) -> Any:
    raise ValueError("a bug")


def test_a_bug_is_not_reported_as_a_mistake_of_the_user(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    """Only a `UhkdError` becomes a line of text; a ValueError of any other kind keeps its type."""
    with pytest.raises(ValueError, match="a bug") as caught:
        look_up(_bug, "name", "pair")
    assert type(caught.value) is ValueError
    plan, board = done(asked(recipes, methods=["scratch"]))
    monkeypatch.setattr("uhkd.commands.comparing.summary.measure", _bug)
    (teacher,) = plan.teachers.values()
    with pytest.raises(ValueError, match="a bug"):
        _test_accuracy(board, RunFolder(teacher), "digits")
    assert not (board.path / "teachers-on-test.json").exists(), "no accuracy is recorded as missing"
    monkeypatch.setattr("uhkd.commands.comparing.plan.parse_methods", _bug)
    with pytest.raises(ValueError, match="a bug") as caught:
        make_plan(asked(recipes), recipes / "out")
    assert type(caught.value) is ValueError


def test_a_bug_in_a_training_keeps_its_type_and_its_trace(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uhkd.commands.train.prepare", _bug)
    plan, board = done(asked(recipes, methods=["scratch"]))
    assert board.failure(plan.tasks[-1].name) == "ValueError: a bug"
    trace = (board.path / "logs" / f"{plan.tasks[-1].name}.txt").read_text()
    assert "Traceback" in trace and "in _bug" in trace


def test_what_waits_for_a_failed_teacher_is_not_run(recipes: Path):
    recipe = asked(recipes, teacher_overrides={"levels": ["nowhere"]}, methods=["kd", "scratch"])
    plan, board = done(recipe)
    assert board.failure("vit/kd/seed-0") == "not run: teachers/teacher failed"
    assert board.state(plan.tasks[-1]) == "done", "scratch needs no teacher"


@pytest.mark.slow
def test_cells_may_load_images_in_processes_of_their_own_and_a_plain_script_may_compare(recipes: Path, tmp_path: Path):
    """No `if __name__ == "__main__"` needed: workers do not import the caller's script."""
    words = {"pairs": [str(recipes / "vit.yaml")], "methods": ["scratch"], "seeds": 2, "jobs": 2}
    words |= {"teachers": ["timm/resnet18"], "changes": {"workers": 1}, "out": str(tmp_path / "out")}
    script = tmp_path / "script.py"
    script.write_text(f"import uhkd\nprint(len(uhkd.compare(**{words!r})['runs']), 'runs')\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 runs" in done.stdout
    environment = json.loads((tmp_path / "out/vit/scratch/seed-0/environment.json").read_text())
    assert environment["command"] == ["script.py"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_a_cell_that_kills_its_process_is_failed_and_the_rest_goes_on(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    """As when memory runs out: the worker is replaced, and its task does not take the next worker down too."""
    site = recipes / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "import uhkd.methods.kd as kd\n"
        "kd.KD.__init__ = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    recipe = asked(recipes, methods=["kd", "scratch"], seeds=2)
    plan, board = make_plan(recipe, Path(recipe.out)), TaskStore(Path(recipe.out))
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(ValueError, match=r"2 of 5 trainings failed(.|\n)*code -9 \(killed, often because memory"):
        compare(recipe)
    states = {task.name: board.state(task) for task in plan.tasks}
    assert [name for name, state in states.items() if state == "failed"] == ["vit/kd/seed-0", "vit/kd/seed-1"]
    assert set(states.values()) == {"failed", "done"}


def command(recipes: Path, out: Path) -> list[str]:
    words = ["--pairs", str(recipes / "vit.yaml"), "--teachers", str(recipes / "teacher.yaml")]
    words += [
        "--methods",
        "scratch",
        "kd",
        "uhkd",
        "--seeds",
        "2",
        "--overrides",
        "epochs=6",
        "checkpoint_minutes=0.001",
    ]
    return [sys.executable, "-m", "uhkd", "compare", *words, "--out", str(out)]


@contextlib.contextmanager
def started(words: list[str], stderr: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own, which is killed whole at the end."""
    with subprocess.Popen(words, stderr=stderr, start_new_session=True, text=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_a_killed_queue_goes_on_where_it_was(recipes: Path, tmp_path: Path):
    """Killed three times in the middle of a cell, then finished: every accuracy as in an undisturbed comparison."""
    out = tmp_path / "killed"
    finished: dict[str, int] = {}
    for round_ in range(3):
        said = tmp_path / f"said-{round_}.txt"
        with said.open("w") as file, started(command(recipes, out), file) as process:
            deadline = time.monotonic() + 300
            while True:  # until a cell beyond those of the last round is in the middle of its training
                assert time.monotonic() < deadline and process.poll() is None, said.read_text()[-2000:]
                results = list(out.glob("*/**/result.json"))
                begun = [p for p in out.glob("*/**/checkpoints/step-*") if not (p.parents[1] / "result.json").exists()]
                if len(results) > len(finished) and begun:
                    break
                time.sleep(0.02)
        now = {str(path): path.stat().st_mtime_ns for path in out.glob("*/**/result.json")}
        assert {k: now[k] for k in finished} == finished, f"a finished training was repeated in round {round_}"
        finished = now
    last = subprocess.run(command(recipes, out), capture_output=True, text=True, timeout=300, check=False)
    assert last.returncode == 0, last.stderr[-2000:]
    assert {k: Path(k).stat().st_mtime_ns for k in finished} == finished
    assert any("resuming at step" in path.read_text() for path in (out / "logs").rglob("*.txt"))
    whole = subprocess.run(
        command(recipes, tmp_path / "whole"), capture_output=True, text=True, timeout=300, check=False
    )
    assert whole.returncode == 0, whole.stderr[-2000:]
    tables = [json.loads((folder / "compare.json").read_text()) for folder in (out, tmp_path / "whole")]
    accuracies = [{(r["method"], r["seed"]): r["metrics"]["val_nll"] for r in table["runs"]} for table in tables]
    assert accuracies[0] == accuracies[1] and len(accuracies[0]) == 6


@pytest.mark.slow
def test_workers_end_with_their_parent(recipes: Path, tmp_path: Path):
    with started([*command(recipes, tmp_path / "out"), "--jobs", "2"], subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("out/*/*/result.json")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.kill()  # the parent alone, not its group
        process.communicate(timeout=300)  # the pipe ends with the last process that can write to it
    assert len(list(tmp_path.glob("out/*/**/result.json"))) < 7, "orphans have done all the work"


PLUGIN = '''
from uhkd.methods import DistillationLoss, Requirements
from uhkd.methods.base import teacher_shapes


class Nearest(DistillationLoss):
    """Mean squared difference of logits."""

    default_weights = {"logits": 1.0}
    main_term = "logits"

    def __init__(self, shapes, weights=None, *, scale: float = 1.0):
        super().__init__(weights)
        teacher_shapes(shapes, "nearest")
        self.scale = scale
        self.needs = Requirements(frozenset({"logits"}), frozenset({"logits"}))

    def forward(self, student, teacher, batch):
        return {"logits": self.scale * (student.logits.float() - teacher.logits.float()).square().mean()}
'''


@pytest.mark.slow
def test_a_method_of_another_package_runs_in_the_harness(recipes: Path, tmp_path: Path):
    """By its entry point alone: nothing in uhkd knows its name."""
    site = tmp_path / "site"
    (site / "nearest-1.0.dist-info").mkdir(parents=True)
    (site / "nearest.py").write_text(PLUGIN)
    (site / "nearest-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nearest\nVersion: 1.0\n")
    entry = "[uhkd.methods]\nnearest = nearest:Nearest\nbroken = nowhere:Nothing\nkd = nearest:Nearest\n"
    (site / "nearest-1.0.dist-info" / "entry_points.txt").write_text(entry)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = ["--pairs", str(recipes / "vit.yaml"), "--teachers", str(recipes / "teacher.yaml"), "--seeds", "1"]
    words += ["--methods", "scratch", "nearest", "uhkd+nearest", "--tune", "2", "--out", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "-m", "uhkd", "compare", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    summary = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [line.method for line in table_rows(summary)] == ["scratch", "nearest", "uhkd+nearest"]
    assert "nearest" in run.stdout and "nearest.logits" in summary["runs"][1]["metrics"]
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from uhkd.methods import parse_methods, method_class; print(method_class('kd')); parse_methods('broken')",
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "uhkd.methods.kd.KD" in said.stdout, "a plug-in cannot replace a method of ours"
    assert "method 'broken' of another package (nowhere:Nothing) cannot be imported" in said.stderr


# The table.


def summary_of(**accuracies: list[float]) -> dict[str, Any]:
    """One pair, methods with accuracies by seed."""
    runs = [
        {"pair": "p_1", "method": m, "seed": s, "accuracy": a, "seconds": 1800.0 + 360 * s, "extra_parameters": 1000}
        | {"lr": 0.1, "settings": {}, "weights": {}, "commit": "abc"}
        for m, found in accuracies.items()
        for s, a in enumerate(found)
    ]
    pairs = {"p_1": {"student": "s", "teacher": {"accuracy": 0.75, "name": "t"}}}
    return {
        "title": "T",
        "part": "val",
        "settings_tried": 1,
        "pairs": pairs,
        "runs": runs,
        "tuning": [],
        "missing": {},
        "warnings": [],
    }


def test_a_paired_difference_equals_students_t_by_hand():
    ours, theirs = {0: 0.52, 1: 0.55, 2: 0.50}, {0: 0.50, 1: 0.51, 2: 0.49, 3: 0.9}
    found = paired_difference(ours, theirs)
    gaps = [2.0, 4.0, 1.0]
    assert found is not None and found.seeds == 3
    assert found.mean == pytest.approx(statistics.fmean(gaps))
    assert found.half == pytest.approx(4.302653 * statistics.stdev(gaps) / 3**0.5, rel=1e-6)
    assert found.conclusion == "no difference shown"
    assert paired_difference({0: 0.5}, {1: 0.5}) is None
    single = paired_difference({0: 0.5}, {0: 0.4})
    assert single is not None and single.half is None and single.conclusion == "too few seeds to tell"
    clear = paired_difference({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.40, 1: 0.411, 2: 0.42})
    assert clear is not None and clear.conclusion == "a difference"


def test_lines_hold_mean_sd_time_and_gaps():
    scratch, kd, uhkd = table_rows(summary_of(scratch=[0.5, 0.6], kd=[0.6, 0.7], uhkd=[0.7, 0.9]))
    assert (uhkd.mean, uhkd.sd) == (pytest.approx(80.0), pytest.approx(statistics.stdev([70, 90])))
    assert uhkd.hours == pytest.approx((1800 + 2160) / 2 / 3600) and uhkd.per_hour == pytest.approx(80 / uhkd.hours)
    over_scratch, over_kd = uhkd.gaps["scratch"], uhkd.gaps["kd"]
    assert over_scratch is not None and over_scratch.mean == pytest.approx(25)
    assert over_kd is not None and over_kd.mean == pytest.approx(15)
    assert kd.gaps["kd"] is None and scratch.gaps["scratch"] is None


def test_the_same_numbers_in_every_format():
    summary = summary_of(scratch=[0.5, 0.6], uhkd=[0.7, 0.9])
    rows = pair_rows(summary, "p_1")
    assert rows[2][:3] == ["uhkd", "80.00 ± 14.14", "+25.00 ± 63.53"] and rows[2][3] == "-"
    assert markdown(rows).splitlines()[3].startswith("| uhkd | 80.00 ± 14.14 | +25.00 ± 63.53 | - |")
    assert r"uhkd & 80.00 $\pm$ 14.14 &" in latex(rows, "a_b 5 %") and r"\caption{a\_b 5 \%}" in latex(rows, "a_b 5 %")
    assert list(csv.reader(io.StringIO(csv_text(rows)))) == rows
    table = list(csv.DictReader(io.StringIO(csv_text(run_rows(summary)))))
    assert [float(row["accuracy"]) for row in table] == [0.5, 0.6, 0.7, 0.9]
    assert overview(summary) == [
        ["method", "p_1"],
        ["(teacher)", "75.00"],
        ["scratch", "55.00 ± 7.07"],
        ["uhkd", "80.00 ± 14.14"],
    ]
    assert list(verdicts(summary)) == ["p_1: uhkd minus scratch +25.00 points (2 seeds: too few seeds to tell)"]


def test_from_the_command_line_to_all_files(recipes: Path, capfd: pytest.CaptureFixture[str]):
    file = recipes / "compare.yaml"
    both = [str(recipes / "vit.yaml"), str(recipes / "mlp.yaml")]
    file.write_text(
        yaml.safe_dump({"pairs": both, "teachers": [str(recipes / "teacher.yaml")], "methods": ["scratch", "uhkd"]})
    )
    out = recipes.parent / "table"
    assert (
        main(["compare", "-c", str(file), "--seeds", "1", "--out", str(out), "--jobs", "2", "--title", "A title"]) == 0
    )
    said = capfd.readouterr()
    assert "validation accuracy" not in said.out  # of single trainings: they say it in their logs
    assert "validation accuracy" in (out / "logs" / "vit" / "uhkd" / "seed-0.txt").read_text()
    assert "A title" in said.out and "5 trainings (4 cells of the table, 0 settings tried), 0 done already" in said.err
    assert "[5/5]" in said.err and "uhkd minus scratch" in said.err
    summary = json.loads((out / "compare.json").read_text())
    for run in summary["runs"]:
        folder = out / run["pair"] / run["method"] / f"seed-{run['seed']}"
        result = json.loads((folder / "result.json").read_text())
        assert run["accuracy"] == result["metrics"]["val_accuracy"], "the last epoch, not the best"
        assert run["commit"] == result["environment"]["commit"]
    assert summary["pairs"]["vit"]["recipe"]["epochs"] == 1 and summary["environments"][0]["cpu_cores"] >= 1
    teacher = summary["pairs"]["mlp"]["teacher"]
    assert teacher["name"] == "uhkd/resnet10" and teacher["recipe"]["epochs"] == 1 and 0 <= teacher["accuracy"] <= 1
    assert load_yaml(out / "compare.yaml")["seeds"] == 1
    for name in ("compare.md", "compare.tex", "compare.csv", "runs.csv"):
        assert "uhkd" in (out / name).read_text()
    with Image.open(out / "compare.png") as picture:
        assert min(picture.size) > 150
    (out / "report.html").write_text("mine")  # nothing is lost over a page that cannot be written
    (out / "compare.md").unlink()
    assert main(["compare", "-c", str(file), "--seeds", "1", "--out", str(out)]) == 0 and (out / "compare.md").is_file()
    said = capfd.readouterr().err
    assert "warning: report.html was not written: " in said and "is not a report of uhkd" in said
    assert main(["compare", "-c", str(file), "--methods", "kd", "--seeds", "x", "--out", str(out)]) == 2
    assert "seeds: expected a whole number, found 'x'" in capfd.readouterr().err
