"""What loggers are told, and that nothing they do can stop or change a training."""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import uhkd
from references.runs import assert_equal_runs
from uhkd.models import create
from uhkd.runs import ProgressFile, RunFolder
from uhkd.training import check_loggers, fit, loggers, trainer
from uhkd.training.loggers import Loggers
from uhkd.training.step import TrainStep

WORDS: dict[str, Any] = {
    "data": "digits",
    "train_limit": 40,
    "image_size": 16,
    "batch_size": 10,
    "epochs": 2,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "log_every": 1,
    "method": "kd",
    "student": "uhkd/vit_micro",
    "student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2, "proj_drop_rate": 0.2},
    "allow_weak_teacher": True,
    "checkpoint_minutes": 1e-9,
}
Distil = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def distil() -> Distil:
    torch.manual_seed(0)
    teacher = create("uhkd/resnet10", num_classes=10, image_size=16, options={"channels": [8, 8, 8, 8]})
    return lambda out, **changes: uhkd.distill(teacher=teacher, **WORDS | changes | {"out": str(out)}).run


@pytest.fixture(scope="module", autouse=True)
def _quick_ends():
    """Without pictures, and with the last checkpoint kept."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        yield


@pytest.fixture(scope="module")
def silent(distil: Distil, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The training that tells nobody."""
    return distil(tmp_path_factory.mktemp("silent") / "run")


