"""Teachers of one's own: without head and without labels, several at once; and where the backbone goes afterwards."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import uhkd
from uhkd.__main__ import main
from uhkd.commands import export
from uhkd.data import open_data
from uhkd.evaluation.probe import fit_linear_probe, neighbour_logits, probe
from uhkd.models import create, wrap_module
from uhkd.recipe import DistillRecipe, RecipeError, build
from uhkd.reporting.plots import draw
from uhkd.training import fit, learner, trainer

MACHINE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
WORDS = MACHINE | {"image_size": 16, "batch_size": 20, "crop": "none", "flip": False}
CNN = {"channels": [8, 12, 16, 24]}
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2}
# timm's DINOv2 kind, made small: register tokens, no head
DINO = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings; tests that look at them draw them."""
    monkeypatch.setattr(fit, "draw", lambda run: [])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files: `labelled` with class folders, `pile` in nested folders that mean nothing, `flat` in one folder."""
    root, digits = tmp_path_factory.mktemp("own"), open_data("digits", train_limit=300)
    for part, source, count in (("train", digits.train, 300), ("val", digits.val, 100), ("test", digits.test, 60)):
        assert source is not None and source.labels is not None
        for i in range(count):
            picture = Image.fromarray(source.image(i).permute(1, 2, 0).numpy())
            places = [root / "labelled" / part / str(source.labels[i])]
            if part == "train":
                places += [root / "pile" / f"box{i % 3}" / ("deep" if i % 2 else "."), root / "flat"]
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
                picture.save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(images: Path) -> Path:
    """A CNN that knows digits; its backbone serves as the teacher without head."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        words = WORDS | {"epochs": 8, "optimizer": "sgd", "label_smoothing": 0.0}
        return uhkd.finetune(
            model="uhkd/resnet10", options=CNN, data=images / "labelled", out=images / "teacher", **words
        ).run.path


def pupil(images: Path, teacher: Any, out: str, **changes: Any) -> dict[str, Any]:
    words: dict[str, Any] = WORDS | {
        "student": "uhkd/vit_micro",
        "student_options": VIT,
        "epochs": 1,
        "teacher": teacher,
    }
    headless = {"teacher_options": {"num_classes": 0}, "data": images / "pile", "unlabelled": True}
    return words | headless | {"out": images / out} | changes


