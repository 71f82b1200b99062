"""The arrays that every run leaves for its report."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import uhkd
from uhkd.data import Batch, eval_loader, open_data
from uhkd.evaluation.diagnostics import Diagnostics, first_images
from uhkd.evaluation.metrics import Evaluation, cka_matrix, radial_spectrum
from uhkd.features import FeatureExtractor, PairShapes
from uhkd.methods import build_losses, find_matching_loss
from uhkd.models import load_run, wrap_module
from uhkd.runs import RunFolder
from uhkd.spectral import radial_frequencies
from uhkd.training import Teacher, calibrate, fit

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """A teacher and what two methods make of a student of another family."""
    root = tmp_path_factory.mktemp("diagnostics")
    student = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        words = TINY | {"epochs": 2, "out": root / "teacher"}
        made = {"teacher": uhkd.finetune(model="uhkd/resnet10", options={"channels": [8, 12, 16, 24]}, **words).run}
        for method in ("uhkd", "scratch"):
            words = TINY | {"teacher": root / "teacher", "student": "uhkd/vit_micro", "student_options": student}
            words |= {"epochs": 4, "eval_every": 2, "allow_weak_teacher": True, "method": method, "out": root / method}
            made[method] = uhkd.distill(**words).run
    return made


def test_a_distillation_leaves_every_documented_array(runs: dict[str, RunFolder]):
    arrays = runs["uhkd"].read_arrays()
    shapes = {name: value.shape for name, value in arrays.items()}
    # evaluations T = 2 (4 epochs, every 2nd); student 3 levels of 4x4; teacher 4 levels of 16, 8, 4, 2 cells a side
    wanted = {"steps": (2,)} | {f"student_spectrum_{i}": (2, 2) for i in range(3)}
    wanted |= {f"teacher_spectrum_{i}": (r,) for i, r in enumerate((11, 5, 2, 1))}
    wanted |= {f"error_{i}": (2, k) for i, k in enumerate((9, 9, 1))}
    wanted |= {f"frequency_{i}": (k,) for i, k in enumerate((9, 9, 1))}
    wanted |= {"cka_start": (3, 4), "cka_end": (3, 4), "val_prediction": (143,), "val_label": (143,)}
    wanted |= {"confusion": (10, 10), "val_confidence": (143,)}
    wanted |= {f"start_spectrum_{i}": (2,) for i in range(3)}
    wanted |= {"teacher_prediction": (143,), "teacher_confidence": (143,), "val_shown": (143,)}
    assert shapes == wanted
    assert arrays["steps"].tolist() == [10, 20]
    assert all(np.isfinite(value).all() for value in arrays.values())
    np.testing.assert_allclose(arrays["frequency_0"], radial_frequencies((3, 3), "pairs").numpy())
    for name in ("cka_start", "cka_end"):
        assert ((arrays[name] >= 0) & (arrays[name] <= 1 + 1e-6)).all()
    assert not np.array_equal(arrays["cka_start"], arrays["cka_end"])
    assert not np.array_equal(arrays["student_spectrum_0"][0], arrays["student_spectrum_0"][1])


def test_the_arrays_agree_with_the_run(runs: dict[str, RunFolder]):
    run = runs["uhkd"]
    arrays, data = run.read_arrays(), open_data("digits", train_limit=100)
    np.testing.assert_array_equal(arrays["val_label"], data.val.labels)
    right = (arrays["val_prediction"] == arrays["val_label"]).mean()
    assert right == pytest.approx(run.read_metrics()[-1]["val_accuracy"], abs=1e-6)
    literal = np.zeros((10, 10), dtype=np.int64)
    np.add.at(literal, (arrays["val_label"], arrays["val_prediction"]), 1)
    np.testing.assert_array_equal(arrays["confusion"], literal)
    student, teacher = load_run(run.path), load_run(runs["teacher"].path)
    images = first_images(eval_loader(data.val, (8, 8), batch_size=256), 128)
    with torch.no_grad():
        maps = [network(images, frozenset({"maps"})).maps or () for network in (student, teacher)]
    for level, spectrum in enumerate(map(radial_spectrum, maps[0])):
        np.testing.assert_allclose(arrays[f"student_spectrum_{level}"][-1], spectrum.numpy(), rtol=1e-4)
    for level, spectrum in enumerate(map(radial_spectrum, maps[1])):
        np.testing.assert_allclose(arrays[f"teacher_spectrum_{level}"], spectrum.numpy(), rtol=1e-4)
    np.testing.assert_allclose(arrays["cka_end"], cka_matrix(*maps).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["teacher", "scratch"])
def test_without_a_teacher_there_is_nothing_to_compare(runs: dict[str, RunFolder], name: str):
    names = set(runs[name].read_arrays())
    assert {"steps", "student_spectrum_0", "val_prediction", "val_label", "confusion"} <= names
    assert not [n for n in names if n.startswith(("teacher_", "cka_", "error_", "frequency_"))]


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.second = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def tapped(width: int) -> FeatureExtractor:
    torch.manual_seed(width)
    return wrap_module(Net(width), num_classes=4, image_size=8, levels=["first", "second"])


def diagnostics(student: FeatureExtractor, images: Tensor) -> Diagnostics:
    teacher = tapped(7)
    distillers = build_losses("uhkd", PairShapes(student.shapes, teacher.shapes, 4, 20), {"form": "pairs"})
    (method,) = distillers.values()
    sealed = Teacher(teacher, method.needs.target)
    calibrate(sealed, [Batch(images, None, None, torch.arange(len(images)))], CPU)
    return Diagnostics(student, images, nullcontext, sealed.reference(images), find_matching_loss(distillers))


def evaluation() -> Evaluation:
    return Evaluation({}, torch.eye(4)[torch.arange(20) % 3], torch.arange(20) % 4)


def test_noting_leaves_networks_modes_and_statistics_alone():
    student, images = tapped(5).train(), torch.rand(20, 3, 8, 8)
    noting = diagnostics(student, images)
    assert noting.match is not None
    noting.match.train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (student, noting.match)]
    noting.begin()
    noting.note(3)
    noting.end(evaluation())
    assert student.training and noting.match.training
    for module, state in zip((student, noting.match), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def test_the_error_of_each_coefficient_is_the_mean_square_after_alignment():
    student, images = tapped(5).eval(), torch.rand(20, 3, 8, 8)
    noting = diagnostics(student, images)
    assert noting.match is not None
    noting.note(3)
    with torch.no_grad():
        predicted = noting.match.eval().predict(student(images, frozenset({"maps"})).maps or ())
    error = noting.arrays()["error_1"][0]
    assert error.shape == (9,)
    for k in range(9):
        wanted = ((predicted[1][..., k] - noting.targets[1][..., k]) ** 2).mean().item()
        assert error[k] == pytest.approx(wanted, rel=1e-4)


def test_restore_goes_on_where_a_checkpoint_was_written():
    student, images = tapped(5), torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, broken, resumed = (diagnostics(student, images) for _ in range(3))
    for each in (whole, broken):
        each.begin()
        each.note(4)
    later = {k: v.clone() for k, v in student.state_dict().items()}
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(1.1)
    broken.note(8)  # was written, but the checkpoint is older
    broken.end(evaluation())
    student.load_state_dict(later)
    resumed.restore(broken.arrays(), step=4)
    assert resumed.arrays()["steps"].tolist() == [4]
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(1.2)
    for each in (whole, resumed):
        each.note(8)
        each.end(evaluation())
    one, two = whole.arrays(), resumed.arrays()
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name, strict=True)


def test_restoring_nothing_is_a_fresh_start():
    noting = diagnostics(tapped(5), torch.rand(20, 3, 8, 8))
    fresh = noting.arrays().keys()
    noting.restore({}, 0)
    assert noting.arrays().keys() == fresh


def test_first_images_takes_no_more_than_asked_and_no_more_than_there_are():
    batches = [Batch(torch.full((n, 3, 2, 2), float(n)), None, None, torch.arange(n)) for n in (3, 4)]

    def endless():
        yield from batches
        raise AssertionError("read beyond what was needed")

    images = first_images(endless(), 5)
    assert images[:, 0, 0, 0].tolist() == [3, 3, 3, 4, 4]
    assert len(first_images(batches, 100)) == 7


def test_a_run_that_stopped_before_its_first_evaluation_has_no_rows(tmp_path: Path):
    folder = RunFolder(tmp_path)
    noting = diagnostics(tapped(5), torch.rand(20, 3, 8, 8))
    noting.begin()
    folder.write_arrays(noting.arrays())
    assert "steps" not in folder.read_arrays() and "cka_start" in folder.read_arrays()