@pytest.fixture(scope="module")
def told(distil: Distil, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same, told to TensorBoard, broken in step 7, and resumed from step 5 as if killed before the checkpoint of step 6."""
    out, take = tmp_path_factory.mktemp("told") / "run", TrainStep.__call__

    def breaks(self: TrainStep, batch: Any, number: int, weights: Any) -> None:
        if number == 6:
            raise RuntimeError("out of luck\nfor good")
        take(self, batch, number, weights)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainStep, "__call__", breaks)
        with pytest.raises(RuntimeError, match="out of luck"):
            distil(out, log=("tensorboard",))
    pulse = ProgressFile.read(out)
    assert pulse is not None and (pulse.state, pulse.why, pulse.step) == ("failed", "out of luck", 6)
    for file in (out / "checkpoints" / "step-6").iterdir():
        file.unlink()
    (out / "checkpoints" / "step-6").rmdir()
    return distil(out, log=("tensorboard",), resume=True)


def scalars(run: RunFolder) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: by name, step -> value, no step twice."""
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert len(steps) == len(set(steps)) and steps == sorted(steps), name
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    return found


def test_a_training_that_is_told_is_the_training_that_is_not(silent: RunFolder, told: RunFolder):
    recipes = silent.read_recipe(), told.read_recipe()
    assert {k for k in recipes[0] if recipes[0][k] != recipes[1][k]} == {"log"}
    assert_equal_runs(silent, told, [4, 8])


def test_tensorboard_has_every_step_once_also_after_a_resume(told: RunFolder):
    found, rows = scalars(told), told.read_metrics()
    for name in ("train/loss", "train/ce", "train/kd.kl", "lr", "speed/images_per_second", "speed/data_wait"):
        assert list(found[name]) == list(range(1, 9)), name
    for name in ("loss", "ce", "kd.kl"):
        each = [found[f"train/{name}"][step] for step in range(1, 9)]
        assert [sum(each[:4]) / 4, sum(each[4:]) / 4] == pytest.approx([row[name] for row in rows], rel=1e-5)
        assert found[f"epoch/{name}"] == pytest.approx({4: rows[0][name], 8: rows[1][name]}, rel=1e-5)
    for name in ("accuracy", "nll", "ece", "top5"):
        assert found[f"val/{name}"] == pytest.approx({4: rows[0][f"val_{name}"], 8: rows[1][f"val_{name}"]})
    for step, row in zip((4, 8), rows, strict=True):
        parts = [found[f"gradient/{name}"][step] for name in ("ce", "kd.kl")]
        assert sum(parts) == pytest.approx(1) and parts[0] / parts[1] == pytest.approx(
            row["grad_ce"] / row["grad_kd.kl"], rel=1e-4
        )
    assert found["weight/kd.kl"] == {0: 1.0} and found["epochs_done"][8] == 2


def test_tensorboard_has_the_factors_and_the_lead_of_a_balance(distil: Distil, tmp_path: Path):
    words = {
        "log": ("tensorboard",),
        "balance": "lead",
        "balance_settings": {"logits_gate": 1.0, "logits_fall": "linear"},
    }
    found, rows = scalars(run := distil(tmp_path / "run", **words)), run.read_metrics()
    for step, row in zip((4, 8), rows, strict=True):
        assert {name for name in row if name.startswith(("factor", "lead"))} == {"factor_logits", "lead"}
        assert found["factor/logits"][step] == pytest.approx(row["factor_logits"])
        assert found["lead"][step] == pytest.approx(row["lead"])
        # min(1, lead / 1) times the schedule of the step before
        assert row["factor_logits"] == pytest.approx(row["lead"] * (1 - (step - 1) / 8))
    assert rows[0]["lead"] > 0
    assert not any("lead" in name or "factor" in name for name in found if "/" in name and name != "factor/logits")


def test_tensorboard_has_the_recipe_and_the_health_line(told: RunFolder):
    events = EventAccumulator(str(told.path / "tensorboard"))
    events.Reload()

    def text(name: str) -> list[str]:
        return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{name}/text_summary")]

    (recipe,) = text("recipe")
    words = yaml.safe_load("\n".join(line.removeprefix("    ") for line in recipe.splitlines()))
    assert words["method"] == "kd" and words["batch_size"] == 10 and words["lr"] == 0.001
    assert len(text("health")) == 2
    (plugin,) = [k for k in events.summary_metadata if k.endswith("session_start_info")]
    assert b"batch_size" in events.summary_metadata[plugin].plugin_data.content


def test_progress_says_how_it_ended_and_is_small(told: RunFolder):
    pulse = ProgressFile.read(told.path)
    assert pulse is not None
    assert (pulse.state, pulse.step, pulse.total, pulse.epoch, pulse.epochs) == ("finished", 8, 8, 2, 2)
    assert pulse.process == os.getpid() and pulse.age() < 600 and pulse.why == "" and pulse.eta_seconds == 0
    assert pulse.terms.keys() == {"loss", "ce", "kd.kl"} == pulse.recent.keys() and len(pulse.recent["ce"]) == 3
    assert pulse.recent["ce"][-1] == pulse.terms["ce"] == pytest.approx(scalars(told)["train/ce"][8], rel=1e-4)
    assert (told.path / "progress.json").stat().st_size < 4000
    assert not list(told.path.glob(".*.tmp"))


def test_progress_is_written_once_a_second_at_most(distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And a disk that refuses it is no reason to end."""
    times: list[float] = []
    lines: list[str] = []

    def refused(self: ProgressFile, folder: Path) -> None:
        times.append(time.monotonic())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ProgressFile, "write", refused)
    monkeypatch.setattr(trainer, "log_info", lines.append)
    run = distil(tmp_path / "run")
    assert run.result.is_file() and len(times) >= 2
    assert all(b - a >= 1.0 for a, b in itertools.pairwise(times[:-1]))  # the last says how it ended
    assert [line for line in lines if "progress.json" in line] == [
        "warning: progress.json cannot be written (No space left on device); uhkd watch shows less"
    ]


# loggers that fail


class Bad(loggers._Backend):
    """Fails, or hangs, at the n-th thing it is told."""

    left, hang, heard = 3, 0.0, 0

    def __init__(self, *_: Any) -> None:
        Bad.heard = 0

    def metrics(self, values: Any, step: int) -> None:
        Bad.heard += 1
        if Bad.heard > self.left:
            time.sleep(self.hang)
            raise ConnectionError("the server\nis away")

    def text(self, name: str, text: str, step: int) -> None:
        pass

    def close(self, ending: str) -> None:
        pass


@pytest.mark.parametrize("hang", [0.0, 3600.0])
def test_a_logger_that_fails_or_hangs_changes_nothing_and_is_warned_of_once(
    hang: float, distil: Distil, silent: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(loggers._BACKENDS, "tensorboard", Bad)
    monkeypatch.setattr(Bad, "hang", hang)
    monkeypatch.setattr(loggers, "_CLOSE_TIMEOUT", 0.2)
    lines: list[str] = []
    monkeypatch.setattr(trainer, "log_info", lines.append)
    run = distil(tmp_path / "run", log=("tensorboard",))
    assert run.weights.read_bytes() == silent.weights.read_bytes()
    why = "it took longer than 0 s to end" if hang else "ConnectionError: the server"
    warned = f"warning: log tensorboard failed, the training continues without it: {why}"
    assert [line for line in lines if "warning" in line] == [warned] and Bad.heard == 4


def test_a_logger_far_behind_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(loggers._BACKENDS, "tensorboard", Bad)
    monkeypatch.setattr(Bad, "left", 0)
    monkeypatch.setattr(Bad, "hang", 3600.0)
    monkeypatch.setattr(loggers, "_QUEUE_SIZE", 5)
    lines: list[str] = []
    own = Loggers(("tensorboard",), RunFolder(tmp_path), {}, 0, lines.append)
    for step in range(20):
        own.metrics({"a": 1.0}, step)
    assert lines == ["warning: log tensorboard failed, the training continues without it: it is 5 messages behind"]


def test_one_that_cannot_be_opened_ends_a_new_run_but_not_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def closed(*_: Any) -> None:
        raise ConnectionError("no route\nto host")

    before = threading.active_count()
    monkeypatch.setitem(loggers._BACKENDS, "tensorboard", Bad)
    monkeypatch.setitem(loggers._BACKENDS, "mlflow", closed)
    with pytest.raises(ValueError) as refused:
        Loggers(("tensorboard", "mlflow"), RunFolder(tmp_path), {}, 0, print)
    assert str(refused.value) == (
        "log mlflow could not be opened (ConnectionError: no route); nothing was trained. Fix it, or leave mlflow out of "
        "--log, and start the same command again with --resume"
    )
    assert threading.active_count() <= before
    lines: list[str] = []
    own = Loggers(("tensorboard", "mlflow"), RunFolder(tmp_path), {}, 5, lines.append)
    own.close("success")
    assert lines == [
        "warning: log mlflow could not be opened, the training continues without it: ConnectionError: no route"
    ]


def test_a_missing_package_is_named_with_its_extra_before_anything_is_done(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "wandb" else object())
    check_loggers(("tensorboard", "mlflow"))
    with pytest.raises(ValueError, match=r"^log wandb: the package wandb is missing: pip install 'uhkd\[wandb\]'$"):
        distil(tmp_path / "run", log=("tensorboard", "wandb"))
    assert not (tmp_path / "run").exists()


def test_a_place_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link to another place"):
        Loggers(("tensorboard",), RunFolder(tmp_path / "run"), {}, 0, print)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_without_a_logger_no_package_is_imported(distil: Distil, silent: RunFolder):
    assert not (silent.path / "tensorboard").exists() and not (silent.path / "logs.json").exists()


# W&B and MLflow: without a network


@pytest.fixture
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own process is on this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning", "ignore:.*:UserWarning", "ignore:.*:FutureWarning"
)  # theirs
def test_mlflow_has_all_of_a_run_and_goes_on_with_it(distil: Distil, tmp_path: Path, closed_network: None):
    run = distil(tmp_path / "run", log=("mlflow",))
    from mlflow.tracking import MlflowClient

    name = json.loads((run.path / "logs.json").read_text())["mlflow"]
    client = MlflowClient((run.path / "mlruns").as_uri())
    found = client.get_run(name)
    assert found.info.status == "FINISHED" and found.data.params["method"] == "kd" and "health" in found.data.tags
    assert [m.step for m in client.get_metric_history(name, "train/loss")] == list(range(1, 9))
    assert [m.step for m in client.get_metric_history(name, "epoch/loss")] == [4, 8]
    assert found.data.metrics["val/accuracy"] == pytest.approx(run.read_metrics()[-1]["val_accuracy"])
    own = Loggers(("mlflow",), run, {}, 8, print)
    own.metrics({"train/loss": 1.0}, 9)
    own.close("stopped")
    assert [m.step for m in client.get_metric_history(name, "train/loss")] == list(range(1, 10))
    assert client.get_run(name).info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning", "ignore:.*:UserWarning", "ignore:.*:FutureWarning"
)  # theirs
def test_wandb_has_all_of_a_run_and_goes_on_with_it(distil: Distil, tmp_path: Path, closed_network: None):
    run = distil(tmp_path / "run", log=("wandb",))
    name = json.loads((run.path / "logs.json").read_text())["wandb"]
    (file,) = (run.path / "wandb").glob(f"offline-run-*/run-{name}.wandb")
    content = file.read_bytes()
    for word in (b"train/kd.kl", b"val/accuracy", b"gradient/ce", b"health", b"label_smoothing"):
        assert word in content, word
    own = Loggers(("wandb",), run, {}, 8, print)
    own.metrics({"train/loss": 1.0}, 9)
    own.close("success")
    assert len(list((run.path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))) == 2


def test_a_logger_whose_client_exits_is_warned_of_too(tmp_path: Path):
    def leave(backend: Any) -> None:
        raise SystemExit("the client gave up")

    thread = loggers._LoggerThread("wandb", Bad())
    thread.submit(leave)
    thread.close("success", 5.0)
    assert thread.failure == "SystemExit: the client gave up" and not thread.is_alive()