@pytest.fixture(scope="module")
def backbone(images: Path, teacher: Path) -> uhkd.Result:
    """A ViT that learned from the CNN's backbone and a pile of images, judged by k-NN."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        changes = {"epochs": 6, "lr": 3e-3, "method": "uhkd+rkd", "eval_every": 3, "probe_data": images / "labelled"}
        return uhkd.distill(**pupil(images, teacher, "backbone", **changes))


# probes


def test_neighbours_vote_by_cosine_and_fewer_than_asked_for_will_do():
    known = torch.tensor([[2.0, 0.0], [3.0, 0.1], [0.0, 1.0]])
    logits = neighbour_logits(known, torch.tensor([1, 1, 0]), torch.tensor([[5.0, 0.0], [0.0, 0.2]]), 3)
    votes = torch.exp(torch.nn.functional.normalize(known, dim=1) @ torch.tensor([1.0, 0.0]) / 0.07)
    shares = torch.stack([votes[2], votes[0] + votes[1], votes.new_tensor(0.0)]) / votes.sum()
    torch.testing.assert_close(logits[0], shares.clamp_min(1e-6).log())
    assert logits.argmax(1).tolist() == [1, 0]
    assert neighbour_logits(known, torch.tensor([1, 1, 0]), known[2:], 2, neighbours=1).argmax(1).tolist() == [0]


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_probe_is_measured_on_images_that_it_did_not_see(kind: Any):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = torch.nn.functional.one_hot(labels, 3).float() + 0.2 * torch.randn(120, 3, generator=generator)
    found = probe(kind, (x[:90], labels[:90]), (x[90:], labels[90:]), 3)
    assert len(found.logits) == 30
    assert found.metrics["accuracy"] > 0.9
    shuffled = labels[torch.randperm(90, generator=generator)]
    assert probe(kind, (x[:90], shuffled), (x[90:], labels[90:]), 3).metrics["accuracy"] < 0.7
    if kind == "linear":
        torch.testing.assert_close(found.logits, fit_linear_probe(x[:90], labels[:90], 3)(x[90:]).detach())


# folders without labels


def test_a_pile_of_images_in_any_folders_is_data_without_labels(images: Path):
    pile = open_data(images / "pile", labels=False, val_fraction=0.2)
    assert (pile.classes, pile.train.labels, pile.val.labels) == ((), None, None)
    assert (len(pile.train), len(pile.val)) == (240, 60)
    flat = open_data(images / "flat")
    assert (flat.classes, flat.train.labels, len(flat.train) + len(flat.val)) == ((), None, 300)
    assert any("no labels" in note for note in flat.notes)


def test_labels_left_aside_leave_the_parts_as_they_are(images: Path):
    for data in ("digits", images / "labelled"):
        with_labels, without = open_data(data), open_data(data, labels=False)
        assert (without.classes, without.train.labels) == ((), None)
        assert with_labels.fingerprint != without.fingerprint
        for part in ("train", "val", "test"):
            own, bare = getattr(with_labels, part), getattr(without, part)
            assert len(own) == len(bare)
            assert all(torch.equal(own.image(i), bare.image(i)) for i in range(0, len(own), 37))


def test_bad_files_of_a_pile_are_skipped_where_asked(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    data = open_data(tmp_path, labels=False, skip_bad_images=True, val_fraction=0.2)
    assert len(data.train) + len(data.val) == 6
    assert any("b.png" in note for note in data.notes)


# distilling without labels


def test_a_backbone_learns_from_a_backbone_without_any_label(backbone: uhkd.Result):
    result = backbone.run.read_result()
    start, end = result["probe"]["start"], backbone.metrics["val_accuracy"]
    print(f"k-NN: untrained {start:.3f}, distilled {end:.3f}, teacher {result['teacher_metrics']['accuracy']:.3f}")
    assert end > start + 0.15
    assert backbone.run.read_config()["num_classes"] == 0
    assert result["methods"]["uhkd"]["weights"]["inter"] == 0.0
    rows = backbone.run.read_metrics()
    assert 0 < rows[-1]["val_feature_error"] < 1.1
    assert all(0 <= row["val_cka"] <= 1 for row in rows)
    assert all(p.requires_grad for p in backbone.student.parameters())
    assert "val_prediction" not in backbone.run.read_arrays()  # of other images than the run's own


def test_what_a_run_without_head_is_good_for(backbone: uhkd.Result, images: Path, capsys: pytest.CaptureFixture[str]):
    run = str(backbone.run.path)
    network = uhkd.load_run(run)
    assert network.shapes.logits is None
    said = network(torch.rand(2, 3, 16, 16), frozenset({"embedding"})).embedding
    assert said is not None and said.shape == (2, 24)
    # on the validation part the verb finds what the training found
    found = uhkd.evaluate(run=run, split="val", probe="knn")
    assert found["accuracy"] == pytest.approx(backbone.metrics["val_accuracy"], abs=0.011)
    assert uhkd.evaluate(run=run, data=images / "labelled", probe="linear")["accuracy"] > 0.3
    with pytest.raises(ValueError, match=r"has no head.*--probe knn"):
        uhkd.evaluate(run=run)
    with pytest.raises(ValueError, match="no labels to fit a probe on"):
        uhkd.evaluate(run=run, data=images / "flat", probe="knn")
    with pytest.raises(ValueError, match="no classes to predict"):
        uhkd.predict(run=run, images=(str(images / "flat"),))
    assert [path.name for path in draw(backbone.run)] == ["curves.png", "spectra.png", "cka.png"]
    paths = export(run=run, to=("safetensors",), data=str(images / "labelled"), out=str(images / "exported"))
    opened = uhkd.load_run(paths["safetensors"]["path"])
    assert opened.shapes.logits is None
    assert "without a head" in (images / "exported" / "safetensors" / "README.md").read_text()
    capsys.readouterr()


def test_going_on_without_labels_is_exact(images: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch):
    words = pupil(images, teacher, "whole", epochs=2, train_limit=60, data=images / "flat", unlabelled=False)
    whole = uhkd.distill(**words)
    assert "val_cka" in whole.metrics and "val_accuracy" not in whole.metrics
    take, steps = trainer.TrainStep.__call__, []

    def stopping(self: Any, *given: Any) -> None:
        steps.append(given[1])
        if len(steps) == 5:
            raise KeyboardInterrupt
        take(self, *given)

    monkeypatch.setattr(trainer.TrainStep, "__call__", stopping)
    words |= {"out": images / "halved", "checkpoint_minutes": 1e-6}
    with pytest.raises(KeyboardInterrupt):
        uhkd.distill(**words)
    again = uhkd.distill(**words, resume=True)
    one, other = (load_file(run.run.weights) for run in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_with_a_head_gives_its_student_its_classes(images: Path, teacher: Path):
    changes = {"teacher_options": {}, "method": "kd", "train_limit": 60}
    result = uhkd.distill(**pupil(images, teacher, "headed", **changes))
    assert result.run.read_config()["classes"] == [str(i) for i in range(10)]
    assert 0 <= result.metrics["val_agreement"] <= 1
    stored = uhkd.cache(
        teacher=teacher, data=images / "pile", unlabelled=True, out=images / "cache", views=1, train_limit=60, **MACHINE
    )
    assert stored.manifest.teacher_metrics == {}
    words = pupil(images, None, "from-cache", method="kd", teacher_options={}, teacher_cache=images / "cache")
    words = {k: v for k, v in words.items() if k not in ("crop", "flip", "teacher")} | {"train_limit": 60}
    assert uhkd.distill(**words).student.shapes.logits == 10


def test_a_small_dinov2_teaches_the_end_of_a_network_only_by_its_embedding(
    images: Path, capsys: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    module = timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, **DINO)
    own = wrap_module(module, num_classes=0, image_size=32)
    assert own.shapes.logits is None and own.shapes.maps[0] == (24, 8, 8)
    words = pupil(images, own, "dino", data=images / "flat", unlabelled=False, teacher_options={}, train_limit=40)
    before = create("uhkd/vit_micro", num_classes=0, image_size=16, options=VIT)
    student = uhkd.distill(**words).student
    said = capsys.readouterr().err
    assert "without labels its accuracy is unknown" in said
    assert "48 parameters of the student receive no gradient" in said
    assert torch.equal(student.module.get_parameter("norm.weight"), before.module.get_parameter("norm.weight"))
    uhkd.distill(**words | {"out": images / "dino-rkd", "method": "uhkd+rkd"})
    assert "receive no gradient" not in capsys.readouterr().err


def test_an_untrained_teacher_is_found_out_where_labelled_images_judge_it(images: Path, teacher: Path):
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    flat = wrap_module(torch.nn.Sequential(*layers), num_classes=0, image_size=16, levels=0)
    torch.nn.init.zeros_(flat.module[0].weight)
    words = pupil(
        images, flat, "weak", method="rkd", teacher_options={}, probe_data=images / "labelled", probe="linear"
    )
    with pytest.raises(ValueError, match=r"at chance level on these images .* 10 classes"):
        uhkd.distill(**words)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "kd"}, "kd compares logits, and this teacher has none; choose fitnet, at, "),
        ({"method": "uhkd+dkd", "teacher_options": {}}, "dkd needs the labelled class"),
        ({"method": "scratch"}, "scratch only uses labels, and these images have none"),
        ({"teacher_head": "probe"}, "teacher_head=probe trains a head on labels, and these images have none"),
        ({"weights": {"kl": 1.0}}, "uhkd needs student logits, and the student has none"),
        ({"probe_data": "flat"}, "has no labels: expected class folders"),
        (
            {"data": "digits", "unlabelled": False, "probe_data": "labelled"},
            "probe_data evaluates a training without labels",
        ),
        ({"student": "torchvision/squeezenet1_0", "student_options": {}}, "does not end with a linear layer"),
    ],
)
def test_what_cannot_be_without_labels_is_said_before_anything_is_written(
    images: Path, teacher: Path, changes: dict[str, Any], says: str
):
    changes = {k: images / v if k == "probe_data" else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=says):
        uhkd.distill(**pupil(images, teacher, "refused", **changes))
    assert not (images / "refused").exists()


# several teachers


def test_several_teachers_speak_over_one_pass_of_the_student(
    images: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    other = wrap_module(
        timm.create_model("vit_small_patch14_reg4_dinov2", pretrained=False, **DINO), num_classes=0, image_size=32
    )
    words = WORDS | {"student": "uhkd/vit_micro", "student_options": VIT, "epochs": 2, "data": images / "labelled"}
    words |= {"train_limit": 60, "allow_weak_teacher": True, "checkpoint_minutes": 1e-6, "balance": "constant"}
    mix: list[dict[str, Any]] = [
        {"teacher": str(teacher), "method": "kd", "settings": {"temperature": 2.0}, "share": 3},
        {"teacher": other, "method": "uhkd+rkd", "weights": {"features": 10.0}, "head": "probe"},
    ]
    passes: list[int] = []
    forward = learner.StudentWithLosses.forward
    monkeypatch.setattr(
        learner.StudentWithLosses, "forward", lambda self, *given: passes.append(1) or forward(self, *given)
    )
    whole = uhkd.distill(teachers=mix, out=images / "two", **words)
    # steps, of both teachers together, a look at the gradients after each epoch, and eight for unused parameters
    assert len(passes) == 6 + 2 + 8
    terms = {"1:kd.kl", "2:uhkd.features", "2:uhkd.inter", "2:rkd.angle", "ce"}
    assert terms <= whole.metrics.keys()
    result = whole.run.read_result()
    assert [one["share"] for one in result["teachers"]] == [0.75, 0.25]
    assert result["methods"]["2:uhkd"]["weights"]["features"] == 10.0
    assert "error_0" in whole.run.read_arrays()  # of the second, which alone matches features
    assert whole.run.probe_of(2).is_file() and not whole.run.probe_of(1).exists()
    # the loss is the weighted sum: a share times each weight
    row = whole.run.read_metrics()[0]
    weights = {"ce": 1.0, "1:kd.kl": 0.75, "2:uhkd.features": 2.5, "2:uhkd.relations": 75.0}
    weights |= {"2:uhkd.inter": 0.25, "2:uhkd.intra": 0.25, "2:rkd.distance": 6.25, "2:rkd.angle": 12.5}
    assert row["loss"] == pytest.approx(sum(weights[name] * row[name] for name in weights), rel=1e-4)
    # and it goes on exactly
    take, steps = trainer.TrainStep.__call__, []

    def stopping(self: Any, *given: Any) -> None:
        steps.append(given[1])
        if len(steps) == 5:
            raise KeyboardInterrupt
        take(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.TrainStep, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            uhkd.distill(teachers=mix, out=images / "two-halves", **words)
    again = uhkd.distill(teachers=mix, out=images / "two-halves", resume=True, **words)
    one, other = (load_file(run.run.weights) for run in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_list_of_one_teacher_is_that_teacher_and_equal_ones_teach_what_one_does(images: Path, teacher: Path):
    words = pupil(
        images, teacher, "single", teacher_options={}, data=images / "labelled", unlabelled=False, train_limit=40
    )
    one = uhkd.distill(**words)
    assert (
        uhkd.distill(**words | {"teacher": [str(teacher)], "out": images / "listed"}).metrics["loss"]
        == one.metrics["loss"]
    )
    both = uhkd.distill(**words | {"teacher": [teacher, str(teacher)], "method": "kd", "out": images / "both"})
    kd = uhkd.distill(**words | {"method": "kd", "out": images / "kd"})
    # half of each of two equal terms
    assert both.metrics["loss"] == pytest.approx(kd.metrics["loss"], rel=1e-4)
    assert both.metrics["1:kd.kl"] == pytest.approx(both.metrics["2:kd.kl"], rel=1e-5)


def test_words_on_several_teachers():
    base = {"student": "uhkd/vit_micro", "data": "digits"}
    assert build(DistillRecipe, base | {"teacher": ["a"]}).teacher == "a"
    weighed = build(DistillRecipe, base | {"weights": {"ce": 0.5}, "teachers": [{"teacher": "a", "method": "kd"}]})
    assert weighed.weights == {"ce": 0.5}
    assert build(DistillRecipe, base | {"teacher": ["a", "b"]}).teacher == ("a", "b")
    several = [{"teacher": "a"}, {"teacher": "b", "method": "kd"}]
    recipe = build(DistillRecipe, base | {"settings": {"radius": 2}, "teachers": several})
    first, second = (one for one, _ in recipe.teacher_recipes())
    assert (first.teacher, first.method, first.settings) == ("a", "uhkd", {"radius": 2})
    assert (second.teacher, second.method, second.settings) == ("b", "kd", {})
    for words, says in (
        ({"teacher": "a", "teachers": [{"teacher": "b"}]}, "teachers: replaces teacher"),
        ({"teacher": ["a", "b"], "teacher_cache": "c"}, "teacher_cache: contains the outputs of one teacher"),
        ({"teacher": ["a", "b"], "teacher_levels": ["1"]}, "teacher_levels: names layers of one teacher"),
        ({"teacher": 5}, "teacher: expected the name of a teacher, or a list of names, found 5"),
        (
            {"teachers": [{"teacher": "a"}, {"teacher": "b", "weights": {"ce": 0.5}}]},
            "teachers.1.weights.ce: the cross-entropy belongs to no teacher; set it in the recipe's weights",
        ),
        ({"teachers": [{"method": "kd"}]}, "teachers.0.teacher: required but not given"),
        ({"teachers": [{"teacher": "a", "metod": "kd"}]}, "teachers.0.metod: unknown key; did you mean 'method'"),
        (
            {"teachers": [{"teacher": "a", "head": "none"}]},
            "teachers.0.head: expected auto, keep or probe, found 'none'",
        ),
    ):
        with pytest.raises(RecipeError, match=says):
            build(DistillRecipe, base | words)


def test_teachers_of_other_classes_cannot_share_a_head_that_no_label_orders():
    from dataclasses import replace

    from uhkd.training.teachers import PreparedTeacher, student_classes

    words = {"teacher": "a", "student": "uhkd/vit_micro", "data": "digits"}
    recipe, data = build(DistillRecipe, words), open_data("digits")
    unlabelled = replace(data, classes=())

    def voice(name: str, classes: tuple[str, ...], method: str = "kd") -> PreparedTeacher:
        network = uhkd.models.create("uhkd/resnet10", num_classes=3, image_size=16, options=CNN)
        network.config = replace(network.config, classes=classes)
        heard = recipe.model_copy(update={"teacher": name, "method": method})
        return PreparedTeacher(heard, network, {"kl": 1.0} if method == "kd" else {}, 0.5, {})

    names = ("ant", "bee", "fly")
    first, other = voice("runs/a", names), voice("runs/b", ("bee", "ant", "fly"))
    assert student_classes(unlabelled, [first, voice("runs/b", names)]) == (3, names)
    assert student_classes(unlabelled, [first, voice("runs/b", other.names, "rkd")]) == (3, names)
    assert student_classes(data, [first, other])[0] == 10
    with pytest.raises(ValueError, match=r"^the teachers runs/a and runs/b have other classes, or the same in [^\n]+$"):
        student_classes(unlabelled, [first, other])


def test_what_is_said_of_loss_and_next_steps_is_true_without_labels(capsys: pytest.CaptureFixture[str]):
    from uhkd.training.setup import log_loss
    from uhkd.training.summary import usage_hints

    log_loss({"ce": 1.0, "uhkd.features": 2.0, "rkd.angle": 3.0}, labels=False)
    log_loss({"ce": 1.0, "rkd.angle": 3.0}, labels=False)
    assert capsys.readouterr().err == "  weights of the loss terms: 2 uhkd.features, 3 rkd.angle\n"
    log_loss({"ce": 1.0, "rkd.angle": 3.0}, labels=True, balance="lead")
    assert "terms: 1 ce, 3 rkd.angle (balance lead changes them; the value of" in capsys.readouterr().err
    usual: dict[str, Any] = {"verb": "distill", "metrics": {"val_accuracy": 0.5}}
    assert "compare --pairs" in " ".join(usage_hints(Path("runs/a"), usual, headless=False))
    for more in ({"teachers": [{}, {}]}, {"probe": {}}, {"metrics": {}}, {"verb": "finetune"}):
        assert "compare" not in " ".join(usage_hints(Path("runs/a"), usual | more, headless=False))


def test_a_dry_run_refuses_what_cannot_judge_or_be_told(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from uhkd.training import loggers

    line = ["distill", "--teacher", "uhkd/resnet10", "--student", "uhkd/vit_micro", "--dry-run", "--data"]
    assert main([*line, str(images / "pile"), "--unlabelled", "--probe-data", str(images / "flat")]) == 2
    assert "has no labels: expected class folders" in capsys.readouterr().err
    assert main([*line, "digits", "--probe-data", str(images / "labelled")]) == 2
    assert "probe_data evaluates a training without labels" in capsys.readouterr().err
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    assert main([*line, "digits", "--log", "wandb"]) == 2
    assert "log wandb: the package wandb is missing" in capsys.readouterr().err


def test_the_command_line_takes_several_teachers_and_probes(
    images: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = "--student uhkd/vit_micro --student-options embed_dim=24 depth=3 num_heads=2 --epochs 1 --batch-size 20"
    tiny += f" --image-size 16 --train-limit 40 --device cpu --precision fp32 --workers 0 --data {images / 'flat'}"
    mix = f"{{teacher: {teacher}, options: {{num_classes: 0}}, method: rkd}}"
    argv = [
        "distill",
        *tiny.split(),
        "--teachers",
        mix,
        mix,
        "--out",
        str(images / "cli"),
        "--probe-data",
        str(images / "labelled"),
    ]
    assert main(argv) == 0
    said = "".join(capsys.readouterr())
    assert "teacher 2 of 2" in said and "k-NN" in said and "untrained" in said
    assert main(["eval", str(images / "cli"), "--probe", "linear"]) == 0
    assert "linear probe" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", "--pairs", str(images / "cli"), "--out", str(images / "compared")]) == 2
    assert "has several teachers, a pair of a comparison has one" in capsys.readouterr().err


# in other models


def _example() -> Any:
    file = Path(__file__).parents[2] / "examples" / "backbone_elsewhere.py"
    spec = importlib.util.spec_from_file_location("backbone_elsewhere", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_distilled_backbone_is_the_body_of_a_detector_and_of_a_segmenter(images: Path, teacher: Path):
    words = pupil(
        images, teacher, "resnet", student="torchvision/resnet18", student_options={}, train_limit=40, image_size=32
    )
    run = uhkd.distill(**words | {"method": "rkd"}).run
    weights, example = load_file(run.weights), _example()
    torch.manual_seed(0)
    picture = torch.zeros(2, 3, 64, 64)
    picture[:, :, 16:48, 16:48] = 1.0
    boxes = [{"boxes": torch.tensor([[16.0, 16.0, 48.0, 48.0]]), "labels": torch.tensor([1])}] * 2
    masks = picture[:, 0].long()
    detector, segmenter = example.detector(run.path, 2, size=64).train(), example.segmenter(run.path, 2).train()
    for body in (detector.backbone.body, segmenter.backbone):
        in_memory = body.state_dict()
        assert "layer4.1.conv2.weight" in in_memory
        assert all(torch.equal(in_memory[name], weights[name]) for name in in_memory)
    steps = (
        (detector, lambda: example.detection_step(detector, list(picture), boxes)),
        (segmenter, lambda: example.segmentation_step(segmenter, picture, masks)),
    )
    for model, loss_of in steps:
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), []
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], losses


def test_a_distilled_backbone_of_timm_gives_feature_maps(images: Path, teacher: Path):
    words = pupil(
        images, teacher, "timm", student="timm/test_resnet", student_options={}, train_limit=40, image_size=32
    )
    run = uhkd.distill(**words | {"method": "rkd"}).run
    weights = load_file(run.weights)
    maps = timm.create_model("test_resnet", pretrained=False, features_only=True)
    maps.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in maps.state_dict().items())
    with torch.no_grad():
        assert len(maps.eval()(torch.rand(1, 3, 32, 32))) == 5
    folder = export(run=str(run.path), to=("timm",), data=str(images / "labelled"), out=str(images / "timm-form"))
    network = timm.create_model(f"local-dir:{folder['timm']['path']}", pretrained=True)
    assert network.num_classes == 0
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
