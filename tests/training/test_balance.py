"""How much the teacher's terms count: each balance against its literal form, exact resuming, switched-off terms, bad input."""

import copy
import os
import signal
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import uhkd
from references import balance as literal
from references.runs import assert_equal_runs
from references.steps import CLASSES, SETTINGS, assemble
from uhkd.errors import UhkdError
from uhkd.methods import DistillationLoss, default_balance, method_class, method_names
from uhkd.recipe import DistillRecipe, RecipeError, balance_settings, build
from uhkd.runs import RunFolder
from uhkd.training import Balance, Lead, StudentWithLosses, Teacher, TeacherEnsemble, fit, make_balance, weighted_sum
from uhkd.training import step as stepping
from uhkd.training.balance import Cap, Famo, group_of
from uhkd.training.setup import Setup
from uhkd.training.signals import TrainingInterrupted

TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
}
STUDENT = {"embed_dim": 24, "depth": 3, "num_heads": 2, "drop_path_rate": 0.3}
STEPS = [5, 10, 15]


@pytest.fixture(scope="module", autouse=True)
def _keep_checkpoints_and_draw_nothing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        patched.setattr(fit, "draw", lambda folder: [])
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("balance") / "teacher"
    words = TINY | {"train_limit": 600, "epochs": 6, "optimizer": "sgd", "lr": 0.1, "crop": "none", "seed": 3}
    uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 24]}, out=out, **words)
    return out


def words(teacher: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A distillation of 3 epochs of 5 steps."""
    return TINY | {
        "teacher": str(teacher),
        "student": "uhkd/vit_micro",
        "student_options": STUDENT,
        "method": "uhkd",
        "mixup": 0.4,
        "epochs": 3,
        "allow_weak_teacher": True,
        "checkpoint_minutes": 1e-9,
        "out": str(out),
        **changes,
    }


@cache
def distillers(method: str = "uhkd") -> nn.ModuleDict:
    return assemble(method, {})[0].distillers


def lead(bounds: Sequence[float | None] = (), **settings: Any) -> Lead:
    made = make_balance("lead", settings, distillers(), has_accuracy=[True], bounds=bounds)
    assert isinstance(made, Lead)
    return made.train()


def logits(generator: torch.Generator, images: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(images, CLASSES, generator=generator) for _ in range(3))


# the formulas


@pytest.mark.parametrize("measure", ["accuracy", "odds"])
@pytest.mark.parametrize("labels", [True, False])
@given(
    seed=st.integers(0, 2**20),
    gate=st.floats(0.05, 1),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    bound=st.sampled_from([1.0, 0.5, 0.1]),
    validated=st.sampled_from([0.9, 0.3, 0.0]),
    margin=st.sampled_from([1.0, 1.1, 2.0]),
    held_out=st.sampled_from([None, 1, 30, 5000]),
)
def test_lead_is_the_literal_one(
    measure: str,
    labels: bool,
    seed: int,
    gate: float,
    power: float,
    bound: float,
    validated: float,
    margin: float,
    held_out: int | None,
):
    """Of mixed targets their largest share counts; without labels the teacher's choice is right."""
    gates = {"features_gate": gate, "features_power": power, "logits_power": 0.0}
    made = lead([bound], margin=margin, measure=measure, window=40, **gates)
    slow = literal.Lead(40, measure, bound)
    generator = torch.Generator().manual_seed(seed)
    assert made.group_factors() == {1: 1.0, 2: 1.0}
    for images in (7, 20, 3):
        student, theirs, drawn = logits(generator, images)
        student = student + theirs  # alike more often than by chance
        target = drawn.softmax(1) if labels else None
        made.observe(student, [theirs], target)
        made.update(images)
        slow.step(student.tolist(), theirs.tolist(), None if target is None else target.tolist())
        assert made.lead().item() == pytest.approx(slow.lead(), abs=2e-6)
        assert made.group_factors() == pytest.approx({1: slow.factor(gate, power), 2: 1.0}, abs=1e-4)
        if images == 7:
            made.validated(validated, held_out)
            slow.validate(validated, margin, held_out)


@pytest.mark.parametrize(
    ("bounds", "settings"), [([0.5], {"bound": "held-out"}), ([0.5], {"bound": "none"}), ([], {}), ([None], {})]
)
def test_the_bound_of_the_student_needs_that_of_the_teacher(bounds: list[float | None], settings: dict[str, str]):
    made = lead(bounds, **settings)
    _, theirs, drawn = logits(torch.Generator().manual_seed(0), 50)
    made.observe(drawn, [theirs], drawn)  # the student is right throughout
    made.update(50)
    made.validated(0.0)
    made.observe(drawn, [theirs], drawn)
    made.update(50)
    assert made.lead().item() == 0


def test_a_student_is_credited_with_its_held_out_accuracy_at_most(teacher: Path, tmp_path: Path):
    """Also after an interruption, from the validations in the checkpoint."""
    settings = {"window": 60, "features_gate": 1.0, "features_power": 1.0}
    changes: dict[str, Any] = {"balance": "lead", "balance_settings": settings}
    real, seen = Lead.validated, []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Lead, "validated", lambda self, accuracy, images: real(self, 0.2 * accuracy, seen.append(images) or images)
        )  # as if it had memorised its views
        whole = uhkd.distill(**words(teacher, tmp_path / "whole", **changes))
        asked = words(teacher, tmp_path / "cut", **changes)
        interrupted(tmp_path / "cut", lambda: uhkd.distill(**asked))
        assert_equal_runs(whole.run, uhkd.distill(**asked, resume=True).run, STEPS)
    assert set(seen) == {
        sum(map(sum, uhkd.evaluate(run=str(tmp_path / "whole"), split="val", device="cpu")["confusion"]))
    }
    changes["balance_settings"] = settings | {"bound": "held-out"}
    other = uhkd.distill(**words(teacher, tmp_path / "other", **changes))
    rows, others = whole.run.read_metrics(), other.run.read_metrics()
    assert rows[0]["factor_features"] == others[0]["factor_features"]  # before the first validation
    assert rows[-1]["factor_features"] > others[-1]["factor_features"] + 0.1


