"""What a step costs: interleaved rounds, paired ratios, FLOPs that add up, a step equal to training's, and nothing trained."""

import gc
import json
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from uhkd.commands.compare import compare
from uhkd.commands.comparing import cost
from uhkd.commands.comparing.cost import geometric_mean, time_steps
from uhkd.commands.comparing.cost_tables import cost_rows, document
from uhkd.commands.comparing.memory import peak_memory
from uhkd.commands.comparing.step_benchmark import StepFactory
from uhkd.commands.train import distill, finetune
from uhkd.evaluation.metrics import count_flops
from uhkd.recipe import RecipeError

SHORT: dict[str, Any] = {
    "data": "digits",
    "epochs": 1,
    "batch_size": 32,
    "train_limit": 128,
    "precision": "fp32",
    "device": "cpu",
}
STUDENT: dict[str, Any] = SHORT | {
    "student": "uhkd/vit_micro",
    "student_options": {"embed_dim": 16, "num_heads": 2},
    "image_size": 8,
    "allow_weak_teacher": True,
}
TEACHER: dict[str, Any] = SHORT | {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 8, 16, 16]},
    "image_size": 16,
    "optimizer": "sgd",
}
WHERE = "nowhere/teacher"
ROUNDS = 3


def words(method: str, **others: Any) -> dict[str, Any]:
    return STUDENT | {"method": method, "teacher": WHERE, "seed": 0} | others


def recipes(folder: Path) -> dict[str, Any]:
    for name, said in {"teacher": TEACHER, "vit": STUDENT}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(said))
    return {"pairs": [str(folder / "vit.yaml")], "teachers": [str(folder / "teacher.yaml")], "out": str(folder / "out")}


@pytest.fixture(scope="module")
def shop() -> StepFactory:
    return StepFactory({WHERE: TEACHER}, batches=2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """A comparison's costs without the processes that measure memory: scratch has no peak, another method is 1 MiB over KD."""
    folder = tmp_path_factory.mktemp("cost")
    peaks = {"scratch": None, "kd": 100 * 2**20, "uhkd": 101 * 2**20}

    def peak(words: dict[str, Any], _: Any) -> tuple[int | None, str]:
        found = peaks[words["method"]]
        return found, "" if found else "not here"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "peak_memory", peak)
        broken = {"method": "uhkd", "student_levels": ["no_such_layer"]}
        asked = {
            "methods": ["uhkd", "broken"],
            "variants": {"broken": broken},
            "cost": True,
            "rounds": ROUNDS,
            "jobs": 2,
        }
        yield compare(**recipes(folder) | asked), folder / "out"


def test_ratio_is_the_geometric_mean_with_students_interval() -> None:
    found = geometric_mean([2.0, 4.0, 8.0], [1.0, 1.0, 1.0])
    # logarithms 1, 2, 3 times ln 2: mean 2, standard deviation 1; t(0.975, 2 degrees of freedom) = 4.302653
    half = 4.302652729911275 / math.sqrt(3)
    assert found.mean == pytest.approx(4.0)
    assert (found.low, found.high) == pytest.approx((2 ** (2 - half), 2 ** (2 + half)))
    same = geometric_mean([0.1, 0.7], [0.1, 0.7])
    assert (same.mean, same.low, same.high) == (1.0, 1.0, 1.0)


def test_ratios_are_paired_within_rounds() -> None:
    """A machine that slows down for all changes nothing."""
    found = geometric_mean([3.0, 30.0, 300.0], [1.0, 10.0, 100.0])
    assert found.mean == pytest.approx(3.0) and found.high - found.low == pytest.approx(0.0, abs=1e-9)


def test_every_round_takes_a_step_of_each_in_a_balanced_order() -> None:
    now, taken = 0.0, []

    def step(label: str, seconds: float) -> Callable[[int], None]:
        def take(number: int) -> None:
            nonlocal now
            assert not gc.isenabled()
            now += seconds
            taken.append((number, label))

        return take

    steps = {label: step(label, seconds) for label, seconds in (("a", 1.0), ("b", 2.0), ("c", 5.0))}
    seconds = time_steps(steps, 8, clock=lambda: now)
    assert gc.isenabled()
    assert seconds == {"a": [1.0] * 8, "b": [2.0] * 8, "c": [5.0] * 8}
    orders = [[label for number, label in taken if number == r] for r in range(8)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders) and len(set(map(tuple, orders))) > 2
    for first, second in ("ab", "ac", "bc"):
        assert sum(order.index(first) < order.index(second) for order in orders) == 4


def test_what_is_measured_of_each_method(measured: tuple[dict[str, Any], Path]) -> None:
    costs, _ = measured
    (pair,) = costs["pairs"].values()
    assert list(pair["methods"]) == ["scratch", "kd", "uhkd"]  # the baselines come along, and first
    for own in pair["methods"].values():
        assert len(own["seconds"]) == ROUNDS and min(own["seconds"]) > 0
        assert own["median_seconds"] == statistics.median(own["seconds"])
        assert own["batch_size"] == 32 and own["image_size"] == [8, 8] and own["recipe"]["lr"] == 0.001
        for base in ("scratch", "kd"):
            time = own[f"to_{base}"]["time"]
            assert 0 < time["low"] <= time["mean"] <= time["high"]
    kd, uhkd, scratch = (pair["methods"][name] for name in ("kd", "uhkd", "scratch"))
    assert kd["to_kd"] == {
        "time": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "flops": 1.0,
        "memory": 1.0,
        "extra_mib": 0.0,
    }
    assert uhkd["extra_parameters"] > 0 == kd["extra_parameters"] == scratch["extra_parameters"]
    assert scratch["gflop_per_image"] < kd["gflop_per_image"] < uhkd["gflop_per_image"]
    assert uhkd["to_kd"]["memory"] == pytest.approx(1.01) and uhkd["to_kd"]["extra_mib"] == pytest.approx(1.0)
    assert scratch["to_kd"]["memory"] is None is uhkd["to_scratch"]["memory"]


