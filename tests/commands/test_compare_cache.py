"""Comparisons by stored teacher signals: who may use them, that they change nothing but roundings, and what happens when not."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import uhkd
from uhkd.cache import TeacherCache
from uhkd.commands.compare import compare
from uhkd.commands.comparing import shared_cache
from uhkd.commands.comparing.plan import TUNING_SEED, Plan, Task, make_plan
from uhkd.commands.comparing.report import document
from uhkd.commands.comparing.summary import gather
from uhkd.commands.comparing.task_store import TaskStore, work, workers_of
from uhkd.recipe import CompareRecipe, build

SHORT = {"data": "digits", "epochs": 2, "batch_size": 64, "train_limit": 128, "precision": "fp32"}
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
R2 = {"r2": {"method": "uhkd", "settings": {"radius": 2}}}


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
        "methods": ["kd", "uhkd"],
        "seeds": 1,
        "out": str(recipes.parent / "out"),
    }
    return build(CompareRecipe, given | words)


def planned(recipe: CompareRecipe) -> tuple[Plan, TaskStore]:
    plan, board = make_plan(recipe, Path(recipe.out)), TaskStore(Path(recipe.out))
    board.begin(plan)
    return plan, board


def done(recipe: CompareRecipe) -> tuple[Plan, TaskStore]:
    """The plan and board of a comparison, worked through in this process."""
    plan, board = planned(recipe)
    work(plan.work, board.path)
    return plan, board


def with_cache(recipes: Path) -> tuple[TaskStore, dict[str, Task], Task]:
    """A comparison of which nothing is done but the teacher and its cache: board, tasks by name, the cache."""
    plan, board = planned(asked(recipes))
    (cache,) = plan.caches
    by_name = {task.name: task for task in plan.tasks}
    board.execute(by_name["teachers/teacher"])
    board.execute(cache, [by_name[name] for name in cache.serves])
    return board, by_name, cache


def by_cache(plan: Plan, board: TaskStore) -> dict[str, bool]:
    """Of every finished student: whether it learned from stored signals."""
    return {name: "teacher_cache" in board.run(name).read_result() for name in (*plan.trials, *plan.cells)}


def log(board: TaskStore, name: str) -> str:
    return (board.path / "logs" / f"{name}.txt").read_text()


# The plan.


def test_who_reads_only_what_can_be_stored_shares_a_cache(recipes: Path):
    """Six methods of the same views by one cache; maps, areas, another spectrum and no teacher without."""
    methods = ["scratch", "kd", "dist", "rsd", "crd", "ofa", "uhkd", "uhkd+kd", "fitnet", "spectralkd", "twin_a", "r2"]
    both = [str(recipes / "vit.yaml"), str(recipes / "mlp.yaml")]
    variants = R2 | {"alone": {"method": "kd", "mixup": 0.2}, "long": {"method": "kd", "epochs": 3}}
    recipe = asked(recipes, pairs=both, methods=[*methods, "alone", "long"], variants=variants, seeds=2)
    plan = make_plan(recipe, Path(recipe.out))
    ours = {"kd", "dist", "rsd", "crd", "ofa", "uhkd", "uhkd+kd"}
    main = [cache for cache in plan.caches if len(cache.serves) > 2]
    assert [cache.options["seed"] for cache in main] == [0, 1], "a cache of a seed holds that seed's views"
    for cache in main:
        assert {(plan.cells[name].method, plan.cells[name].seed) for name in cache.serves} == {
            (method, cache.options["seed"]) for method in ours
        }
        assert len(cache.serves) == 2 * len(ours) and cache.after == ("teachers/teacher",)
        words = cache.options
        assert (words["views"], words["radius"], words["channels"]) == (2, 1, 64)
        assert words["keep"] == ["logits", "embedding", "spectra"]
    assert {plan.cells[name].method for cache in plan.caches for name in cache.serves} == ours | {"alone", "long"}, (
        "two students of other views share a cache of their own"
    )
    assert sorted(cache.options["views"] for cache in plan.caches) == [2, 2, 2, 2, 3, 3]
    assert {plan.cells[name].method: why for name, why in plan.live.items()} == {
        "scratch": "need no teacher",
        "fitnet": "read the teacher's maps",
        "spectralkd": "read the teacher's maps",
        "twin_a": "need targets that a cache cannot store",
        "r2": "need other spectra",
    }
    served = {name for cache in plan.caches for name in cache.serves}
    assert {task.name for task in plan.tasks if task.cache} == served
    assert all("teacher_cache" not in task.options and "teacher" in task.options for task in plan.tasks[1:])
    order = [task.name for task in plan.work]
    assert all(order.index(cache.name) < min(map(order.index, cache.serves)) for cache in plan.caches)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({"methods": ["scratch", "uhkd", "fitnet"]}, 0),
        ({"cache": "never"}, 0),
        ({"overrides": {"teacher_cache": "elsewhere"}}, 0),
        ({"methods": ["kd", "twin_a", "rkd"], "changes": {"flip": False}}, 1),
        ({"variants": R2, "methods": ["r2", "dist"]}, 1),
        ({"tune": 4}, 2),
    ],
)
def test_a_cache_is_made_for_two_trainings_or_more(recipes: Path, words: dict[str, Any], count: int):
    plan = make_plan(asked(recipes, **words), recipes.parent / "out")
    assert len(plan.caches) == count
    names = {cache.name for cache in plan.caches}
    assert len(names) == count and all(name.startswith("caches/teacher/seed-") for name in names)
    if "variants" in words:
        assert plan.caches[0].options["radius"] == 2 and plan.caches[0].options["keep"] == ["logits", "spectra"]
    if "tune" in words:
        trials = plan.caches[0]
        assert trials.options["seed"] == TUNING_SEED and set(trials.serves) < {*plan.trials}
        assert min(t.options["settings"]["uhkd.radius"] for t in plan.tasks if t.name in plan.live) > 1


def test_the_plan_draws_no_random_numbers(recipes: Path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    make_plan(asked(recipes, methods=["crd", "rsd+kd", "at"]), recipes.parent / "out")
    assert torch.equal(before, torch.random.get_rng_state())


# The work.


@pytest.mark.slow
def test_trainings_by_a_cache_are_those_of_a_live_teacher_up_to_roundings(recipes: Path):
    words: dict[str, Any] = {"methods": ["kd", "rsd", "twin_a", "uhkd"], "seeds": 2}
    # the lead counts right answers: where a rounding changes one of these few images, weights jump
    # AdamW makes a whole step of the rounding of a gradient near 0; SGD does not
    words |= {"overrides": {"balance": "constant", "optimizer": "sgd", "lr": 0.05}}
    plan, board = done(asked(recipes, **words))
    other, live = done(asked(recipes, **words, cache="never", out=str(recipes.parent / "live")))
    assert [cache.options["seed"] for cache in plan.caches] == [0, 1] and not other.caches
    found = by_cache(plan, board)
    assert not any(by_cache(other, live).values())
    for name, cell in plan.cells.items():
        assert found[name] == (cell.method in ("kd", "rsd", "uhkd"))
        ours, theirs = board.run(name), live.run(name)
        a, b = load_file(ours.weights), load_file(theirs.weights)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=2e-2, atol=5e-4)
        for row, other_row in zip(ours.read_metrics(), theirs.read_metrics(), strict=True):
            assert row["loss"] == pytest.approx(other_row["loss"], rel=3e-4)
        result, its = ours.read_result(), theirs.read_result()
        assert result.get("teacher_metrics") == its.get("teacher_metrics")
        assert result.get("teacher_fingerprint") == its.get("teacher_fingerprint")
        assert result["metrics"]["val_nll"] == pytest.approx(its["metrics"]["val_nll"], rel=1e-2)
        if found[name]:
            assert result["teacher_cache"]["seed"] == cell.seed, "each seed by its own cache"
    summary = gather(plan, board, title="t", part="val", tune=0)
    assert not summary["warnings"] and len(summary["runs"]) == 8
    assert [cache["meant_for"] for cache in summary["caches"]] == [3, 3]
    assert all(cache["bytes"] > 0 and cache["seconds"] > 0 for cache in summary["caches"])
    assert "6 of 8 runs used stored outputs" in document(summary, {})
    assert "stored signals" not in document(gather(other, live, title="t", part="val", tune=0), {})


@pytest.mark.slow
def test_the_command_tells_of_caches_and_its_table_outlives_them(recipes: Path, capsys: pytest.CaptureFixture[str]):
    recipe = asked(recipes, methods=["scratch", "kd", "uhkd", "fitnet"], seeds=2)
    first = compare(recipe)
    said = capsys.readouterr().err
    told = (
        "2 caches serve 4 of 8 students (view seeds 0, 1); of the others 2 need no teacher, 2 read the teacher's maps"
    )
    assert told in said and "9 trainings (8 cells of the table" in said and "[9/9]" in said
    assert said.count("the teacher outputs are stored") == 2
    shutil.rmtree(Path(recipe.out) / "caches")
    again = compare(recipe)
    assert again == first and not (Path(recipe.out) / "caches").exists()
    grown = compare(recipe.model_copy(update={"methods": (*recipe.methods, "dist", "dkd")}))
    assert len(grown["runs"]) == 12 and sum(run["teacher_cache"] is not None for run in grown["runs"]) == 8


@pytest.mark.slow
def test_a_comparison_begun_without_caches_goes_on(recipes: Path):
    """Also a training begun with its teacher goes on with it: a checkpoint of the one is none of the other."""
    plan, board = planned(asked(recipes, cache="never", methods=["kd"], seeds=2))
    work(plan.work, board.path)
    before = board.run("vit/kd/seed-1").result.stat().st_mtime_ns
    run = board.run("vit/kd/seed-0")
    run.result.unlink()  # as if killed right at its end
    assert run.started()
    plan, board = done(asked(recipes, methods=["kd", "dist", "rsd"], seeds=2))
    assert by_cache(plan, board) == {
        f"vit/{method}/seed-{seed}": method != "kd" for method in ("kd", "dist", "rsd") for seed in (0, 1)
    }
    assert board.run("vit/kd/seed-1").result.stat().st_mtime_ns == before


def test_without_its_cache_a_training_runs_with_the_teacher(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(shared_cache, "cache", refuse)
    plan, board = done(asked(recipes))
    (cache,) = plan.caches
    assert board.failure(cache.name) == "RuntimeError: the disk is gone"
    assert {board.state(task) for task in plan.tasks} == {"done"} and not any(by_cache(plan, board).values())
    told = "running with the live teacher instead of its cache: RuntimeError: the disk is gone"
    assert told in log(board, "vit/kd/seed-0") and told in log(board, "vit/uhkd/seed-0")


@pytest.mark.slow
def test_caches_take_no_more_than_half_of_the_free_disk_together(recipes: Path, monkeypatch: pytest.MonkeyPatch):
    plan, board = planned(asked(recipes, seeds=2))
    sizes: list[int] = []
    reserve = shared_cache._reserve

    def small(out: Path, name: str, size: int) -> None:
        sizes.append(size)
        usage = shutil.disk_usage(out)
        written = sum(file.stat().st_size for file in (out / "caches").rglob("*.bin"))
        with monkeypatch.context() as patch:  # room for one and a half of them
            patch.setattr(shared_cache.shutil, "disk_usage", lambda _: usage._replace(free=3 * size - written))
            reserve(out, name, size)

    monkeypatch.setattr(shared_cache, "_reserve", small)
    work(plan.work, board.path)
    first, second = (cache.name for cache in plan.caches)
    assert len(sizes) == 2 and board.failure(first) is None
    assert "GB of other caches are more than half of the free disk" in str(board.failure(second))
    assert by_cache(plan, board) == {f"vit/{m}/seed-{s}": s == 0 for m in ("kd", "uhkd") for s in (0, 1)}


@pytest.mark.slow
def test_views_of_another_size_or_crop_are_not_taken_for_the_live_ones(recipes: Path):
    """A student that wants larger images than its teacher would see others with it; the cache is not even made."""
    teacher = TEACHER | {"image_size": 8, "data": "digits"}
    (recipes / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    folder = recipes / "images"
    changes = {"train_limit": None, "batch_size": 8, "crop": "none"}
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
        for i in range(16):
            picture = Image.new("RGB", (20 + i % 3, 20), (i * 10, 100 if label == "a" else 0, 0))
            picture.save(folder / "train" / label / f"{i}.png")
    recipe = asked(
        recipes,
        data=str(folder),
        overrides=changes | {"image_size": 16},
        teacher_overrides=changes,
        methods=["kd", "dist"],
    )
    plan, board = done(recipe)
    (cache,) = plan.caches
    assert "only 0 of 2 trainings could use it" in str(board.failure(cache.name))
    assert "its views differ: size (16, 16), stored (8, 8)" in str(board.failure(cache.name))
    assert not list((board.path / "caches").rglob("*.bin")) and not any(by_cache(plan, board).values())
    same = recipe.model_copy(update={"overrides": recipe.overrides | {"image_size": 8}, "out": str(board.path) + "-8"})
    assert all(by_cache(*done(same)).values())


@pytest.mark.slow
def test_a_tuned_setting_of_other_spectra_runs_with_the_teacher(recipes: Path):
    recipe = asked(recipes, methods=["uhkd", "kd", "dist"], tune=4, overrides={"epochs": 1})
    plan, board = planned(recipe)
    tried = next(task for task in plan.tasks if task.name == "vit/uhkd/seed-0").choices
    radii = {name: change.get("settings", {}).get("uhkd.radius", 1) for name, change in tried.items()}
    second, radius = max(radii.items(), key=lambda item: item[1])
    assert radius > 1
    chosen = board.path / "chosen" / "vit" / "uhkd.json"
    chosen.parent.mkdir(parents=True)
    chosen.write_text(json.dumps(second))
    work(plan.work, board.path)
    found = by_cache(plan, board)
    assert found["vit/kd/seed-0"] and found["vit/dist/seed-0"] and not found["vit/uhkd/seed-0"]
    assert "uhkd needs other spectra: radius 3, stored " in log(board, "vit/uhkd/seed-0")
    assert found["tune/vit/uhkd/setting-0"] and not found[second]
    assert board.run("vit/uhkd/seed-0").read_recipe()["settings"] == {"uhkd.radius": radius}


@pytest.mark.slow
def test_a_damaged_record_fails_one_training_and_is_mended_by_the_same_command(recipes: Path):
    board, by_name, cache = with_cache(recipes)
    assert board.failure(cache.name) is None
    shard = next((board.path / cache.name).rglob("*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    board.execute(by_name["vit/kd/seed-0"])
    assert "the checksum of record" in str(board.failure("vit/kd/seed-0"))
    plan, board = done(asked(recipes))
    assert all(by_cache(plan, board).values()) and "is written again" in log(board, cache.name)


@pytest.mark.slow
def test_a_training_whose_cache_is_gone_begins_anew(recipes: Path):
    plan, board = done(asked(recipes))
    (cache,) = plan.caches
    board.run("vit/kd/seed-0").result.unlink()
    shutil.rmtree(board.path / cache.name)
    plan, board = planned(asked(recipes, cache="never"))
    work(plan.work, board.path)
    assert "is gone: it starts again from the first epoch" in log(board, "vit/kd/seed-0")
    assert by_cache(plan, board) == {"vit/kd/seed-0": False, "vit/uhkd/seed-0": True}


@pytest.mark.slow
def test_a_bug_in_the_comparison_with_a_cache_is_no_reason_for_the_live_teacher(
    recipes: Path, monkeypatch: pytest.MonkeyPatch
):
    board, by_name, cache = with_cache(recipes)

    def bug(*_: Any, **__: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(shared_cache, "choose_augmentation", bug)
    task = by_name[cache.serves[0]]
    with pytest.raises(ValueError, match="a bug"):
        shared_cache.resolve_cache(task.options, board.run(task.name), board.path / cache.name, None)


def test_a_damaged_cache_makes_trainings_run_with_their_teacher(recipes: Path):
    board, _, cache = with_cache(recipes)
    file = board.path / cache.name / "cache.json"
    file.write_text(file.read_text().replace('"views": 2', '"views": 1'))
    plan, board = done(asked(recipes))
    assert {board.state(task) for task in plan.tasks} == {"done"} and not any(by_cache(plan, board).values())
    assert "cache.json is damaged" in log(board, "vit/kd/seed-0")


@pytest.mark.slow
def test_a_comparison_that_was_moved_goes_on_by_its_caches(recipes: Path):
    words = {"teachers": [str(recipes.parent / "teacher")]}
    uhkd.finetune(**TEACHER, out=words["teachers"][0])
    plan, board = done(asked(recipes, **words))
    run = board.run("vit/kd/seed-0")
    run.result.unlink()
    (run.path / "mark").touch()
    board.path.rename(recipes.parent / "moved")
    plan, board = planned(asked(recipes, **words, out=str(recipes.parent / "moved")))
    work(plan.work, board.path)
    assert all(by_cache(plan, board).values()) and (board.run("vit/kd/seed-0").path / "mark").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_killed_while_storing_it_goes_on(recipes: Path):
    """Killed between two shards: the stored ones stay, the others are made, and every training uses them."""
    plan, board = planned(asked(recipes))
    (cache,) = plan.caches
    teacher = next(task for task in plan.tasks if "model" in task.options)
    board.execute(teacher)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom uhkd.training import cache_shards\n"
        "write = cache_shards.write_atomically\n"
        "def once(path, content):\n"
        "    write(path, content)\n"
        "    path.suffix == '.bin' and os.kill(os.getpid(), 9)\n"
        "cache_shards.write_atomically = once\n"
        "from uhkd.commands.comparing.task_store import main\nmain()\n"
    )
    with workers_of(plan, board.path, 1):  # for its order; the process at work is ours
        (order,) = (board.path / "plan").glob(".order-*.json")
        with subprocess.Popen([sys.executable, "-c", code, str(order)], stdin=subprocess.PIPE) as process:
            assert process.wait(300) == -signal.SIGKILL
    shards = list((board.path / cache.name).rglob("*.bin"))
    assert len(shards) == 1 and board.state(cache) == "begun"
    before = shards[0].stat().st_mtime_ns
    time.sleep(0.01)
    plan, board = done(asked(recipes))
    assert shards[0].stat().st_mtime_ns == before and all(by_cache(plan, board).values())
    assert TeacherCache(board.path / cache.name).shards.missing(2) == []


def test_orders_of_processes_that_were_killed_are_cleared_away(tmp_path: Path):
    """Those of the living, and of other machines, stay."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, plan = platform.node(), tmp_path / "plan"
    plan.mkdir()
    names = {who: f".order-{who}.json" for who in (f"{here}-{gone.pid}", f"{here}-{os.getppid()}", f"far-{gone.pid}")}
    for name in names.values():
        (plan / name).touch()
    with workers_of(Plan((), {}, {}, {}), tmp_path, 1):
        pass
    assert {p.name for p in plan.iterdir()} == set(list(names.values())[1:])
