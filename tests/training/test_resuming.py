"""Checkpoints with right checksums that are not of the training that goes on: refused in words, and the one before is used."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import uhkd
from references.runs import assert_equal_runs, seal
from uhkd.__main__ import main
from uhkd.runs import RunFolder
from uhkd.training import fit
from uhkd.training import step as stepping
from uhkd.training.signals import TrainingInterrupted

TINY: dict[str, Any] = {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 8, 16, 16]},
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "checkpoint_minutes": 1e-9,
    "ema_decay": 0.8,
}
STEPS = [5, 10]


@pytest.fixture(scope="module", autouse=True)
def _keep_checkpoints_and_draw_nothing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        patched.setattr(fit, "draw", lambda folder: [])
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return uhkd.finetune(**TINY, out=tmp_path_factory.mktemp("whole") / "run").run


def cut(out: Path, train: Callable[[], object]) -> Path:
    """A training that was stopped in its step 7: checkpoints of steps 6 and 7 lie there."""
    real, count = stepping.weighted_sum, [0]

    def weighted_sum(*args: Any) -> torch.Tensor:
        count[0] += 1
        if count[0] == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stepping, "weighted_sum", weighted_sum)
        with pytest.raises(TrainingInterrupted):
            train()
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"step-6", "step-7"}
    return out


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "run"
    return cut(out, lambda: uhkd.finetune(**TINY, out=out))


def facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = json.loads((folder / "facts.json").read_text())
        change(content)
        (folder / "facts.json").write_text(json.dumps(content))

    return act


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = load_file(folder / "tensors.safetensors")
        change(content)
        save_file({k: v.contiguous() for k, v in content.items()}, folder / "tensors.safetensors")

    return act


def optimizer(change: Callable[[dict[Any, Any]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = torch.load(folder / "optimizer.pt", weights_only=True)
        change(content)
        torch.save(content, folder / "optimizer.pt")

    return act


def other_optimizer(folder: Path) -> None:
    """What SGD would have left there for the same weights."""
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    weights = {n: torch.nn.Parameter(torch.zeros_like(s["exp_avg"])) for n, s in saved["state"].items()}
    groups = [{"params": [weights[n] for n in group["params"]]} for group in saved["param_groups"]]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    sgd.step()
    torch.save(sgd.state_dict(), folder / "optimizer.pt")


def other_state(folder: Path) -> None:
    """SGD's momentum under AdamW's settings."""
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    saved["state"] = {n: {"momentum_buffer": s["exp_avg"]} for n, s in saved["state"].items()}
    torch.save(saved, folder / "optimizer.pt")


WEIGHT = "student.module.conv1.weight"
TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another network": (
        lambda folder: save_file({"student.module.patch_embed": torch.ones(3)}, folder / "tensors.safetensors"),
        r"lacks average\..* more\): it is of another network",
    ),
    "a missing tensor": (tensors(lambda t: t.pop(WEIGHT)), rf"lacks {WEIGHT}: it is of another"),
    "no averages": (
        tensors(lambda t: [t.pop(k) for k in list(t) if k.startswith("average.")]),
        r"lacks average\.",
    ),
    "a tensor too many": (tensors(lambda t: t.update(more=torch.ones(1))), "has unexpected more"),
    "a wrong shape": (
        tensors(lambda t: t.update({WEIGHT: t[WEIGHT][:, :, :1]})),
        r"conv1\.weight: expected float32 of shape \(.*\), found float32 of shape",
    ),
    "a wrong type": (
        tensors(lambda t: t.update({WEIGHT: t[WEIGHT].half()})),
        r"expected float32 .*, found float16",
    ),
    "weights of nan": (
        tensors(lambda t: t[WEIGHT].fill_(float("nan"))),
        rf"{WEIGHT} holds numbers that are not finite",
    ),
    "another optimizer": (other_optimizer, r"optimizer\.pt: (weight_decay|momentum|betas|lr|.*weight)"),
    "another optimizer's state": (other_state, r"exp_avg.* found .*momentum_buffer.*another optimizer's state"),
    "an optimizer of nothing": (optimizer(lambda o: o.clear()), r"expected 2 groups of weights"),
    "nested rubbish": (
        optimizer(lambda o: o.update(state={0: {"step": {"a": [{"b": 1}]}, "exp_avg": [], "exp_avg_sq": ()}})),
        r"of weight 0: expected a number of steps up to 10, found \{'a'",
    ),
    "rubbish in place of a state": (optimizer(lambda o: o.update(state=[1, 2])), r"expected 2 groups of weights"),
    "an empty state": (optimizer(lambda o: o["state"].clear()), "the state of every weight is missing"),
    "a weight too many": (
        optimizer(lambda o: o["state"].update({999: o["state"][0]})),
        r"found .* of weight 999",
    ),
    "moments of a wrong shape": (
        optimizer(lambda o: o["state"][0].update(exp_avg=torch.ones(2))),
        r"exp_avg of weight 0: expected numbers of shape \(.*\), found float32 of shape \(2,\)",
    ),
    "moments of infinity": (
        optimizer(lambda o: o["state"][0]["exp_avg_sq"].fill_(float("inf"))),
        "exp_avg_sq of weight 0 holds numbers that are not finite",
    ),
    "a negative count": (
        optimizer(lambda o: o["state"][0].update(step=torch.tensor(-3.0))),
        r"step of weight 0: expected a number of steps up to 10, found tensor\(-3\.\)",
    ),
    "other betas": (
        optimizer(lambda o: o["param_groups"][0].update(betas=(0.5, 0.5))),
        r"betas: expected \(0\.9, 0\.999\), found \(0\.5, 0\.5\)",
    ),
    "facts of nothing": (facts(lambda f: f.clear()), r"facts\.json: step: field required"),
    "a negative step": (facts(lambda f: f.update(step=-1)), r"facts\.json: step: input should be greater"),
    "an enormous step": (facts(lambda f: f.update(step=10**30)), r"step: .*found 1000000"),
    "a step of text": (facts(lambda f: f.update(step="7")), r"step: input should be a valid integer, found 7"),
    "data of a number": (facts(lambda f: f.update(data=3)), r"data: input should be a valid string, found 3"),
    "rows of nothing": (facts(lambda f: f.update(rows=None)), r"rows: input should be a valid list, found None"),
    "rows of text": (facts(lambda f: f.update(rows=[{"loss": "low"}])), r"rows\.0\.loss.*found low"),
    "seconds of text": (facts(lambda f: f.update(seconds="long")), "seconds: .*found long"),
    "no totals": (facts(lambda f: f.update(totals=[])), "totals: list should have at least 1 item"),
    "totals of others": (facts(lambda f: f["totals"][0].update(kd=1.0)), "totals: expected .*ce.*, found kd"),
    "totals without a count": (facts(lambda f: f.update(totals=[{"loss": 1.0}])), "a count of passes, found None"),
    "skipped of text": (facts(lambda f: f.update(skipped="none")), r"skipped: .*found none"),
}


def tamper(out: Path, name: str, change: Callable[[Path], None]) -> None:
    folder = out / "checkpoints" / name
    change(folder)
    seal(folder)


SELDOM = {  # near relatives of other cases
    *("no averages", "a tensor too many", "a wrong type", "rubbish in place of a state", "moments of infinity"),
    *("other betas", "a step of text", "data of a number", "rows of nothing", "seconds of text", "totals of others"),
    "skipped of text",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SELDOM else []) for case in TAMPERED]
)
def test_what_is_whole_but_not_of_this_training_is_refused_in_words(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    change, said = TAMPERED[case]
    out = shutil.copytree(begun, tmp_path / "run")
    for name in ("step-6", "step-7"):
        tamper(out, name, change)
    with pytest.raises(
        ValueError, match=rf"no checkpoint in .*run.checkpoints can be used: step-7: .*{said}"
    ) as caught:
        uhkd.finetune(**TINY, out=out, resume=True)
    assert "; step-6: " in str(caught.value) and "delete the folder and start again with --resume" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (out / "result.json").exists() and not (out / ".owner").exists()


@pytest.mark.parametrize("case", ["another network", "another optimizer", "an enormous step"])
def test_the_one_before_is_used_and_the_run_ends_the_same(
    whole: RunFolder, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    out = shutil.copytree(begun, tmp_path / "run")
    tamper(out, "step-7", TAMPERED[case][0])
    assert_equal_runs(whole, uhkd.finetune(**TINY, out=out, resume=True).run, STEPS)
    said = capsys.readouterr().err
    assert "a newer checkpoint is damaged and was skipped: step-7: " in said and "resuming at step 6 of 10" in said


def test_a_checkpoint_of_a_later_step_than_the_run_has_is_no_way_to_skip_the_training(
    whole: RunFolder, begun: Path, tmp_path: Path
):
    out = shutil.copytree(begun, tmp_path / "run")
    shutil.copytree(out / "checkpoints" / "step-7", out / "checkpoints" / "step-4000000000000")
    tamper(out, "step-4000000000000", facts(lambda f: f.update(step=4000000000000)))
    again = uhkd.finetune(**TINY, out=out, resume=True).run
    shutil.rmtree(out / "checkpoints" / "step-4000000000000")  # it stays the newest, and is passed over each time
    assert_equal_runs(whole, again, STEPS)


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_every_optimizer_goes_on_to_the_bit(tmp_path: Path, name: str):
    """They keep their counts in different places."""
    words = TINY | {"optimizer": name, "lr": 0.01}
    whole = uhkd.finetune(**words, out=tmp_path / "whole").run
    out = tmp_path / "run"
    cut(out, lambda: uhkd.finetune(**words, out=out))
    again = uhkd.finetune(**words, out=out, resume=True).run
    one, two = whole.read_checkpoint(), again.read_checkpoint()
    assert one is not None and two is not None and whole.weights.read_bytes() == again.weights.read_bytes()
    for a, b in zip(one.optimizer["param_groups"], two.optimizer["param_groups"], strict=True):
        assert {k: float(v) if k == "step" else v for k, v in a.items()} == dict(b)
    assert all(torch.equal(s[k], two.optimizer["state"][n][k]) for n, s in one.optimizer["state"].items() for k in s)


def test_statistics_of_another_teacher_are_passed_over(tmp_path: Path):
    teacher = uhkd.finetune(**TINY | {"options": {"channels": [8, 12, 16, 70]}}, out=tmp_path / "teacher").run
    words: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("model", "options")} | {
        "teacher": str(teacher.path),
        "student": "uhkd/vit_micro",
        "student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2},
        "allow_weak_teacher": True,
    }
    whole = uhkd.distill(**words, out=tmp_path / "whole").run
    out = tmp_path / "run"
    cut(out, lambda: uhkd.distill(**words, out=out))
    kept = shutil.copytree(out, tmp_path / "kept")

    def reshape(found: dict[str, torch.Tensor]) -> None:
        found["ftm.mean0"] = found["ftm.mean0"][:-1]

    tamper(out, "step-7", tensors(reshape))
    assert_equal_runs(whole, uhkd.distill(**words, out=out, resume=True).run, STEPS)
    for name in ("step-6", "step-7"):
        tamper(kept, name, tensors(lambda found: found.pop("ftm.mean0")))
    with pytest.raises(ValueError, match=r"step-7: it lacks ftm\.mean0.*delete the folder"):
        uhkd.distill(**words, out=kept, resume=True)


def test_the_command_line_says_it_in_one_line(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = shutil.copytree(begun, tmp_path / "run")
    for name in ("step-6", "step-7"):
        tamper(out, name, TAMPERED["nested rubbish"][0])
    assert main(["finetune", "-c", str(out), "--out", str(out), "--resume"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1 and said[0].startswith("uhkd finetune: error: no checkpoint in ")
