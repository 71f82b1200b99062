"""The tutorials that docs/tutorials/index.md lists, run as they stand: `bash` and `python` blocks in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from references.pages import blocks

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "tutorials" / "index.md"
LISTED = re.findall(r"^\| \[.*?\]\((.*?)\)", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
TUTORIALS = [INDEX.with_name(name) for name in LISTED]
FIRST, PICTURES = "first-student", "my-images"
FILE = "# file: "  # a Python block that begins so is saved under that name, for a later one to import
SHOWN = ("", "sh", "text", "yaml", "toml", "json")  # shown only: a network, GPU or queue would be needed


def run(command, folder):
    """One process as a reader would start it; what it printed, in both streams."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{folder}",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\n{said}"
    assert "Traceback" not in said and "Warning" not in said, said
    return said


def follow(page, folder):
    """Run a page's blocks in order and return what each printed."""
    printed = []
    for number, block in enumerate(blocks(page)):
        if block.language == "bash":
            printed.append(run(["bash", "-euo", "pipefail", "-c", block.text], folder))
        elif block.language == "python":
            first = block.text.splitlines()[0]
            file = folder / (first.removeprefix(FILE) if first.startswith(FILE) else f"block-{number}.py")
            file.write_text(block.text, encoding="utf-8")
            if not first.startswith(FILE):
                printed.append(run([sys.executable, file.name], folder))
        else:
            assert block.language in SHOWN, f"{page.name}: what is a block of {block.language!r}?"
    return printed


@pytest.mark.parametrize("page", [pytest.param(p, id=p.stem, marks=pytest.mark.slow) for p in TUTORIALS])
def test_tutorial(page, tmp_path):
    printed = follow(page, tmp_path)
    assert len(printed) >= 3
    if page.stem == FIRST:
        assert "uhkd" in printed[1] and "teacher" in printed[1] and "not run" in printed[1]
        assert "accuracy" in printed[2] and "prediction of the student" in printed[2]
        assert (tmp_path / "runs" / "student" / "curves.png").stat().st_size > 0
    if page.stem == PICTURES:
        said = "\n".join(printed)
        words = " ".join(said.split())
        assert "1 image in album/photos cannot be decoded: skipped (photos/tower/broken.jpg)" in words
        assert "uhkd/mixer_micro on 120 images of new" in words
        found = re.search(r"prediction of the ONNX model: (\w+) ([\d.]+)", said)
        predicted = re.search(r"^new/may/sky-072.webp: (\w+) ([\d.]+)%", said, re.MULTILINE)
        assert found and predicted and found[1] == predicted[1]
        assert float(found[2]) == pytest.approx(float(predicted[2]) / 100, abs=2e-3), "the temperature is in the file"


def test_every_step_from_pictures_to_a_model_is_run_and_not_only_shown():
    shown = [block.text for block in blocks(INDEX.with_name(f"{PICTURES}.md")) if block.language == "bash"]
    verbs = re.findall(r"^uhkd (\w+)", "\n".join(shown), re.MULTILINE)
    assert list(dict.fromkeys(verbs)) == ["finetune", "distill", "eval", "report", "predict", "export"]


def test_each_tutorial_says_what_one_gets_and_how_long_it_takes():
    assert len(TUTORIALS) >= 7
    for page in TUTORIALS:
        text = page.read_text(encoding="utf-8")
        assert "**You will have**" in text and "**It takes**" in text, page.name
        assert "\n## What can go wrong\n" in text, page.name


def test_a_page_that_fails_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\necho begun\nuhkd destill\necho passed\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"begun\n.*unknown command 'destill'"):
        follow(page, tmp_path)