def test_a_method_that_cannot_be_built_is_listed_with_its_reason(measured: tuple[dict[str, Any], Path]) -> None:
    costs, out = measured
    (pair,) = costs["pairs"].values()
    assert list(pair["missing"]) == ["broken"] and "no_such_layer" in pair["missing"]["broken"]
    assert cost_rows(pair)[-1] == ["broken", *["-"] * 9]
    assert "- broken cannot be built: " in (out / "cost.md").read_text()


def test_only_costs_are_written(measured: tuple[dict[str, Any], Path]) -> None:
    costs, out = measured
    assert sorted(path.name for path in out.iterdir()) == ["cost.json", "cost.md"]
    assert json.loads((out / "cost.json").read_text()) == costs
    assert (out / "cost.md").read_text() == document(costs)
    assert str(out.parent) not in json.dumps(costs["pairs"])


def test_table_says_what_it_rests_on(measured: tuple[dict[str, Any], Path]) -> None:
    costs, _ = measured
    text = document(costs)
    for said in (
        f"{ROUNDS} rounds",
        "batch 32",
        "images 8x8",
        "fp32 on cpu",
        "CPU threads",
        "peak memory of scratch: not here",
    ):
        assert said in text, said
    (pair,) = costs["pairs"].values()
    rows = cost_rows(pair)
    assert {len(row) for row in rows} == {10} and [row[0] for row in rows[1:]] == ["scratch", "kd", "uhkd", "broken"]


def test_flops_of_kd_are_those_of_scratch_and_the_teachers_forward_pass(shop: StepFactory) -> None:
    kd, scratch = shop.step(words("kd")), shop.step(words("scratch"))
    assert kd.setup.teacher is not None
    with FlopCounterMode(display=False) as counter:
        kd.setup.teacher.outputs(kd.batches[0], frozenset({"logits"}))
    assert counter.get_total_flops() > 0
    assert count_flops(lambda: kd(0)) == count_flops(lambda: scratch(0)) + counter.get_total_flops()


def test_methods_share_images_and_teacher_and_learn_nothing(shop: StepFactory) -> None:
    kd, uhkd = shop.step(words("kd")), shop.step(words("uhkd"))
    assert kd.batches is uhkd.batches and len(kd.batches) == 2
    assert (
        kd.setup.teacher is not None
        and uhkd.setup.teacher is not None
        and kd.setup.teacher.network is uhkd.setup.teacher.network
    )
    before = {name: value.clone() for name, value in uhkd.setup.learner.named_parameters()}
    for number in range(3):
        uhkd(number)
    assert all(torch.equal(value, before[name]) for name, value in uhkd.setup.learner.named_parameters())
    assert all(value.grad is None for value in uhkd.setup.learner.parameters())


def test_a_step_is_the_step_of_training(tmp_path: Path) -> None:
    """At training's learning rate it leaves the same weights, to the bit: what is timed is what training does."""
    once: dict[str, Any] = {"train_limit": 32, "schedule": "constant"}
    finetune(**TEACHER | once, out=str(tmp_path / "teacher"))
    own = words("kd", **once, teacher=str(tmp_path / "teacher"), grad_accum_steps=2, clip_grad=0.1)
    trained = distill(**own, out=str(tmp_path / "kd")).student
    step = StepFactory({}, batches=1).step(own)
    for group in step.take.optimizer.param_groups:
        group["lr"] = step.setup.recipe.learning_rate
    step(0)
    found = step.setup.learner.student.module.state_dict()
    for name, value in trained.module.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_a_baseline_that_cannot_be_built_ends_the_measurement(tmp_path: Path) -> None:
    asked = recipes(tmp_path) | {"overrides": {"teacher_levels": ["no_such_layer"]}, "cost": True}
    with pytest.raises(ValueError, match=r"vit by kd, a baseline of this comparison, cannot be built: .*no_such_layer"):
        compare(**asked)
    assert not (tmp_path / "out").exists()


def test_a_bug_in_a_method_ends_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(StepFactory, "step", bug)
    with pytest.raises(ValueError, match="a bug") as caught:
        compare(**recipes(tmp_path), methods=["uhkd"], cost=True)
    assert type(caught.value) is ValueError


def test_one_round_has_no_interval_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="rounds"):
        compare(**recipes(tmp_path) | {"cost": True, "rounds": 1})


def test_too_little_memory_comes_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cost, "time_steps", full)
    with pytest.raises(ValueError, match=r"do not fit into memory together; measure fewer"):
        compare(**recipes(tmp_path) | {"methods": ["kd"], "cost": True})


@pytest.mark.slow
def test_peak_memory_grows_with_the_batch_and_says_why_it_is_missing() -> None:
    small, why = peak_memory(words("kd"), {WHERE: TEACHER})
    if small is None:
        assert why
        return
    again, _ = peak_memory(words("kd"), {WHERE: TEACHER})
    large, _ = peak_memory(words("kd", train_limit=1024, batch_size=1024), {WHERE: TEACHER})
    assert again is not None and abs(again - small) < 8 * 2**20
    assert large is not None and large > small + 8 * 2**20
    none, why = peak_memory(words("kd", student="uhkd/no_such_network"), {WHERE: TEACHER})
    assert none is None and "code 1" in why and "no_such_network" in why