def test_a_teacher_is_credited_with_its_held_out_accuracy_at_most(teacher: Path, tmp_path: Path):
    """Also by stored outputs; `bound=none` takes its accuracy on the training views as it is."""
    found = {}

    def caught(job: Setup) -> None:
        assert isinstance(job.learner.balance, Lead)
        found[job.recipe.out] = job.learner.balance.bounds.flatten().tolist()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "Trainer", caught)
        for bound in ("held-out", "both", "none"):
            asked = words(teacher, tmp_path / bound, balance="lead", balance_settings={"bound": bound})
            with pytest.raises(KeyboardInterrupt):
                uhkd.distill(**asked)
    accuracy = RunFolder(teacher).read_result()["metrics"]["val_accuracy"]
    assert found[str(tmp_path / "held-out")] == pytest.approx([accuracy], abs=0.02)
    assert found[str(tmp_path / "both")] == found[str(tmp_path / "held-out")]
    assert found[str(tmp_path / "none")] == [2.0]  # no limit
    assert 0.2 < accuracy < 0.99


def test_a_step_in_parts_counts_as_one():
    one, two = lead(window=50), lead(window=50)
    student, theirs, drawn = logits(torch.Generator().manual_seed(0), 20)
    one.observe(student, [theirs], drawn)
    for part in range(2):
        half = slice(10 * part, 10 * part + 10)
        two.observe(student[half], [theirs[half]], drawn[half])
    one.update(20)
    two.update(20)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


