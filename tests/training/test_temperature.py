"""The temperature of real trainings: its files, and what predict, eval and a further training make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import uhkd
from uhkd.runs import RunFolder
from uhkd.training import fit

WORDS: dict[str, Any] = {"data": "digits", "train_limit": 40, "image_size": 16, "epochs": 1, "batch_size": 20}
WORDS |= {"device": "cpu", "precision": "fp32", "workers": 0, "thumbnails": False}
SMALL = {"channels": [4, 4, 8, 8]}


def test_a_training_stores_a_temperature_that_predict_and_eval_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "draw", lambda folder: [])
    run = RunFolder(uhkd.finetune(model="uhkd/resnet10", options=SMALL, out=tmp_path / "run", **WORDS).run.path)
    fitted, network = run.read_calibration(), uhkd.load_run(run.path)
    assert (fitted["images"], fitted["evaluated"], fitted["reason"] == "") == (143, 143, fitted["temperature"] != 1)
    assert network.config.temperature == fitted["temperature"] and "temperature" not in run.read_result()
    run.write_json("card.json", run.read_config() | {"temperature": 0.25})
    Image.new("RGB", (16, 16), (200, 10, 90)).save(tmp_path / "a.png")
    ((_, probability),) = uhkd.predict(run=run.path, images=[str(tmp_path / "a.png")], top=1)[str(tmp_path / "a.png")]
    image = (torch.tensor([200, 10, 90]) / 255).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    with torch.no_grad():
        raw = uhkd.load_run(run.path)(image).logits
    assert torch.equal(raw, network(image).logits), "load_run has the weights as trained"
    assert probability == pytest.approx(float((4 * raw).softmax(1).max()), abs=1e-5)
    found = uhkd.evaluate(run=run.path, device="cpu")
    assert found["temperature"] == 0.25 and found["nll_calibrated"] != found["nll"] and len(found["confusion"]) == 10
    run.write_json("card.json", {k: v for k, v in run.read_config().items() if k != "temperature"})  # an older run
    older = uhkd.evaluate(run=run.path, device="cpu")
    assert older["temperature"] == 1 and older["nll_calibrated"] == older["nll"] == found["nll"]

    student = {"student": "uhkd/resnet10", "student_options": SMALL, "allow_weak_teacher": True, "method": "rkd"}
    without = uhkd.distill(teacher=str(run.path), unlabelled=True, out=tmp_path / "student", **WORDS | student).run
    assert not without.calibration.exists() and json.loads(without.config.read_text())["temperature"] == 1
