"""Pictures are drawn from the files of runs alone; they are whole PNGs that show what the numbers say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhkd.reporting.figure_data import LIGHT
from uhkd.reporting.plots import draw, draw_curves, draw_spectra
from uhkd.runs import RunFolder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


def assert_a_picture(path: Path) -> np.ndarray:
    shown = pixels(path)
    assert min(shown.shape[:2]) >= 200
    drawn = (shown != 255).any(-1)
    assert drawn.mean() > 0.005
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 20
    # something in each quarter: axes are neither cut off nor empty
    assert all(part.any() for rows in np.array_split(drawn, 2) for part in np.array_split(rows, 2, axis=1))
    return shown


def run(path: Path, accuracy: list[float], students: int = 3, teachers: int = 2, seed: int = 0) -> RunFolder:
    rng = np.random.default_rng(seed)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.write_metrics([{"step": 10 * i, "epoch": i, "val_accuracy": a} for i, a in enumerate(accuracy, 1)])
    arrays = {"steps": np.arange(len(accuracy))}
    arrays |= {f"student_spectrum_{i}": rng.random((len(accuracy), 4)) for i in range(students)}
    arrays |= {f"teacher_spectrum_{i}": rng.random(6 - i) for i in range(teachers)}
    if teachers:
        arrays |= {name: rng.random((students, teachers)) for name in ("cka_start", "cka_end")}
    folder.write_arrays(arrays)
    return folder


def test_draw_makes_what_the_files_have_numbers_for(tmp_path: Path):
    made = draw(run(tmp_path / "distilled", [0.2, 0.5, 0.6]))
    assert [p.name for p in made] == ["curves.png", "spectra.png", "cka.png"]
    for path in made:
        assert_a_picture(path)
    alone = draw(run(tmp_path / "alone", [0.2, 0.5], teachers=0))
    assert [p.name for p in alone] == ["curves.png"]
    assert_a_picture(alone[0])


def test_a_single_evaluation_can_be_drawn(tmp_path: Path):
    folder = run(tmp_path / "short", [0.3], students=1, teachers=1)
    arrays = folder.read_arrays()
    folder.write_arrays({k: v for k, v in arrays.items() if k != "cka_start"})  # one half is enough
    for path in draw(folder):
        assert_a_picture(path)


def test_curves_show_every_group_and_the_spread_of_seeds(tmp_path: Path):
    same = [run(tmp_path / f"same{i}", [0.2, 0.5, 0.6]) for i in range(2)]
    other = [run(tmp_path / "low", [0.1, 0.3, 0.4]), run(tmp_path / "high", [0.3, 0.7, 0.8])]
    narrow = assert_a_picture(draw_curves({"kd": same}, tmp_path / "narrow.png"))
    wide = assert_a_picture(draw_curves({"kd": other}, tmp_path / "wide.png"))
    # the colours of the report: kd's at the alpha of a band on white, and uhkd's
    blue, orange = (np.array([int(LIGHT[hue][i : i + 2], 16) for i in (1, 3, 5)]) for hue in ("s1", "s0"))
    band = 255 - 0.16 * (255 - blue)

    def share(picture: np.ndarray) -> float:
        return float((np.abs(picture.astype(int) - band).max(-1) <= 3).mean())

    assert share(narrow) < 0.005 and share(wide) > 0.02  # the mean is the same, the band is not
    both = assert_a_picture(draw_curves({"kd": same, "uhkd": other}, tmp_path / "both.png"))
    lines = [(np.abs(picture.astype(int) - orange).max(-1) <= 3).sum() for picture in (both, narrow)]
    assert lines[0] > 100 > lines[1]


@pytest.mark.parametrize(("students", "teachers"), [(1, 4), (4, 1), (3, 3)])
def test_spectra_match_levels_by_depth(tmp_path: Path, students: int, teachers: int):
    folder = run(tmp_path / "run", [0.2, 0.5], students=students, teachers=teachers)
    picture = assert_a_picture(draw_spectra({"uhkd": folder}, tmp_path / "spectra.png"))
    # the deepest student level is the one beside the deepest of the teacher
    arrays = folder.read_arrays()
    folder.write_arrays(arrays | {f"student_spectrum_{students - 1}": np.array([[1.0, 0, 0, 0]] * 2)})
    changed = pixels(draw_spectra({"uhkd": folder}, tmp_path / "changed.png"))
    width = min(picture.shape[1], changed.shape[1])
    last = int(width * (teachers - 1) / teachers)
    assert (picture[:, last:width] != changed[:, last:width]).any()


def test_spectra_without_energy_are_drawn_too(tmp_path: Path):
    folder = run(tmp_path / "run", [0.2])
    folder.write_arrays({k: np.zeros_like(v) for k, v in folder.read_arrays().items()})
    for path in draw(folder):
        assert pixels(path).size