def test_each_of_several_teachers_has_its_own_lead():
    both = nn.ModuleDict()
    for index in (0, 1):
        for name, loss in copy.deepcopy(distillers()).items():
            assert isinstance(loss, DistillationLoss)
            loss.teacher_index = index
            both[f"{index + 1}:{name}"] = loss
    made = make_balance("lead", {"window": 30}, both, has_accuracy=[True, False])
    assert isinstance(made, Lead)
    student, theirs, drawn = logits(torch.Generator().manual_seed(1), 20)
    made.train().observe(drawn, [theirs, student], drawn)  # the student is right throughout
    made.update(20)
    assert made.group_factors() == {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0}
    assert {made.label(row) for row in made.group_factors()} == {"1:features", "1:logits", "2:features", "2:logits"}


@given(
    losses=st.lists(st.tuples(*[st.floats(0.01, 100)] * 3), min_size=1, max_size=6),
    rate=st.floats(0.01, 1),
    decay=st.floats(0, 0.1),
)
def test_famo_has_the_literal_gradient(losses: list[tuple[float, float, float]], rate: float, decay: float):
    made = make_balance("famo", {"rate": rate, "decay": decay}, distillers())
    assert isinstance(made, Famo)
    slow = literal.Famo(3, rate, decay)
    names = ["ce", "uhkd.features", "uhkd.inter"]  # groups 0, 1 and 2
    for row in losses:
        terms = torch.tensor(row, requires_grad=True)
        made.train().balanced(names, terms).sum().backward()
        assert terms.grad is not None
        assert terms.grad.tolist() == pytest.approx(slow.project(row), rel=1e-3, abs=1e-5)
        made.update(20)
        slow.step(row)
        raw = [z / loss for z, loss in zip(slow.shares(), row, strict=True)]  # shares after the step, losses before it
        assert made.group_factors() == pytest.approx({k: r / sum(raw) for k, r in enumerate(raw)}, rel=1e-3, abs=1e-5)
        assert made.xi.tolist() == pytest.approx(slow.xi, rel=1e-3, abs=1e-4)


def test_famo_adds_up_the_terms_of_a_group():
    """Two terms of one group are one task, at the shares of their weights."""
    made = make_balance("famo", {}, distillers())
    assert isinstance(made, Famo)
    terms = torch.tensor([2.0, 1.0, 3.0], requires_grad=True)
    made.balanced(["ce", "uhkd.features", "uhkd.relations"], terms).sum().backward()
    assert terms.grad is not None
    # tasks 2 and 1 + 3, z = 1/2 each: (1/2)/2 and (1/2)/4, over their sum
    assert terms.grad.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("norms", "wanted"),
    [
        ({"ce": 2.0, "uhkd.features": 3.0, "uhkd.relations": 1.0, "uhkd.inter": 50.0}, 0.25),
        ({"ce": 2.0, "uhkd.features": 0.5}, 1.0),
        ({"uhkd.features": 0.5, "uhkd.relations": 4.0}, 1.0),
    ],
)
def test_cap_bounds_the_feature_terms_alone(norms: dict[str, float], wanted: float):
    made = make_balance("cap", {"every": 3}, distillers())
    assert isinstance(made, Cap)
    made.measure(1, lambda _: {"ce": 1e-9, "uhkd.features": 1.0}, {})  # not its turn
    assert made.group_factors() == {1: 1.0, 2: 1.0}
    made.measure(3, lambda _: norms, {})
    assert made.group_factors() == pytest.approx({1: wanted, 2: 1.0})


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_leave_the_cross_entropy_alone(name: str):
    made = make_balance(name, {}, distillers())
    assert type(made) is Balance and not list(made.buffers())
    found = made.scheduled({"ce": 2.0, "uhkd.features": 8.0, "uhkd.inter": 4.0}, 5, 10)
    assert found == pytest.approx({"ce": 2.0, "uhkd.features": 4.0, "uhkd.inter": 2.0})
    assert made.factors(5, 10) == pytest.approx({"features": 0.5, "logits": 0.5})


