"""Students that leave: opened by the libraries that others would use, and asked real images."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import uhkd
from uhkd import export as forms
from uhkd.__main__ import main
from uhkd.commands import export, training
from uhkd.data import eval_loader, open_data
from uhkd.models import load_run

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
        patched.setattr(training, "draw", lambda run: [])
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each network, its name with _ for /."""
    place = tmp_path_factory.mktemp("runs")
    for name, words in NETWORKS.items():
        uhkd.finetune(model=name, out=str(place / name.replace("/", "_")), **TINY | words)
    return place


def images_for(run: Path) -> Tensor:
    network = load_run(run)
    return next(iter(eval_loader(open_data("digits").val, network.input_size, batch_size=7))).image


def by_timm(path: Path) -> forms.Answer:
    """As timm's own users would: its transform's numbers, its loader."""
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    said = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(said[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]
    return lambda image: model((image - mean) / std)


def by_export(path: Path) -> forms.Answer:
    files = {"card.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(files["card.json"])["classes"] == [str(i) for i in range(10)]
    return program.module()


def by_onnx(path: Path) -> forms.Answer:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["uhkd.classes"]) == [str(i) for i in range(10)]
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


OPENERS: dict[str, Callable[[Path], forms.Answer]] = {
    "safetensors": lambda path: lambda image: uhkd.load_run(path)(image).logits,
    "timm": by_timm,
    "pt2": by_export,
    "onnx": by_onnx,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_others_open_it_and_it_says_the_same(runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    run = runs / name.replace("/", "_")
    wanted = [form for form in forms.FORMS if form != "timm" or name.startswith("timm/")]
    found = export(run=str(run), to=wanted, out=str(tmp_path / "out"), images=16)
    assert list(found) == wanted
    table = capsys.readouterr().out
    assert "differs" in table and table.count("100.0%") == len(wanted)
    images, network = images_for(run), load_run(run)
    with torch.no_grad():
        expected = network(images).logits
        for form, path in found.items():
            answer = OPENERS[form](path)
            for count in (1, 3, 7):
                torch.testing.assert_close(answer(images[:count]), expected[:count], rtol=1e-4, atol=1e-5)
            card = (tmp_path / "out" / form / "README.md").read_text()
            assert (
                f"# {name}, 10 classes" in card
                and "validation accuracy" in card
                and "Classes: 0, 1" in card
                and "Open it with `" in card
            )
    names = set(network.module.state_dict())
    assert set(load_file(found["safetensors"] / "model.safetensors")) == names  # the module's own


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
    card = (found["safetensors"] / "README.md").read_text()
    assert f"| teacher | {teacher} |" in card and "| licence of the teacher's weights | not known here" in card
    assert found["safetensors"] == tmp_path / "run" / "export" / "safetensors"
    from uhkd.commands.exporting import _licence

    assert _licence("timm/resnet18", None) == "apache-2.0"


def test_an_answer_that_differs_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forms.Deployed, "forward", lambda self, image: self.module(image))  # forgets to normalise
    with pytest.raises(ValueError, match=r"model\.pt2 answers otherwise than PyTorch: its logits differ by up to"):
        export(run=str(runs / "timm_test_resnet"), to=["pt2"], out=str(tmp_path / "out"))


def test_a_network_that_mixes_its_batch_is_noticed(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forward(self: forms.Deployed, image: Tensor) -> Tensor:
        return self.module((image - self.mean) / self.std) + image.mean()

    monkeypatch.setattr(forms.Deployed, "forward", forward)
    with pytest.raises(AssertionError, match="a batch matters"):
        export(run=str(runs / "timm_test_resnet"), to=["pt2"], out=str(tmp_path / "out"))


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
    assert "to: expected safetensors, timm, pt2 or onnx, found 'tflite'" in said(resnet, "tflite")
    network = load_run(resnet)
    network.module = Fixed()
    with pytest.raises(
        ValueError, match=r"torch cannot follow Fixed with a batch of any size .* export it as safetensors"
    ):
        forms.write("pt2", network, tmp_path / "c")
    probed = load_run(resnet)
    assert probed.shapes.embedding is not None
    probed.set_probe(nn.Linear(probed.shapes.embedding, 3))
    with pytest.raises(ValueError, match="with a linear probe in place of its head cannot be exported"):
        forms.write("onnx", probed, tmp_path / "d")

    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ValueError, match=r"onnx: the package onnxruntime is missing: pip install 'uhkd\[onnx\]'"):
        forms.write("onnx", load_run(resnet), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_form_that_cannot_be_is_told_before_anything_is_written(runs: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="leave timm out"):
        export(run=str(runs / "uhkd_mixer_micro"), to=["safetensors", "timm"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
