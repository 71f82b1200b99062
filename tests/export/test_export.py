"""Students that leave: opened by the libraries that others would use, alone in a new process too, and asked real images."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import uhkd
from uhkd import export as forms
from uhkd.__main__ import main
from uhkd.commands import export
from uhkd.data import eval_loader, open_data
from uhkd.models import create, load_run, wrap_module
from uhkd.runs import RunFolder
from uhkd.training import fit

NETWORKS: dict[str, dict[str, Any]] = {
    "timm/test_vit": {"image_size": 160, "batch_size": 20},
    "timm/test_resnet": {"image_size": 32, "batch_size": 20},
    "uhkd/mixer_micro": {"image_size": 16, "batch_size": 20, "options": {"embed_dim": 32, "num_blocks": 2}},
    "torchvision/resnet18": {"image_size": 32, "batch_size": 20},
}
TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 40,
    "epochs": 1,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each network, its name with _ for /."""
    place = tmp_path_factory.mktemp("runs")
    for name, words in NETWORKS.items():
        uhkd.finetune(model=name, start="random", out=str(place / name.replace("/", "_")), **TINY | words)
    return place


def images_for(run: Path) -> Tensor:
    network = load_run(run)
    return next(iter(eval_loader(open_data("digits").val, network.input_size, batch_size=7))).image


