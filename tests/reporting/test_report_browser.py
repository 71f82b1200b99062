"""The report of real trainings on handwritten digits, in a real browser: what a reader sees, does, prints; and what was noted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import uhkd
from references.reported import browser
from references.runs import assert_equal_runs
from uhkd.models import load_run
from uhkd.reporting.thumbnails import LARGEST, MOST, choose, read_sheet, write_sheet
from uhkd.runs import RunFolder
from uhkd.training import fit
from uhkd.training.progress import ProgressBar

MACHINE: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0}
TINY = MACHINE | {"data": "digits", "train_limit": 100, "image_size": 16, "batch_size": 20}
CNN = {"channels": [8, 12, 16, 24]}
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a teacher, a student from scratch, two seeds by UHKD."""
    root = tmp_path_factory.mktemp("real") / "runs"
    words = TINY | {"train_limit": 300, "epochs": 6, "optimizer": "sgd", "crop": "none", "label_smoothing": 0.0}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda run: [])  # pictures beside the report
        uhkd.finetune(model="uhkd/resnet10", options=CNN, out=root / "teacher", **words)
        own = TINY | {
            "student": "uhkd/vit_micro",
            "student_options": VIT,
            "epochs": 3,
            "teacher": str(root / "teacher"),
        }
        uhkd.distill(method="scratch", out=root / "scratch", **own)
        for seed in range(2):
            uhkd.distill(method="uhkd", out=root / f"uhkd-{seed}", seed=seed, **own)
    return root


@pytest.fixture(scope="module")
def opened(runs: Path) -> Iterator[tuple[Any, str]]:
    with browser() as started:
        yield started, uhkd.report(runs=runs)["page"].resolve().as_uri()


def look(opened: tuple[Any, str], **options: Any) -> tuple[Any, list[str]]:
    """The page in a new window without network, and a list that gets every complaint and request."""
    started, address = opened
    page, heard = started.new_context(offline=True, **options).new_page(), []
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    own = (address, "data:")
    page.on("request", lambda asked: None if asked.url.startswith(own) else heard.append(asked.url))
    page.goto(address)
    return page, heard


def seen(marks: Any) -> list[bool]:
    """Which marks of a drawing are displayed; a level line has no height, so that it would not count as visible."""
    return marks.evaluate_all("marks => marks.map(mark => getComputedStyle(mark).display !== 'none')")


def test_it_opens_without_a_complaint_or_a_request_and_every_figure_is_there(opened: tuple[Any, str]):
    page, heard = look(opened)
    assert heard == []
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    figures = page.query_selector_all("figure.drawing")
    titles = [figure.query_selector("h4, h5").inner_text() for figure in figures]
    for wanted in ("Accuracy", "Learning curves", "Loss by term", "Agreement", "Speed of the training", "Spectra"):
        assert wanted in titles
    assert {"Error by frequency over the training", "Similarity of all levels (CKA)"} <= {*titles}
    assert {"Gain by class: uhkd against scratch", "Confusions that changed: uhkd against scratch"} <= {*titles}
    for figure in figures:
        panels = figure.query_selector_all("svg.panel")
        assert panels and len(figure.query_selector(".how").inner_text()) > 60
        for panel in panels:
            box = panel.bounding_box()
            assert box is not None and min(box["width"], box["height"]) > 50
            assert len(panel.get_attribute("aria-label")) > 30
    images = page.query_selector_all("img")
    assert images and all(
        image.evaluate("i => i.complete && i.naturalWidth > 0 && i.alt.length > 20") for image in images
    )