def test_the_loss_is_the_sum_of_factor_times_weight_times_term():
    made = lead()
    made.factor[1], made.factor[2] = 0.5, 0.25
    terms = {"ce": torch.tensor(1.0), "uhkd.features": torch.tensor(2.0), "uhkd.inter": torch.tensor(4.0)}
    weights = {"ce": 1.0, "uhkd.features": 10.0, "uhkd.inter": 1.0}
    assert weighted_sum(terms, weights, made) == 1 + 0.5 * 20 + 0.25 * 4
    assert weighted_sum(terms, weights) == 25


@pytest.mark.parametrize("method", method_names())
def test_every_term_of_every_method_belongs_to_a_group(method: str):
    """A term alone reads the teacher's logits exactly if it belongs to the logits."""
    weights = dict.fromkeys(method_class(method).default_weights, 0.0)
    for term in weights:
        loss = assemble(method, SETTINGS.get(method, {}), weights | {term: 1.0})[0].losses[method]
        assert group_of(loss, term) == ("logits" if "logits" in loss.needs.teacher else "features"), term
    assert default_balance(method) == method_class(method).balance


@pytest.mark.parametrize(
    ("method", "balance"), [("uhkd", "lead"), ("twin_a", "lead"), ("twin_b", "lead"), ("kd+dist", "constant")]
)
def test_the_default_balance(method: str, balance: str):
    assert default_balance(method) == balance


# in a training


@pytest.fixture(scope="module")
def stored(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored") / "cache"
    kept = {k: TINY[k] for k in ("data", "train_limit", "device", "precision")}
    uhkd.cache(teacher=str(teacher), views=3, out=str(out), mixup=0.4, seed=0, **kept)
    return out


BALANCES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {},
    "cosine": {},
    "lead": {"window": 60, "features_gate": 0.9, "logits_power": 2.0},
    "cap": {"every": 2},
    "famo": {},
}


def interrupted(out: Path, train: Any, step: int = 7) -> None:
    """Stop a training in a step by a signal."""
    real, count = stepping.weighted_sum, [0]

    def weighted_sum(*args: Any) -> Tensor:
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stepping, "weighted_sum", weighted_sum)
        with pytest.raises(TrainingInterrupted):
            train()


@pytest.mark.parametrize(  # the others are schedules too
    "name", [pytest.param(name, marks=() if name == "lead" else pytest.mark.slow) for name in list(BALANCES)[2:]]
)
def test_every_balance_resumes_to_the_bit(name: str, teacher: Path, tmp_path: Path):
    changes = {"balance": name, "balance_settings": BALANCES[name]}
    whole = uhkd.distill(**words(teacher, tmp_path / "whole", **changes))
    asked = words(teacher, tmp_path / "cut", **changes)
    interrupted(tmp_path / "cut", lambda: uhkd.distill(**asked))
    again = uhkd.distill(**asked, resume=True)
    assert_equal_runs(whole.run, again.run, STEPS)
    rows = whole.run.read_metrics()
    written = {key for row in rows for key in row if key.startswith("factor_")}
    assert written == (set() if name == "constant" else {"factor_features", "factor_logits"})
    if name == "lead":
        assert len({row["factor_features"] for row in rows}) == 3


def test_stored_outputs_give_the_factors_of_the_live_teacher(teacher: Path, stored: Path, tmp_path: Path):
    changes = {"balance": "lead", "balance_settings": {"window": 60, "features_gate": 1.0, "logits_gate": 1.0}}
    live = uhkd.distill(**words(teacher, tmp_path / "live", **changes)).run.read_metrics()
    asked = words(teacher, tmp_path / "stored", **changes, teacher_cache=str(stored))
    other = uhkd.distill(**asked).run.read_metrics()
    assert 0 < live[0]["factor_logits"] < 1
    for one, two in zip(live, other, strict=True):
        assert one["factor_logits"] == pytest.approx(two["factor_logits"], abs=0.05)


