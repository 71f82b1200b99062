"""Named data sets: Hugging Face's and torchvision's, on files made here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhkd.data import open_data
from uhkd.data.decode import from_pil


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((12, 12, 3), number, np.uint8))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a data set on the Hub is made of: parquet files by part, with the classes' names in their schema."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])})
    for part, first in (("train", 0), ("validation", 50), ("test", 100)):
        rows = {"image": [picture(first + n) for n in range(12)], "label": [n % 3 for n in range(12)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))
    return folder


def test_hugging_face(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = open_data(f"hfds/{parquet}:{tmp_path / 'cache'}")
    assert data.test is not None and data.classes == ("ant", "bee", "cow") and data.native_size == (12, 12)
    for part, first in ((data.train, 0), (data.val, 50), (data.test, 100)):
        assert len(part) == 12 and part.labels is not None and part.labels.tolist() == [0, 1, 2] * 4
        assert part.image(7).equal(from_pil(picture(first + 7)))


def test_torchvision_has_no_validation_part_of_its_own(tmp_path: Path):
    for part, count in (("train", 8), ("test", 3)):
        for name in ("a", "b"):
            for n in range(count):
                file = tmp_path / part / name / f"{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture(n).save(file)
    data = open_data(f"torch/image_folder:{tmp_path}", val_fraction=0.25)
    assert data.test is not None and data.classes == ("a", "b")
    assert (len(data.train), len(data.val), len(data.test)) == (12, 4, 6)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("torch/nonsense:{place}", "data torch/nonsense.* cannot be opened .*Unknown torchvision dataset"),
        ("torch/cifar10:{place}", "cannot be opened .*Dataset not found"),
        ("hfds/{place}/none:{place}", "cannot be opened"),
        ("tfds/mnist", "tfds/ only streams images in a fixed order"),
    ],
)
def test_what_cannot_be_opened_is_said(word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if word.startswith("hfds/"):
        pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=said):
        open_data(word.format(place=tmp_path))