def by_timm(path: Path) -> forms.Predictor:
    """As timm's own users would: its transform's numbers, its loader."""
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    said = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(said[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]
    return lambda image: model((image - mean) / std)


def by_export(path: Path) -> forms.Predictor:
    files = {"card.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(files["card.json"])["classes"] == [str(i) for i in range(10)]
    return program.module()


def by_onnx(path: Path) -> forms.Predictor:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["uhkd.classes"]) == [str(i) for i in range(10)]
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def by_openvino(path: Path) -> forms.Predictor:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(path)
    assert json.loads(model.get_rt_info(["uhkd", "classes"]).value) == [str(i) for i in range(10)]
    assert json.loads(model.get_rt_info(["uhkd", "card"]).value)["classes"] == [str(i) for i in range(10)]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


OPENERS: dict[str, Callable[[Path], forms.Predictor]] = {
    "safetensors": lambda path: lambda image: uhkd.load_run(path)(image).logits,
    "timm": by_timm,
    "pt2": by_export,
    "onnx": by_onnx,
    "openvino": by_openvino,
    "int8": lambda path: forms.reopen("int8", path),
    "onnx-int8": by_onnx,
}
EXACT = ("safetensors", "timm", "pt2", "onnx", "openvino")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "uhkd/mixer_micro" else pytest.mark.slow) for n in NETWORKS]
)
def test_others_open_it_and_it_says_the_same(runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    run = runs / name.replace("/", "_")
    wanted = [form for form in EXACT if form != "timm" or name.startswith("timm/")]
    found = export(run=str(run), to=wanted, out=str(tmp_path / "out"), images=16)
    assert list(found) == wanted
    table = capsys.readouterr().out
    assert "differs" in table and "accuracy" not in table and table.count("100.0%") == len(wanted)
    images, network = images_for(run), load_run(run)
    with torch.no_grad():
        expected = network(images).logits / network.config.temperature
        for form, row in found.items():
            answer = OPENERS[form](row["path"])
            for count in (1, 3, 7):
                torch.testing.assert_close(answer(images[:count]), expected[:count], rtol=1e-4, atol=1e-5)
            assert row["agrees"] == 1.0 and row["differs"] < 1e-4 and row["mb"] > 0 and row["ms"] > 0
            for file in (tmp_path / "out" / form).iterdir():
                assert str(Path(uhkd.__file__).parent).encode() not in file.read_bytes()  # nothing of this machine
    names = set(network.module.state_dict())
    assert set(load_file(found["safetensors"]["path"] / "model.safetensors")) == names  # the module's own


def test_a_student_says_who_taught_it_and_by_what_licence(runs: Path, tmp_path: Path):
    words = TINY | {
        "student": "uhkd/resnet10",
        "student_options": {"channels": [8, 8, 16, 16]},
        "batch_size": 20,
        "method": "kd",
    }
    teacher = str(runs / "timm_test_resnet")
    uhkd.distill(**words, teacher=teacher, out=str(tmp_path / "run"), image_size=16, allow_weak_teacher=True)
    found = export(run=str(tmp_path / "run"))
    folder = found["safetensors"]["path"]
    assert folder == tmp_path / "run" / "export" / "safetensors"
    card = (folder / "README.md").read_text()
    for said in (
        "# uhkd/resnet10, 10 classes",
        "Distilled with uhkd from timm/test_resnet (a run of uhkd), method kd.",
        "| licence of the teacher's weights | yours: trained from random weights in a run of uhkd |",
        "| epochs, batch, seed | 1, 20, 0 |",
        f"| uhkd | {uhkd.__version__} ",
        "| validation accuracy, last epoch | ",
        "Classes: 0, 1",
        "optimizer: adamw",
        "it was not tested for bias",
    ):
        assert said in card
    assert str(tmp_path) not in card and str(runs) not in card  # places on this machine are nobody's business
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "other" and metadata["pipeline_tag"] == "image-classification"
    assert metadata["datasets"] == ["digits"] and "library_name" not in metadata
    accuracy = RunFolder(tmp_path / "run").read_result()["metrics"]["val_accuracy"]
    measured = metadata["model-index"][0]["results"][0]["metrics"][0]
    assert measured["value"] == pytest.approx(accuracy, abs=1e-4)
    from uhkd.export.card import _licence

    assert _licence("timm/resnet18", None) == "apache-2.0"
    assert _licence("torchvision/resnet18", None) == "unknown: ask the authors of the weights"
    began = runs / "timm_test_resnet" / "recipe.yaml"
    copy = tmp_path / "pretrained"
    copy.mkdir()
    (copy / "recipe.yaml").write_text(began.read_text().replace("start: random", "start: pretrained"))
    assert _licence(str(copy), None) == "apache-2.0"  # of timm/test_resnet's own weights


@pytest.mark.parametrize("command", ["command", "verb"])  # now and in results of older versions
def test_no_place_of_this_machine_is_on_a_card(command: str, tmp_path: Path):
    from dataclasses import replace

    from uhkd.export.card import card_text

    secret = "/home/alice/lab"
    network = create("uhkd/resnet10", num_classes=10, image_size=16, options={"channels": [8, 8, 16, 16]}).eval()
    network.config = replace(network.config, name=f"folder/{secret}/net")
    run = RunFolder(tmp_path)
    result = {
        command: "distill",
        "teacher": f"{secret}/a and timm/resnet18",
        "method": "kd and uhkd",
        "teachers": [{"teacher": f"{secret}/a"}, {"teacher": "timm/resnet18"}],
        "data": f"{secret}/images",
        "probe": {"kind": "knn", "data": f"{secret}/judged", "by": f"k-NN on {secret}/judged"},
        "metrics": {"val_accuracy": 0.9},
    }
    recipe = {
        "teachers": [{"teacher": f"{secret}/a", "options": {"file": f"{secret}/b"}}, {"teacher": "timm/resnet18"}],
        "probe_data": f"{secret}/judged",
        "student_options": {"nested": [{"file": f"{secret}/weights.pt"}], "home": "~alice/w", "up": "../alice/w"},
        "teacher_options": {"from": f"timm/local-dir:{secret}/c", "win": "C:\\Users\\alice\\d"},
        "student_start": f"transformers/{secret}/vit",
        "settings": {"relative": "alice/e", "base": "torchvision/resnet18"},
    }
    run.path.joinpath("result.json").write_text(json.dumps(result))
    run.path.joinpath("recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = card_text(str(tmp_path), network, {"safetensors": "."}, {})
    assert "alice" not in card and str(tmp_path) not in card
    assert "Distilled with uhkd from a and timm/resnet18, method kd and uhkd." in card
    assert (
        "| validation accuracy, last epoch, k-NN on judged | 90.00% |" in card and "base: torchvision/resnet18" in card
    )
    assert "| licence of the teacher's weights | unknown: ask the authors of the weights; apache-2.0 |" in card
    assert "model-index" not in yaml.safe_load(card.split("---")[1])  # no accuracy of the network on its data


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit as a file that is no square: it has to be cut."""
    image = open_data("digits").val.image(5)
    pixels = image.permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    file = tmp_path_factory.mktemp("picture") / "some.png"
    Image.fromarray(pixels).resize((48, 32)).save(file)
    return file


@pytest.fixture(scope="module")
def quantized_forms(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All forms of a small CNN that learned something, those of 8-bit integers too."""
    out = tmp_path_factory.mktemp("forms")
    run = str(runs / "timm_test_resnet")
    return export(run=run, to=list(forms.FORMS), out=str(out), images=16, calibrate=64, max_drop=100)


# forms that one process runs one after the other, and what it must not have
GROUPS = [
    pytest.param(("onnx", "onnx-int8"), ("uhkd", "torch", "timm"), id="onnxruntime"),
    pytest.param(("openvino",), ("uhkd", "torch", "timm"), id="openvino"),
    pytest.param(("pt2", "int8", "timm"), ("uhkd",), id="torch, then torchao, then timm", marks=pytest.mark.slow),
    pytest.param(("safetensors",), (), id="uhkd", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("group", "absent"), GROUPS)
def test_its_card_runs_in_a_new_process_with_its_own_library_alone(
    quantized_forms: dict[str, dict[str, Any]],
    runs: Path,
    picture: Path,
    group: tuple[str, ...],
    absent: tuple[str, ...],
):
    written = f"import os, sys\nfor name in {absent}:\n    sys.modules[name] = None\n"
    for form in group:
        path = quantized_forms[form]["path"]
        folder = path if path.is_dir() else path.parent
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        written += f"os.chdir({str(folder)!r})\n{code.replace('some.jpg', str(picture))}\n"
        written += "assert not {'timm', 'torchao'} & set(sys.modules)\n" if form == "pt2" else ""
    done = subprocess.run([sys.executable, "-c", written], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    named = uhkd.predict(run=str(runs / "timm_test_resnet"), images=[str(picture)])[str(picture)][0][0]
    said = [line.rpartition(": ")[2].split(" ")[0] for line in done.stdout.strip().splitlines()]
    assert said == [named] * len(group)


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
def test_the_example_names_classes(quantized_forms: dict[str, dict[str, Any]], runs: Path, picture: Path, form: str):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "deploy.py"))
    answers = example["classify"](str(quantized_forms[form]["path"]), [str(picture), str(picture)])
    ((name, odds), *_) = uhkd.predict(run=str(runs / "timm_test_resnet"), images=[str(picture)])[str(picture)]
    assert [said for said, _ in answers] == [name] * 2
    assert answers[0][1] == pytest.approx(
        odds, abs=0.02 if form == "onnx" else 0.1
    )  # Pillow resizes a little otherwise


def test_int8_is_small_and_tells_what_it_costs(quantized_forms: dict[str, dict[str, Any]], runs: Path):
    run = runs / "timm_test_resnet"
    network, images = load_run(run), images_for(run)
    data = open_data("digits")
    loader = eval_loader(data.test or data.val, network.input_size, batch_size=500)
    everything = next(iter(loader))
    for form, float_form in (("int8", "pt2"), ("onnx-int8", "onnx")):
        row = quantized_forms[form]
        assert row["mb"] < 0.5 * quantized_forms[float_form]["mb"]
        answer = OPENERS[form](row["path"])
        for count in (1, 3, 7):
            assert answer(images[:count]).shape == (count, 10)
        with torch.no_grad():
            one, other = network(everything.image).logits, answer(everything.image)
        for logits, name in ((one, "accuracy_before"), (other, "accuracy")):
            assert row[name] == pytest.approx(float((logits.argmax(1) == everything.label).double().mean()), abs=1e-9)
        assert row["agrees"] == pytest.approx(float((one.argmax(1) == other.argmax(1)).double().mean()), abs=1e-9)
        assert row["images"] == len(everything.label) and row["calibrated"] == 40  # all there are
        card = (row["path"].parent / "README.md").read_text()
        assert f"Accuracy {row['accuracy_before']:.2%} before, {row['accuracy']:.2%} in 8-bit integers" in card
        assert f"{row['agrees']:.1%} of the predictions are equal. Calibrated on 40 training images." in card


@pytest.mark.parametrize("form", [pytest.param("int8", marks=pytest.mark.slow), "onnx-int8"])
def test_int8_that_loses_too_much_is_refused(
    runs: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    opened = forms.reopen

    def wrong(form: Any, path: Path) -> forms.Predictor:
        answer = opened(form, path)
        return (lambda image: -answer(image)) if form in forms.QUANTIZED else answer

    monkeypatch.setattr(forms, "reopen", wrong)
    run = runs / "uhkd_mixer_micro"
    asked = ["export", str(run), "--to", "safetensors", form, "--out", str(tmp_path), "--max-drop", "0"]
    code = main(asked)
    said = capsys.readouterr().err
    network, data = load_run(run), open_data("digits")
    everything = next(iter(eval_loader(data.test or data.val, network.input_size, batch_size=500)))
    with torch.no_grad():
        logits = network(everything.image).logits
    before, after = (float((x.argmax(1) == everything.label).double().mean()) for x in (logits, -logits))
    assert before > after, "the run learned nothing: nothing can be lost"
    assert code == 2 and re.search(
        rf"{form}: accuracy falls by \d+\.\d\d points, from {before:.2%} to \d+\.\d\d% on {len(logits)} images, --max-drop "
        r"allows 0; try another --calibrate \(now 40 images\)",
        said,
    )
    assert not (tmp_path / form).exists() and (tmp_path / "safetensors" / "model.safetensors").is_file()


def test_an_answer_that_differs_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forms.ExportModule, "forward", lambda self, image: self.module(image))  # forgets to normalise
    with pytest.raises(ValueError, match=r"model\.pt2 gives other outputs than PyTorch: its logits differ by up to"):
        export(run=str(runs / "timm_test_resnet"), to=["pt2"], out=str(tmp_path / "out"))


def test_a_network_that_mixes_its_batch_is_noticed(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forward(self: forms.ExportModule, image: Tensor) -> Tensor:
        return self.module((image - self.mean) / self.std) + image.mean()

    monkeypatch.setattr(forms.ExportModule, "forward", forward)
    with pytest.raises(ValueError, match=r"^pt2 gives another output for an image in a batch than alone"):
        export(run=str(runs / "timm_test_resnet"), to=["pt2"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "pt2").exists()


class Fixed(nn.Module):
    """Counts its batch in Python: nothing that torch can follow for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        weight = float(np.log(int(x.shape[0]) + 1)) * 0 + 1
        return self.linear(x.mean((2, 3))) * (weight if float(x.mean()) < 1e9 else 0.0)


def test_what_cannot_be_exported_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
):
    mixer, resnet = runs / "uhkd_mixer_micro", runs / "timm_test_resnet"

    def said(run: Path, form: str, out: str = "a") -> str:
        assert main(["export", str(run), "--to", form, "--out", str(tmp_path / out)]) == 2
        return capsys.readouterr().err

    assert "uhkd/mixer_micro is no architecture of timm: leave timm out of --to" in said(mixer, "timm")
    (tmp_path / "b" / "pt2").mkdir(parents=True)
    (tmp_path / "b" / "pt2" / "mine.txt").write_text("x")
    assert "pt2 already exists and is not empty; delete it, or choose another --out" in said(resnet, "pt2", "b")
    assert "is no run folder" in said(tmp_path / "b", "pt2")
    assert "to: expected safetensors, timm, pt2, onnx, openvino, int8 or onnx-int8, found 'tflite'" in said(
        resnet, "tflite"
    )
    network = load_run(resnet)
    network.module = Fixed()
    with pytest.raises(
        ValueError, match=r"torch cannot export Fixed with a variable batch size .* export it as safetensors"
    ):
        forms.write("pt2", network, tmp_path / "c")
    probed = load_run(resnet)
    assert probed.shapes.embedding is not None
    probed.set_probe(nn.Linear(probed.shapes.embedding, 3))
    with pytest.raises(ValueError, match="with a linear probe in place of its head cannot be exported"):
        forms.write("onnx", probed, tmp_path / "d")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ValueError, match=r"onnx: the package onnxruntime is missing: pip install 'uhkd\[onnx\]'"):
        forms.write("onnx", load_run(resnet), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_dry_run_refuses_int8_that_no_label_judges(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "unlabelled"
    shutil.copytree(runs / "uhkd_mixer_micro", run)
    with (run / "recipe.yaml").open("a") as recipe:
        recipe.write("unlabelled: true\n")
    assert main(["export", str(run), "--to", "onnx-int8", "--dry-run"]) == 2
    assert "int8 is checked by its accuracy" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "onnx", "--dry-run"]) == 0


@pytest.mark.slow
def test_opset_and_variable_image_size(runs: Path, tmp_path: Path):
    run, onnx = runs / "timm_test_vit", pytest.importorskip("onnx")
    words: dict[str, Any] = {"opset": 18, "dynamic_size": True, "images": 2}
    found = export(run=str(run), to=["onnx", "pt2", "openvino"], out=str(tmp_path / "out"), **words)
    written = onnx.load(found["onnx"]["path"])
    assert [entry.version for entry in written.opset_import if not entry.domain] == [18]
    variable = "Height and width of the images are variable."
    assert found["onnx"]["format"] == f"ONNX opset 18, IR version {written.ir_version}. {variable}"
    assert found["pt2"]["format"] == found["openvino"]["format"] == variable
    assert found["onnx"]["format"] in (tmp_path / "out" / "onnx" / "README.md").read_text()
    network = load_run(run)
    height, width = network.input_size
    for image in (torch.rand(2, 3, height + 32, width), torch.rand(1, 3, height, 2 * width)):
        with torch.no_grad():
            expected = forms.ExportModule(network).eval()(image)
            for form, row in found.items():
                torch.testing.assert_close(OPENERS[form](row["path"])(image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("timm_test_resnet", {"to": ["pt2"], "opset": 18}, "--opset is for onnx and onnx-int8, and --to has pt2"),
        (
            "timm_test_resnet",
            {"to": ["pt2"], "dynamic_size": True},
            "64 x 96 pixels: the network allows no variable size",
        ),
        ("timm_test_resnet", {"to": ["onnx"], "opset": 15}, "cannot be written with opset 15: leave out --opset"),
        ("timm_test_resnet", {"to": ["onnx"], "opset": 999}, r"onnx \S+ has opsets up to \d+, --opset is 999"),
        ("timm_test_resnet", {"to": ["int8"], "dynamic_size": True}, "--dynamic-size is for pt2, onnx, openvino"),
        ("uhkd_mixer_micro", {"to": ["onnx"], "dynamic_size": True}, "cannot export .* with a variable image size"),
    ],
)
def test_what_a_form_or_network_does_not_allow_is_refused(
    runs: Path, tmp_path: Path, name: str, words: dict[str, Any], message: str
):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=message):
        export(run=str(runs / name), out=str(tmp_path / "out"), **words)
    assert not list(tmp_path.rglob("*.*"))


def test_other_outputs_at_another_size_are_an_error(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened, size = forms.reopen, load_run(runs / "timm_test_vit").input_size

    def wrong(form: Any, path: Path) -> forms.Predictor:
        answer = opened(form, path)
        return lambda image: answer(image) if image.shape[2:] == size else -answer(image)

    monkeypatch.setattr(forms, "reopen", wrong)
    with pytest.raises(ValueError, match=r"outputs differ from PyTorch's by .* leave out --dynamic-size"):
        export(run=str(runs / "timm_test_vit"), to=["pt2"], dynamic_size=True, images=2, out=str(tmp_path / "out"))


def test_no_form_at_all_is_told(runs: Path):
    with pytest.raises(ValueError, match=r"to: expected one form or more .safetensors, timm, .*, found none"):
        export(run=str(runs / "timm_test_resnet"), to=[])


def test_a_missing_torchao_is_told(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else name)
    with pytest.raises(ValueError, match=r"int8: the package torchao is missing: pip install 'uhkd\[int8\]'"):
        export(run=str(runs / "timm_test_resnet"), to=["int8"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def saved(network: Any, place: Path, **more: Tensor) -> str:
    """A run folder of the network alone, as others may have written it."""
    place.mkdir()
    RunFolder(place).write_model(network.config.to_json(), network.module.state_dict() | more)
    return str(place)


def test_a_student_without_a_head_leaves_as_an_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    network = create("timm/test_resnet", num_classes=0, image_size=32).eval()
    run = saved(network, tmp_path / "run")
    with pytest.raises(
        ValueError, match="timm/test_resnet has no classes, and int8 is checked by its accuracy: leave int8 out"
    ):
        export(run=run, to=["int8"], data="digits")
    found = export(run=run, to=["timm", "onnx"], data="digits", images=4)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = network.plain(images)
        for form, row in found.items():
            assert row["agrees"] is None
            torch.testing.assert_close(forms.reopen(form, row["path"])(images), expected, rtol=1e-4, atol=1e-5)
    import timm

    assert timm.create_model(f"local-dir:{found['timm']['path']}", pretrained=True).num_classes == 0
    card = (found["onnx"]["path"].parent / "README.md").read_text()
    assert "# timm/test_resnet, without a head" in card and "Output: `embedding`" in card
    assert "pipeline_tag: image-feature-extraction" in card


def test_a_run_with_a_probe_or_a_module_of_ones_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    network = create("timm/test_resnet", num_classes=0, image_size=32)
    assert network.shapes.embedding is not None
    probed = saved(network, tmp_path / "probed", **{"probe.weight": torch.zeros(10, network.shapes.embedding)})
    own = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), num_classes=10, image_size=8, levels=0)
    own = saved(own, tmp_path / "own")
    for run, answer in (
        (probed, "a network with a linear probe in place of its head cannot be exported: finetune it first"),
        (own, f"'{own}' holds a module of your own (module/Sequential): build it, then use "),
    ):
        assert main(["export", run, "--data", "digits"]) == 2
        assert answer in capsys.readouterr().err
        assert not (Path(run) / "export").exists()


def test_a_network_of_transformers_leaves_as_a_program(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    network = wrap_module(transformers.ViTForImageClassification(config), num_classes=10, image_size=32).eval()
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        answer = forms.reopen("onnx", forms.write("onnx", network, tmp_path / "onnx"))
        for count in (1, 5):
            torch.testing.assert_close(answer(images[:count]), network(images[:count]).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is no architecture of timm: leave timm out"):
        forms.check("timm", network)


def test_a_form_that_cannot_be_is_told_before_anything_is_written(runs: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="leave timm out"):
        export(run=str(runs / "uhkd_mixer_micro"), to=["safetensors", "timm"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# the temperature


class Scaled(nn.Module):
    """A layer after the classifier: its logits are not linear in the last layer's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x).tanh()


def with_temperature(network: Any, temperature: float) -> Any:
    """The network in eval mode, as a run with this temperature is loaded."""
    network.config = replace(network.config, temperature=temperature)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("uhkd/resnet10", 16),
        ("timm/test_resnet", 32),
        ("timm/test_vit", 160),
        ("torchvision/squeezenet1_1", 32),
        ("timm/deit_tiny_distilled_patch16_224", 32),
    ],
)
def test_dividing_the_last_layer_is_dividing_the_logits(name: str, size: int):
    """Linear, convolution, two heads."""
    torch.manual_seed(0)
    network = with_temperature(create(name, num_classes=6, image_size=size), 2.5)
    image = torch.rand(4, 3, size, size)
    with torch.no_grad():
        raw = network.plain(image)
        assert forms.apply_temperature(network) == 2.5 and network.config.temperature == 1
        folded, whole = network.plain(image), forms.calibrated_logits(network, image)
    torch.testing.assert_close(folded, raw / 2.5)
    torch.testing.assert_close(whole, folded)
    torch.testing.assert_close(folded.softmax(1), (raw / 2.5).softmax(1))
    assert torch.equal(folded.argmax(1), raw.argmax(1))


def test_a_last_layer_that_cannot_be_divided_is_left_and_the_output_is_divided():
    network = with_temperature(wrap_module(Scaled(), num_classes=5, image_size=16), 0.5)
    before, image = {k: v.clone() for k, v in network.module.state_dict().items()}, torch.rand(2, 3, 16, 16)
    assert forms.apply_temperature(network) == 0.5 == network.config.temperature
    assert all(torch.equal(v, before[k]) for k, v in network.module.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(forms.ExportModule(network).eval()(image), network.plain(image) / 0.5)
    with pytest.raises(
        ValueError, match=r"the last layer of module/Scaled is not linear and cannot take the temperature 0.5"
    ):
        forms.check("timm", network)


@pytest.mark.parametrize("raw", [False, True])
def test_an_export_has_the_temperature_of_the_run_or_is_raw(runs: Path, tmp_path: Path, raw: bool):
    run = shutil.copytree(runs / "timm_test_resnet", tmp_path / "run")
    RunFolder(run).write_json("card.json", RunFolder(run).read_config() | {"temperature": 2.5})
    RunFolder(run).write_json("calibration.json", RunFolder(run).read_calibration() | {"reason": ""})
    found = export(run=str(run), to=["safetensors", "timm", "pt2"], out=str(tmp_path / "out"), images=8, raw_logits=raw)
    images, network = images_for(run), load_run(run)
    assert network.config.temperature == 2.5, "a run keeps its weights and its temperature"
    with torch.no_grad():
        expected = network(images).logits / (1.0 if raw else 2.5)
        for form, row in found.items():
            torch.testing.assert_close(OPENERS[form](row["path"])(images), expected, rtol=1e-3, atol=1e-4)
            assert row["temperature"] == (1.0 if raw else 2.5)
            card = (tmp_path / "out" / form / "README.md").read_text(encoding="utf-8")
            assert ("not in these logits" in card) == raw and ("divided into these logits" in card) == (not raw)
    assert load_run(found["safetensors"]["path"]).config.temperature == 1