@pytest.fixture
def close_zero_groups(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A teacher that is never right, so that its student leads; each of its forward passes is noted."""
    calls: list[str] = []
    real = Teacher.outputs

    def outputs(self: Teacher, batch: Any, needs: frozenset[str]) -> Any:
        said = real(self, batch, needs)
        if needs:
            calls.append("pass")
        return said if said.logits is None else said._replace(logits=-1e3 * batch.target)

    monkeypatch.setattr(Teacher, "outputs", outputs)
    return calls


def test_terms_of_a_teacher_without_lead_are_switched_off_and_it_runs_no_more(
    close_zero_groups: list[str], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    changes = {"balance": "lead", "epochs": 4, "lr": 0.01}
    whole = uhkd.distill(**words(teacher, tmp_path / "whole", **changes))
    assert "no longer leads: its terms (features and logits) are switched off" in capsys.readouterr().err
    rows = whole.run.read_metrics()
    off = next(i for i, row in enumerate(rows) if "uhkd.features" not in row)
    assert 0 < off < 4 and "uhkd.features" in rows[off - 1]
    assert rows[-1]["factor_features"] == rows[-1]["factor_logits"] == 0
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["ce"], rel=1e-6)
    assert off == 2  # in the first step it was not known yet who leads
    assert len(close_zero_groups) == 5 * off + 8  # eight passes beside the training look for unused parameters
    # killed before and after the switch
    for step in (3, 5 * off + 2):
        asked = words(teacher, tmp_path / f"cut-{step}", **changes)
        interrupted(tmp_path / f"cut-{step}", lambda asked=asked: uhkd.distill(**asked), step)
        again = uhkd.distill(**asked, resume=True)
        assert_equal_runs(whole.run, again.run, [5, 10, 15, 20])


def test_without_labels_nothing_is_switched_off(teacher: Path, tmp_path: Path):
    """By agreement with the teacher's own choice."""
    changes = {"unlabelled": True, "mixup": 0.0, "balance": "lead", "balance_settings": {"logits_gate": 1.0}}
    rows = uhkd.distill(**words(teacher, tmp_path / "run", **changes)).run.read_metrics()
    assert all("uhkd.features" in row and 0 < row["factor_logits"] <= 1 for row in rows)
    assert rows[-1]["factor_logits"] < 1


def test_a_method_without_logits_reads_them_for_the_balance_alone(teacher: Path, tmp_path: Path):
    rows = uhkd.distill(
        **words(teacher, tmp_path / "run", method="rsd", balance="lead", balance_settings={"features_gate": 1.0})
    ).run.read_metrics()
    assert 0 < rows[-1]["factor_features"] < 1 and set(rows[-1]) >= {"rsd.redundancy"}


def test_a_teacher_without_a_fitting_head_follows_the_schedule_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    network = uhkd.create("uhkd/resnet10", num_classes=0, options={"channels": [8, 12, 16, 24]})
    asked = words(Path(), tmp_path / "run", method="rsd", balance="lead", unlabelled=True, mixup=0.0)
    asked["balance_settings"] = {"features_fall": "cosine"}
    rows = uhkd.distill(**asked | {"teacher": network.module}).run.read_metrics()
    assert "its lead is not measured and counts as 1" in capsys.readouterr().err
    assert [row["factor_features"] for row in rows] == pytest.approx([1 - s for s in (0.165, 0.655, 0.989)], abs=0.01)


# recipes


def test_older_words_keep_their_meaning(teacher: Path, tmp_path: Path):
    older = words(teacher, tmp_path / "older", weights_schedule="linear")
    assert build(DistillRecipe, older).balance == "linear"
    with pytest.raises(RecipeError, match="weights_schedule: is now called balance, and both are given"):
        build(DistillRecipe, older | {"balance": "lead"})


def test_a_run_of_an_older_version_is_resumed_with_constant_weights(teacher: Path, tmp_path: Path):
    """Its recipe has no balance; today's default is another."""
    whole = uhkd.distill(**words(teacher, tmp_path / "whole", balance="constant"))
    asked = words(teacher, tmp_path / "cut")
    interrupted(tmp_path / "cut", lambda: uhkd.distill(**asked, balance="constant"))
    file = tmp_path / "cut" / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    del recipe["balance"], recipe["balance_settings"]
    file.write_text(yaml.safe_dump(recipe | {"weights_schedule": "constant"}))
    again = uhkd.distill(**asked, resume=True)
    assert_equal_runs(whole.run, again.run, STEPS)


def test_another_balance_is_no_way_to_resume(teacher: Path, tmp_path: Path):
    asked = words(teacher, tmp_path / "cut")
    interrupted(tmp_path / "cut", lambda: uhkd.distill(**asked))
    with pytest.raises(ValueError, match="balance was 'lead', now 'constant'"):
        uhkd.distill(**asked, balance="constant", resume=True)


@pytest.mark.parametrize(
    ("balance", "settings", "told"),
    [
        ("led", {}, "balance: expected constant, linear, cosine, lead, cap or famo, found 'led'; did you mean 'lead'"),
        (None, {"window": 3}, "balance_settings: need a balance, and none is given"),
        ("lead", {"gate": 0.1}, "balance_settings.gate: unknown key"),
        ("lead", {"features_gate": 0}, "balance_settings.features_gate: expected a value > 0, found 0"),
        ("lead", {"features_gate": 1.5}, "balance_settings.features_gate: expected a value <= 1, found 1.5"),
        ("lead", {"logits_power": -1}, "balance_settings.logits_power: expected a value >= 0, found -1"),
        ("lead", {"logits_fall": "step"}, "expected constant, linear or cosine, found 'step'"),
        ("lead", {"window": "x"}, "balance_settings.window: expected a whole number, found 'x'"),
        ("cosine", {"rate": 1}, "balance_settings.rate: unknown key .known: none."),
        ("famo", {"rate": float("nan")}, "balance_settings"),
        ("cap", {"ratio": -1}, "balance_settings.ratio: expected a value > 0, found -1"),
    ],
)
def test_bad_words_get_one_line(balance: Any, settings: dict[str, Any], told: str):
    asked = {"data": "digits", "student": "uhkd/vit_micro", "teacher": "runs/t"}
    with pytest.raises(RecipeError, match=told):
        build(DistillRecipe, asked | {"balance": balance, "balance_settings": settings})


def test_cap_needs_labels(teacher: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="balance cap compares with the gradient of the cross-entropy"):
        uhkd.distill(**words(teacher, tmp_path / "run", unlabelled=True, mixup=0.0, balance="cap"))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["lead", "cap", "famo"])