def test_rows_sort_filter_and_choose_what_is_drawn(opened: tuple[Any, str]):
    page, heard = look(opened)
    table = page.locator("table.summary").first

    def column(place: int) -> list[str]:
        return table.locator(f"tbody tr:not([hidden]) > *:nth-child({place})").all_inner_texts()

    table.get_by_role("button", name="top-1 %").first.click()
    values = [float(words.split()[0]) for words in column(3) if words[0].isdigit()]
    assert len(values) == 3 and values == sorted(values, reverse=True), "the best first"
    assert table.locator("th[aria-sort=descending]").count() == 1 and column(3)[-1] == "-", (
        "what was not run comes last"
    )
    table.get_by_role("button", name="top-1 %").first.click()
    assert [float(words.split()[0]) for words in column(3) if words[0].isdigit()] == values[::-1]
    page.locator("[data-filter]").first.fill("uhkd not")
    assert column(1) == [] or all("uhkd" in words for words in column(1))
    page.locator("[data-filter]").first.fill("scratch")
    assert [words.strip() for words in column(1)] == ["scratch"]
    page.locator("[data-filter]").first.fill("")
    lines = page.locator("figure[data-comparing] svg g[data-group]")
    assert all(seen(lines)) and lines.count() > 6
    page.get_by_label("draw scratch in the figures").uncheck()
    assert 0 < sum(seen(lines)) < lines.count()
    page.locator("[data-none]").first.click()
    assert not any(seen(lines))
    page.locator("[data-all]").first.click()
    assert all(seen(lines))
    assert heard == []


def test_the_slider_moves_through_the_training(opened: tuple[Any, str]):
    page, _ = look(opened)
    slider = page.locator("input[type=range]").first
    figure = page.locator("figure", has=slider).first
    assert figure.locator("output").inner_text() == "step 15"
    slider.focus()
    page.keyboard.press("Home")
    assert figure.locator("output").inner_text() == "step 5" == slider.get_attribute("aria-valuetext")
    frames = figure.locator("svg.panel").first.locator("g[data-frame]")
    assert seen(frames) == [True, False, False]
    page.keyboard.press("ArrowRight")
    assert seen(frames) == [False, True, False]


def test_it_reads_without_scripts(opened: tuple[Any, str]):
    page, heard = look(opened, java_script_enabled=False)
    assert heard == [] and page.locator("figure svg.panel").first.is_visible()
    assert not any(
        page.locator(".tools, .slider").nth(i).is_visible() for i in range(page.locator(".tools, .slider").count())
    )
    assert page.locator("table.summary").first.is_visible()


def test_nothing_sticks_out_of_a_narrow_window(opened: tuple[Any, str]):
    page, _ = look(opened)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    for width in (320, 375, 768):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_dark_is_dark_and_paper_is_white_and_has_everything(opened: tuple[Any, str], tmp_path: Path):
    page, heard = look(opened, color_scheme="dark")

    def ground(name: str) -> float:
        page.screenshot(path=tmp_path / name)
        with Image.open(tmp_path / name) as image:
            return float(np.asarray(image.convert("L"))[:5, :5].mean())

    line = "getComputedStyle(document.querySelector('svg.panel path[style*=s0]')).stroke"
    assert ground("dark.png") < 40 and page.evaluate(line) == "rgb(255, 155, 94)"
    page.emulate_media(media="print", color_scheme="dark")
    assert ground("print.png") > 250 and page.evaluate(line) == "rgb(185, 58, 11)", "dark colours are for screens"
    assert not page.locator(".tools").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 3
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 3
    assert heard == []


def test_what_the_teacher_said_is_noted_as_it_says_it(runs: Path):
    folder = RunFolder(runs / "uhkd-0")
    arrays, result = folder.read_arrays(), folder.read_result()
    theirs = RunFolder(runs / "teacher").read_arrays()
    np.testing.assert_array_equal(arrays["teacher_prediction"], theirs["val_prediction"])
    accuracy = float((arrays["teacher_prediction"] == arrays["val_label"]).mean())
    assert accuracy == pytest.approx(result["teacher_metrics"]["accuracy"], abs=1e-6)
    assert arrays["teacher_confidence"].shape == arrays["val_confidence"].shape == arrays["val_label"].shape
    assert float(arrays["val_confidence"].min()) >= 0.1 and float(arrays["val_confidence"].max()) <= 1
    assert {f"start_spectrum_{i}" for i in range(3)} <= arrays.keys()
    network = load_run(runs / "teacher")
    sizes = result["sizes"]["teacher"]
    assert sizes["parameters"] == sum(p.numel() for p in network.module.parameters())
    # the first convolution of the teacher alone: 2 * 8 * 3 * 9 multiply-adds at each pixel of 16 x 16
    assert sizes["flops"] > 2 * 8 * 3 * 9 * 16 * 16 and sizes["bytes"] >= 4 * sizes["parameters"]
    assert "teacher" not in RunFolder(runs / "scratch").read_result()["sizes"]


