"""Class weights, frozen parts, the best epoch and early stopping."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import uhkd
from uhkd.errors import UhkdError
from uhkd.export.card import card_text
from uhkd.models import create, load_run, load_state
from uhkd.recipe import FinetuneRecipe, build
from uhkd.reporting.grouping import arrange
from uhkd.reporting.run_data import read_runs
from uhkd.runs import RunFolder
from uhkd.training import best_weights, fit, trainer
from uhkd.training.best_weights import BestWeights, best_row
from uhkd.training.class_balance import cross_entropy, weights_of_classes
from uhkd.training.freeze import FrozenParts
from uhkd.training.inputs import open_recipe_data
from uhkd.training.machine import choose_device

TINY: dict[str, Any] = {
    "model": "uhkd/resnet10",
    "options": {"channels": [8, 12, 16, 24]},
    "data": "digits",
    "train_limit": 60,
    "image_size": 16,
    "batch_size": 20,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "thumbnails": False,
    "lr": 0.01,
}
SCORES = [0.2, 0.6, 0.5, 0.6, 0.4, 0.9]  # of six epochs; the best of the first five is the second


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "draw", lambda run: [])


def test_the_cross_entropy_of_an_image_is_weighed_by_its_target():
    torch.manual_seed(0)
    logits, weights = torch.randn(6, 4), torch.tensor([0.1, 1.0, 2.0, 0.5])
    labels = torch.tensor([0, 1, 2, 3, 2, 1])
    hard, other = F.one_hot(labels, 4).float(), F.one_hot(labels.flip(0), 4).float()

    def literal(target: Tensor, smoothing: float) -> Tensor:
        each = [
            F.cross_entropy(x[None], y[None], label_smoothing=smoothing) for x, y in zip(logits, target, strict=True)
        ]
        return weights[target.argmax(1)] @ torch.stack(each) / len(each)

    torch.testing.assert_close(cross_entropy(logits, hard, weights, 0.1), literal(hard, 0.1))
    mixed = cross_entropy(logits, 0.7 * hard + 0.3 * other, weights, 0.1)
    torch.testing.assert_close(mixed, 0.7 * literal(hard, 0.1) + 0.3 * literal(other, 0.1))
    torch.testing.assert_close(cross_entropy(logits, hard, torch.ones(4), 0.1), cross_entropy(logits, hard, None, 0.1))


@pytest.mark.parametrize("asked", ["balanced", {"0": 10.0, "7": 0.5}])
def test_class_weights_have_a_mean_of_1_over_the_training_images(asked: Any):
    recipe = build(FinetuneRecipe, TINY | {"class_weights": asked})
    data = open_recipe_data(recipe)
    weights = weights_of_classes(recipe, data)
    counts = torch.from_numpy(data.train.labels).bincount(minlength=10)  # pyright: ignore[reportArgumentType]
    assert weights is not None and float(weights @ counts.float()) == pytest.approx(60, rel=1e-5)
    per_class = weights * counts if asked == "balanced" else weights[[0, 7]] / weights[1]
    torch.testing.assert_close(per_class, torch.full((10,), 6.0) if asked == "balanced" else torch.tensor([10.0, 0.5]))


def test_frozen_parts_keep_parameters_and_statistics(tmp_path: Path):
    start = uhkd.finetune(**TINY, epochs=1, out=tmp_path / "start")
    options: dict[str, Any] = TINY | {
        "epochs": 2,
        "freeze": ["bn1", "layer[12]", "conv1.weight"],
        "start": str(start.run.path),
    }
    done = uhkd.finetune(**options, ema_decay=0.5, class_weights={"0": 2.0}, sampling="balanced", out=tmp_path / "new")
    before, after = load_state(start.run.weights), load_state(done.run.weights)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("bn1.", "layer1.", "layer2.", "conv1."))}
    assert all(p.requires_grad for p in done.student.parameters())  # released
    assert all(part.training for part in done.student.train().modules())


def test_a_number_is_a_block_where_inspect_prints_numbers():
    vit = create("uhkd/vit_micro", num_classes=10, image_size=16, options={"embed_dim": 24, "depth": 3, "num_heads": 2})
    assert vit.levels[0].isdecimal()
    frozen = FrozenParts(vit, ["1", "pos_embed"])
    names = {name for name, p in vit.module.named_parameters() if not p.requires_grad}
    assert names == {n for n, _ in vit.module.named_parameters() if n.startswith("blocks.1.") or n == "pos_embed"}
    frozen.release()
    cnn = create("uhkd/resnet10", num_classes=10, image_size=32)
    with pytest.raises(UhkdError, match="has no part '2'"):
        FrozenParts(cnn, ["2"])


def rows(scores: list[float], name: str = "val_accuracy") -> list[dict[str, float]]:
    return [{"epoch": i, name: score} for i, score in enumerate(scores, 1)]


def test_the_first_of_the_best_validations_counts():
    assert best_row(rows([0.1, 0.6, 0.6, 0.2])) == 1
    assert best_row(rows([3.0, 2.0, 2.5, float("nan")], "val_feature_error")) == 1  # lower is better
    with pytest.raises(UhkdError, match="this training measures none"):
        best_row([{"epoch": 1}])


def test_patience_counts_validations_without_improvement():
    def ended(patience: int, scores: list[float]) -> list[bool]:
        best = BestWeights(nn.Linear(1, 1), build(FinetuneRecipe, TINY | {"patience": patience}))
        ends = []
        for i in range(1, len(scores) + 1):
            best.validated(rows(scores)[:i])
            ends.append(best.stopped)
        return ends

    assert ended(2, [0.1, 0.1, 0.2, 0.2, 0.1]) == [False, False, False, False, True]
    assert ended(1, [0.1, 0.2, 0.2]) == [False, False, True]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Trainings with the accuracies of `SCORES`, by epoch; the list gets the weights that each validation measured."""
    shown: list[dict[str, Tensor]] = []
    real, compare = trainer.evaluate, best_weights.best_row

    def evaluate(network: Any, *others: Any) -> Any:
        shown.append(copy.deepcopy(network.module.state_dict()))
        return real(network, *others)

    def best(given: Any) -> int:
        for row in given:
            row["val_accuracy"] = SCORES[int(row["epoch"]) - 1]
        return compare(given)

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    monkeypatch.setattr(best_weights, "best_row", best)
    return shown


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_epoch_is_used_and_the_last_stays(tmp_path: Path, scored: list[dict[str, Tensor]]):
    options: dict[str, Any] = TINY | {"epochs": 5, "ema_decay": 0.7, "keep": "best"}
    done = uhkd.finetune(**options, out=tmp_path / "best")
    assert_same(load_run(done.run.path).module.state_dict(), scored[1])  # the average was validated
    assert_same(done.student.module.state_dict(), scored[1])
    assert_same(load_state(done.run.last_weights), scored[4])
    result = done.run.read_result()
    assert result["metrics"] == done.metrics and done.metrics["epoch"] == 2
    assert (result["best_epoch"]["epoch"], result["best_epoch"]["of"], result["best_epoch"]["last"]["epoch"]) == (
        2,
        5,
        5,
    )
    arrays = done.run.read_arrays()
    assert len(arrays["steps"]) == 5 and "val_prediction" in arrays

    # said where the number stands
    said = "epoch 2, best of 5 validated epochs by the held-out part (optimistic: chosen on these images)"
    assert f"| validation accuracy, {said} | 60.00% |" in card_text(str(done.run.path), done.student, {}, {})
    (group,) = arrange(read_runs([done.run.path])[0], "title").student_groups[0].groups
    accuracy, seconds = group.metric("val_accuracy"), group.metric("seconds")
    assert group.label.endswith(", best epoch") and accuracy is not None and accuracy.mean == 0.6
    assert seconds is not None and seconds.mean == result["best_epoch"]["last"]["seconds"]  # of the whole training