def test_all_settings_are_written_into_the_recipe(name: str, teacher: Path, tmp_path: Path, monkeypatch: Any):
    class Stop(Exception):
        pass

    def caught(job: Setup) -> None:
        raise Stop(job.recipe)

    monkeypatch.setattr(fit, "Trainer", caught)
    with pytest.raises(Stop) as stopped:
        uhkd.distill(**words(teacher, tmp_path / "run", balance=name))
    recipe: DistillRecipe = stopped.value.args[0]
    assert recipe.balance_settings == balance_settings(name, {}).model_dump()


# a loop of one's own


def custom_loop(**options: Any) -> uhkd.Distillation:
    networks = [
        uhkd.create(name, num_classes=CLASSES, image_size=16).module for name in ("uhkd/resnet10", "uhkd/vit_micro")
    ]
    return uhkd.Distillation(*networks, num_classes=CLASSES, image_size=16, **{"method": "kd", **options}).train()


def test_a_custom_loop_falls_over_its_steps_and_resumes_from_a_state():
    with pytest.raises(ValueError, match="balance cosine falls over the training: give total_steps"):
        custom_loop(balance="cosine")
    own = custom_loop(balance="linear", total_steps=4)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    shares = []
    for _ in range(3):
        loss, terms = own(x, y)
        shares.append(((loss - terms["ce"]) / terms["kd.kl"]).item())
    assert shares == pytest.approx([1.0, 0.75, 0.5], abs=1e-4)
    other = custom_loop(balance="linear", total_steps=4)
    other.load_state_dict(own.state_dict())
    loss, terms = other(x, y)
    assert ((loss - terms["ce"]) / terms["kd.kl"]).item() == pytest.approx(0.25, abs=1e-4)