def test_the_same_images_are_kept_by_every_run(runs: Path):
    shown = [RunFolder(runs / name).read_arrays()["val_shown"] for name in ("scratch", "uhkd-0", "uhkd-1")]
    assert all(np.array_equal(shown[0], other) for other in shown[1:])
    tiles = read_sheet(RunFolder(runs / "scratch").thumbnails, len(shown[0]))
    data = uhkd.open_data("digits")
    real = data.val.image(int(shown[0][3])).permute(1, 2, 0).numpy()
    small = np.asarray(Image.fromarray(tiles[3]).resize(real.shape[1::-1]))
    assert np.corrcoef(small.flatten(), real.flatten())[0, 1] > 0.9, "the image that its number names"


def test_thumbnails_are_bounded_spread_over_the_classes_and_can_be_left_out(tmp_path: Path, runs: Path):
    labels = np.repeat(np.arange(50), 100)
    chosen = choose(labels, len(labels))
    assert len(chosen) == MOST and np.bincount(labels[chosen]).tolist() == [4] * 50
    assert len(choose(np.arange(5000), 5000)) == MOST and len(choose(None, 7)) == 7

    class Photographs:
        labels = None

        def __len__(self) -> int:
            return MOST

        def image(self, index: int) -> torch.Tensor:
            return torch.randint(
                0, 256, (3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
            )

    write_sheet(Photographs(), np.arange(MOST), (224, 224), tmp_path / "sheet.jpg")
    assert (tmp_path / "sheet.jpg").stat().st_size < 4e6, "noise: the worst that can be"
    assert {tile.shape for tile in read_sheet(tmp_path / "sheet.jpg", MOST)} == {(LARGEST, LARGEST, 3)}
    with pytest.raises(ValueError, match="no sheet of 3 images"):
        read_sheet(tmp_path / "sheet.jpg", 3)
    out = tmp_path / "private"
    words = TINY | {"student": "uhkd/vit_micro", "student_options": VIT, "epochs": 1, "method": "scratch"}
    uhkd.distill(out=out, thumbnails=False, **words)
    assert not (out / "thumbnails.jpg").exists() and "val_shown" not in RunFolder(out).read_arrays()


@pytest.mark.slow  # resuming to the bit is tested without, of runs that note all this too
def test_a_resumed_run_notes_what_an_undisturbed_one_does(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "draw", lambda run: [])
    monkeypatch.setattr(RunFolder, "drop_checkpoints", lambda self: None)
    own = TINY | {"student": "uhkd/vit_micro", "student_options": VIT, "epochs": 2, "teacher": str(runs / "teacher")}
    uhkd.distill(out=tmp_path / "whole", **own)

    class TrainingInterrupted(Exception):
        pass

    def epoch(self: ProgressBar, row: Any, epochs: int) -> None:
        if row["epoch"] == 2:
            raise TrainingInterrupted

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "epoch", epoch)
        with pytest.raises(TrainingInterrupted):
            uhkd.distill(out=tmp_path / "stopped", checkpoint_minutes=1e-9, **own)
    resumed = uhkd.distill(out=tmp_path / "stopped", resume=True, checkpoint_minutes=1e-9, thumbnails=True, **own)
    assert_equal_runs(RunFolder(tmp_path / "whole"), resumed.run, [5, 10])