@pytest.mark.parametrize("stopped", [11, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_an_interrupted_run_has_the_same_best_epoch_and_end(
    tmp_path: Path, scored: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, stopped: int
):
    """Patience 2 ends it after epoch 4, step 12."""
    options: dict[str, Any] = TINY | {"epochs": 6, "keep": "best", "patience": 2, "checkpoint_minutes": 1e-9}
    whole = uhkd.finetune(**options, out=tmp_path / "whole")
    assert whole.run.read_result()["stopped_early"] == {"epoch": 4, "of": 6} and len(scored) == 4
    follow = trainer.ProgressBar.follow

    def limited(self: Any, batches: Any) -> Iterator[Any]:
        for count, item in enumerate(follow(self, batches)):
            if count == stopped:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patched:
        patched.setattr(trainer.ProgressBar, "follow", limited)
        with pytest.raises(KeyboardInterrupt):
            uhkd.finetune(**options, out=tmp_path / "cut")
    again = uhkd.finetune(**options, out=tmp_path / "cut", resume=True)
    for name in ("weights", "last_weights"):
        assert getattr(again.run, name).read_bytes() == getattr(whole.run, name).read_bytes()
    assert [row["epoch"] for row in again.run.read_metrics()] == [1, 2, 3, 4]


def test_a_run_that_ended_early_before_its_result_does_not_train_further(
    tmp_path: Path, scored: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
):
    options: dict[str, Any] = TINY | {"epochs": 6, "patience": 1, "out": str(tmp_path / "run")}

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit, "_finish", fail)
        with pytest.raises(KeyboardInterrupt):
            uhkd.finetune(**options)
    done = uhkd.finetune(**options, resume=True)
    assert done.metrics["epoch"] == 3 and len(scored) == 3
    assert not RunFolder(done.run.path).last_weights.exists()


def test_a_run_of_before_these_options_resumes(tmp_path: Path):
    """A recipe without them has their defaults."""
    done = uhkd.finetune(**TINY, epochs=1, out=tmp_path / "run")
    text = [
        line
        for line in done.run.recipe.read_text().splitlines()
        if not line.startswith(("keep:", "patience:", "freeze:"))
    ]
    done.run.recipe.write_text("\n".join(text) + "\n")
    shutil.copy(done.run.recipe, tmp_path / "recipe.yaml")
    assert uhkd.finetune(**TINY, epochs=1, out=tmp_path / "run", resume=True).metrics == done.metrics


def test_apples_gpu_is_announced_as_untested(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(build(FinetuneRecipe, TINY | {"device": "mps", "precision": "auto"})) == ("mps", "fp32")
    assert "device mps is untested" in capsys.readouterr().err
    with pytest.raises(UhkdError, match="computes in fp32 here"):
        choose_device(build(FinetuneRecipe, TINY | {"device": "mps", "precision": "bf16"}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UhkdError, match="trains in one process"):
        choose_device(build(FinetuneRecipe, TINY | {"device": "mps"}))