def test_two_teachers_each_do_without_the_other():
    _, teacher, batch = assemble("kd", {})
    both = TeacherEnsemble([(teacher, frozenset({"logits"})), (teacher, frozenset({"logits"}))])
    both.drop(0)
    said = both.outputs(batch, frozenset({"logits"}))
    assert said.logits is None and said.extra_teachers[0].logits is not None


def test_closing_skips_the_work_and_freezes_the_layers():
    learner, teacher, batch = assemble("uhkd", {})
    balance = make_balance("lead", {}, learner.distillers, has_accuracy=[True])
    learner = StudentWithLosses(learner.student, learner.distillers, balance=balance).train()
    assert learner.close([1]) == set()
    terms = learner(batch, teacher.outputs(batch, learner.teacher_needs))
    assert set(terms) == {"ce", "uhkd.inter", "uhkd.intra"}
    assert learner.close([1, 2]) == {0}
    assert not learner.teacher_needs and teacher.outputs(batch, learner.teacher_needs).logits is None
    assert set(learner(batch, teacher.outputs(batch, learner.teacher_needs))) == {"ce"}
    assert not [p for p in learner.distillers.parameters() if p.requires_grad]
    assert all(isinstance(d, DistillationLoss) for d in learner.distillers.values())


def test_cap_is_refused_in_a_custom_loop():
    with pytest.raises(UhkdError, match=r"balance cap measures gradients .* use another balance"):
        custom_loop(balance="cap")


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, float("nan")])
def test_an_impossible_teacher_accuracy_is_refused(accuracy: float):
    with pytest.raises(UhkdError, match="teacher_accuracy must be 0 to 1"):
        custom_loop(teacher_accuracy=accuracy)
    with pytest.raises(UhkdError, match="accuracy must be 0 to 1"):
        custom_loop(teacher_accuracy=0.5).validated(accuracy)


@pytest.mark.parametrize(("accuracy", "bound"), [(None, 2.0), (0.25, 0.25)])
def test_a_custom_loop_bounds_the_lead_by_teacher_accuracy(accuracy: float | None, bound: float):
    loop = custom_loop(balance="lead", teacher_accuracy=accuracy)
    balance = loop.learner.balance
    assert isinstance(balance, Lead)
    assert balance.bounds.tolist() == [[bound]]
    balance.counts.copy_(torch.tensor([[8.0, 9.0, 10.0]]))
    loop.validated(0.5)
    assert balance.student_scale.item() == pytest.approx(1.0 if accuracy is None else 0.55 / 0.8)
    loop.validated(0.5, 48)
    assert balance.student_scale.item() == pytest.approx(
        1.0 if accuracy is None else 1.1 * (0.5 - 0.0722) / 0.8, abs=1e-4
    )
    assert balance.bound_errors.item() == pytest.approx(0.0 if accuracy is None else 0.0633, abs=1e-4)
    with pytest.raises(UhkdError, match="images must be 1 or more, found 0"):
        loop.validated(0.5, 0)
    # a checkpoint of a version without these buffers
    state = balance.state_dict()
    del state["student_scale"], state["bound_errors"]
    balance.load_state_dict(state)
    assert (balance.student_scale.item(), balance.bound_errors.item()) == (1, 0)
