"""What is opened executes no code, stays in its folder and leaves the machine its memory: docs/security.md, promise by promise.

Beside these: pickles as checkpoint and diagnostics in test_runs.py, as weights in test_models.py, and any bytes in any file
of a run folder in test_hostile_files.py.
"""

import ast
import contextlib
import csv
import io
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import tomllib
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import EpsImagePlugin, Image
from torchvision.datasets import CIFAR100

from uhkd.__main__ import main
from uhkd.commands.comparing.naming import pair_names
from uhkd.commands.comparing.tables import csv_text, inline, latex, markdown, run_rows
from uhkd.commands.comparing.task_store import TaskStore
from uhkd.console import escape, escape_lines
from uhkd.data import datasets, open_data
from uhkd.data.decode import LARGEST, decode_file, header_size
from uhkd.models import create, load_run, load_state
from uhkd.recipe import RecipeError, load_yaml
from uhkd.reporting.plots import draw_comparison, draw_curves
from uhkd.runs import Checkpoint, RunFolder, write_atomically

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# ---------------------------------------------------------------- no code is executed


class Trap:
    """Unpickling this makes a folder: the proof that code was run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@contextlib.contextmanager
def no_trace(trap: Trap) -> Iterator[None]:
    """Nothing inside sprang the trap, and the trap is a live one."""
    yield
    assert not trap.trace.exists(), "code in the file was executed"
    pickle.loads(pickle.dumps(trap))
    assert trap.trace.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "executed")


def torch_file(content: Any, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


BOMBS: dict[str, Callable[[Trap], bytes]] = {
    "pickle": lambda trap: pickle.dumps({"weight": trap}, protocol=4),
    "torch": lambda trap: torch_file({"state_dict": {"weight": trap}}, zipped=True),
    "old torch": lambda trap: torch_file({"state_dict": {"weight": trap}}, zipped=False),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "safetensors", "npz"])
def test_a_pickle_under_any_name_is_refused_as_weights_in_one_line(tmp_path: Path, trap: Trap, kind: str, suffix: str):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(BOMBS[kind](trap))
    with no_trace(trap), pytest.raises(ValueError, match=r"weights\.\w+' (was refused|is no complete)") as told:
        load_state(file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_timm_model_folder_is_refused(tmp_path: Path, trap: Trap, kind: str, name: str):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 3}))
    (folder / name).write_bytes(BOMBS[kind](trap))
    with no_trace(trap), pytest.raises(ValueError, match=r"(was refused|is no complete)"):
        create(f"local-dir:{folder}", num_classes=3)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "classes"])
def test_objects_in_an_npz_of_images_are_refused(tmp_path: Path, trap: Trap, name: str):
    whole = {"train_images": np.zeros((4, 8, 8, 3), np.uint8), "train_labels": np.arange(4) % 2, "classes": ["a", "b"]}
    np.savez(tmp_path / "set.npz", **whole | {name: np.array([trap], dtype=object)})
    with no_trace(trap), pytest.raises(ValueError, match=r"set\.npz is not a readable \.npz file of plain arrays"):
        open_data(tmp_path / "set.npz")


def test_a_pickle_called_npz_is_refused_as_data(tmp_path: Path, trap: Trap):
    (tmp_path / "set.npz").write_bytes(pickle.dumps(trap))
    with no_trace(trap), pytest.raises(ValueError, match=r"set\.npz is not a readable \.npz file of plain arrays"):
        open_data(tmp_path / "set.npz")


@pytest.mark.parametrize("changed", ["train", "test", "meta"])
def test_a_cifar_file_of_another_checksum_is_never_unpickled(tmp_path: Path, trap: Trap, changed: str):
    """The three files of CIFAR-100 are pickles; torchvision compares them with checksums that it holds itself."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, _ in (*CIFAR100.train_list, *CIFAR100.test_list, (CIFAR100.meta["filename"], "")):
        (folder / name).write_bytes(pickle.dumps(trap if name == changed else {}))
    with no_trace(trap), pytest.raises(ValueError, match="incomplete or damaged"):
        open_data(f"cifar100:{tmp_path}")


# what may stand there, and why
EXCEPTIONS: set[tuple[str, str]] = set()


# these run what they read, or let others connect (multiprocessing: both)
UNSAFE_MODULES = ["pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"]
UNSAFE_MODULES += ["multiprocessing", "socket", "socketserver", "http", "xmlrpc", "asyncio"]


def forbidden(node: ast.AST) -> str | None:
    """What of a piece of code could run what it reads, or hand words to a shell; None for all else."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        found = set(UNSAFE_MODULES) & {name.split(".")[0] for name in names}
        return f"import {found.pop()}" if found else None
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "builtins.eval"):
        return called
    if called.startswith(("os.exec", "os.spawn", "torch.hub.", "torch.jit.load", "torch.package")):
        return called
    if called == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if called == "np.load" and given.get("allow_pickle") != "False":
        return "np.load without allow_pickle=False"
    if called.startswith("yaml.") and called.rpartition(".")[2] in ("load", "load_all", "unsafe_load", "full_load"):
        return called
    if given.get("shell", "False") != "False":
        return f"{called} with a shell"
    if (
        called.startswith("subprocess.")
        and node.args
        and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
    ):
        return f"{called} of a string"
    return None


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT / "src" / "uhkd").as_posix())
def test_the_source_has_no_call_that_executes_what_it_reads(file: Path):
    name = file.relative_to(ROOT / "src" / "uhkd").as_posix()
    found = {(name, why) for node in ast.walk(ast.parse(file.read_text())) if (why := forbidden(node))}
    assert found <= EXCEPTIONS


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from multiprocessing.connection import Listener",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(t, Loader=L)",
        "yaml.unsafe_load(t)",
        "eval(t)",
        "exec(t)",
        "os.system(t)",
        "subprocess.run(w, shell=True)",
        "subprocess.run('ls')",
        "subprocess.run(f'ls {x}')",
        "tempfile.mktemp()",
    ],
)
def test_the_look_at_the_source_finds_what_it_looks_for(line: str):
    assert any(forbidden(node) for node in ast.walk(ast.parse(line)))


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir", "python/module:os"]
)
def test_a_recipe_with_tags_for_objects_is_refused_and_runs_nothing(tmp_path: Path, trap: Trap, tag: str):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"data: digits\nmodel: !!{tag} [{trap.trace}]\n")
    for read in (load_yaml, lambda path: RunFolder(path.parent).read_recipe()):
        with pytest.raises(ValueError, match="could not determine a constructor"):
            read(file)
    assert not trap.trace.exists()


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


HEAVY = {
    "a billion values by aliases": (laughs(9), "more than 20,000 values"),
    "as many by merged keys": (
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)),
        "more than 20,000 values",
    ),
    "a list that holds itself": ("options: &a [*a]", "more than 20,000 values"),
    "ten thousand lists in each other": ("x: " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
    "100 MB": ("#" * 100_000_000, "has more than"),
    "a number of 100,000 digits": ("epochs: " + "9" * 100_000, "is not a valid int|Exceeds the limit"),
}


@pytest.mark.parametrize("name", HEAVY)
def test_a_recipe_too_heavy_is_refused_in_one_line(tmp_path: Path, name: str):
    text, why = HEAVY[name]
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=why) as told:
        load_yaml(file)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    with pytest.raises(ValueError, match=why):
        RunFolder(tmp_path).read_recipe()


def test_a_recipe_may_have_aliases_within_reason(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("settings: &same {a: [1, 2]}\nweights: *same\n")
    words = load_yaml(tmp_path / "recipe.yaml")
    assert words["weights"] == words["settings"] == {"a": [1, 2]}


def test_a_device_as_a_recipe_is_not_read_for_ever(tmp_path: Path):
    (tmp_path / "recipe.yaml").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="has more than"):
        load_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match="is a link to another place"):
        RunFolder(tmp_path).read_recipe()


# ---------------------------------------------------------------- images and archives


def saved(kind: str, **words: Any) -> bytearray:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, kind, **words)
    return bytearray(file.getvalue())


def png(width: int, height: int) -> bytes:
    content = saved("PNG")
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def jpeg(width: int, height: int) -> bytes:
    content = saved("JPEG")
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp(width: int, height: int) -> bytes:
    content = saved("BMP")
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def gif(width: int, height: int) -> bytes:
    content = saved("GIF")
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(file.getvalue())
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(content)


def tiff(width: int, height: int) -> bytes:
    """One strip of grey that is not there."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"


def ppm(width: int, height: int) -> bytes:
    return f"P6 {width} {height} 255\n".encode()


HEADERS = {"png": png, "jpg": jpeg, "bmp": bmp, "gif": gif, "webp": webp, "tif": tiff, "ppm": ppm}


@pytest.mark.parametrize("suffix", HEADERS)
def test_an_image_that_promises_gigapixels_is_refused_before_it_is_decoded(tmp_path: Path, suffix: str):
    file = tmp_path / f"bomb.{suffix}"
    file.write_bytes(HEADERS[suffix](60_000, 50_000))
    with pytest.raises(
        ValueError, match=rf"bomb\.{suffix} is too large .*set the environment variable UHKD_MAX_PIXELS"
    ) as told:
        decode_file(file)
    assert "\n" not in str(told.value)
    assert header_size(file) is None


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "tif", "ppm"])
def test_a_satellite_image_is_allowed_whatever_warnings_mean(tmp_path: Path, suffix: str):
    """Pillow warns from 89 million pixels on, and warnings are errors here."""
    file = tmp_path / f"map.{suffix}"
    file.write_bytes(HEADERS[suffix](12_000, 10_000))
    assert LARGEST > 12_000 * 10_000
    assert header_size(file) == (10_000, 12_000)


def test_the_bound_on_pixels_is_the_users_to_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of some kilobytes that unpacks to megabytes: whether that is a bomb or a picture, only the user knows."""
    file = tmp_path / "zeros.png"
    Image.new("L", (2000, 2000)).save(file)
    assert file.stat().st_size < 20_000
    monkeypatch.setenv("UHKD_MAX_PIXELS", "3999999")
    with pytest.raises(ValueError, match="2,000 x 2,000 pixels, more than the 3,999,999 that are allowed"):
        decode_file(file)
    monkeypatch.setenv("UHKD_MAX_PIXELS", "4000000")
    assert decode_file(file).shape == (3, 2000, 2000)


def test_a_bound_above_pillows_own_counts_for_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "large.webp"
    file.write_bytes(webp(16_000, 16_000))
    assert header_size(file) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    monkeypatch.setenv("UHKD_MAX_PIXELS", str(2**28))
    assert header_size(file) is not None


@pytest.mark.parametrize("said", ["many", "0", "-5", "1e9", ""])
def test_a_bound_that_is_no_number_of_pixels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str):
    folder(tmp_path / "data", ["a", "b"])
    monkeypatch.setenv("UHKD_MAX_PIXELS", said)
    with pytest.raises(ValueError, match=f"UHKD_MAX_PIXELS must be a whole number of pixels above 0, found '{said}'"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_of_an_animation_only_the_first_frame_is_decoded(tmp_path: Path, kind: str):
    frames = [Image.new("RGB", (8, 8), (i % 256, 10, 10)) for i in range(1000)]
    file = tmp_path / f"film.{kind.lower()}"
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    whole = file.read_bytes()
    first = decode_file(file)
    file.write_bytes(whole[:2000] + b"\xff" * (len(whole) - 2000))
    assert torch.equal(decode_file(file), first)


def test_a_file_of_another_format_is_not_handed_to_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Pillow shows EPS by running Ghostscript, whatever the file is called."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmkdir -p {tmp_path / 'executed'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"picture\.jpg cannot be decoded .*its content is PostScript"):
        decode_file(file)
    assert header_size(file) is None
    assert not (tmp_path / "executed").exists()
    with contextlib.suppress(Exception), Image.open(file) as image:
        image.load()
    assert (tmp_path / "executed").exists(), "the program would have been found"


def npz_that_promises(file: Path, count: int) -> None:
    """A whole archive whose images are `count` zeros, packed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("train_images", (count // 64, 8, 8)), ("train_labels", (count // 64,))):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                entry.write(head.getvalue())
                for _ in range(int(np.prod(shape)) // 2**16):
                    entry.write(bytes(2**16))


def test_an_npz_that_unpacks_to_more_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "bomb.npz"
    npz_that_promises(file, 2**26)
    assert file.stat().st_size < 100_000
    monkeypatch.setattr(datasets, "memory_of_machine", lambda: 10**8)
    with pytest.raises(
        ValueError, match=r"bomb\.npz unpacks to 0\.1 GB, more than half of the 0\.1 GB of memory here: write"
    ):
        open_data(file)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has only one class"):  # where there is memory it is data like any other
        open_data(file)


def test_the_memory_of_a_machine_is_known_where_the_system_says_it():
    there = datasets.memory_of_machine()
    assert there is None or 2**28 < there < 2**50


def test_an_npz_whose_header_promises_more_than_the_file_holds_is_refused(tmp_path: Path):
    file = tmp_path / "lie.npz"
    for shape in ((2**50, 8, 8), (2**24, 8, 8)):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("train_images.npy", head.getvalue() + bytes(640))
            archive.writestr("train_labels.npy", head.getvalue() + bytes(10))
        with pytest.raises(ValueError, match=r"lie\.npz is not a readable \.npz file of plain arrays"):
            open_data(file)


def test_arrays_of_an_npz_that_nobody_asks_for_are_not_read(tmp_path: Path):
    np.savez(
        tmp_path / "set.npz",
        train_images=np.zeros((40, 8, 8), np.uint8),
        train_labels=np.arange(40) % 2,
        more=np.array([{}]),
    )
    assert len(open_data(tmp_path / "set.npz").classes) == 2


def test_a_label_does_not_make_any_number_of_classes(tmp_path: Path):
    np.savez(
        tmp_path / "set.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.array([0, 0, 1, 2 * 10**6])
    )
    with pytest.raises(
        ValueError, match="labels number the classes from 0, found 2000000: expected less than 1,000,000"
    ):
        open_data(tmp_path / "set.npz")


def test_diagnostics_that_unpack_to_gigabytes_are_refused(tmp_path: Path):
    run = RunFolder(tmp_path)
    with zipfile.ZipFile(run.diagnostics, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("steps.npy", b"")
        archive.infolist()[0].file_size = 2**31  # what the archive's table promises
    with pytest.raises(ValueError, match="unpacks to more than 1,073,741,824 bytes"):
        run.read_arrays()


# ---------------------------------------------------------------- names

NAMES = [
    "<img src=x onerror=alert(1)>",
    "$(touch executed);`touch executed`",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines\rover\tthere",
    "\u202egnp.exe\u2066",
    "up\\..\\..",
    "long" * 60,
    os.fsdecode(b"caf\xe9"),
    "$x^{$_",
    "=cmd|'C calc'!A0",
    "[red]x[bold]:smile:",
    "plain",
]


def folder(path: Path, names: list[str], images: int = 3) -> Path:
    """Class folders of small images, each class of another brightness."""
    generator = np.random.default_rng(0)
    for i, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for j in range(images):
            noise = generator.integers(0, 40, (8, 8, 3))
            Image.fromarray((noise + 200 * i // len(names)).astype(np.uint8)).save(path / name / f"{j}.png")
    return path


def harmless(text: str) -> bool:
    """Whether a terminal shows the text and obeys nothing in it."""
    text.encode("utf-8")  # surrogates would fail here
    return all(
        unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text if letter not in "\n\t"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_on_one_line_that_a_terminal_does_not_obey(name: str):
    assert harmless(escape(name)) and "\n" not in escape(name)
    assert escape(escape(name)) == escape(name)
    assert harmless(escape_lines(f"ours:\n  {name}"))


def test_names_in_any_script_are_shown_as_they_are():
    for name in ("naïve café", "日本\u3000語", "می\u200cخواهم", "👩\u200d🔬", "c:\\temp", "a b"):
        assert escape(name) == name


@pytest.mark.slow
def test_class_names_of_every_kind_are_trained_shown_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    data, run = folder(tmp_path / "[red]data\x1b[0m$", NAMES), tmp_path / "runs" / "$\\frac{\x1b[31m _"
    small = ["--model", "uhkd/resnet10", "--options", "channels=[4,4,8,8]", "--epochs", "1", "--workers", "0"]
    assert main(["finetune", *small, "--batch-size", "8", "--data", str(data), "--out", str(run)]) == 0
    assert main(["eval", str(run), "--split", "val"]) == 0
    assert main(["predict", str(run), *(str(data / NAMES[i] / "0.png") for i in (2, 7)), "--top", "12"]) == 0
    broken = data / NAMES[3] / f"{NAMES[4]}.png"
    broken.write_bytes(b"no image")
    assert main(["predict", str(run), str(broken)]) == 1
    assert main(["eval", str(run), "--data", str(tmp_path / NAMES[2])]) == 2
    said = capfd.readouterr()
    assert harmless(said.out) and harmless(said.err)
    assert r"\x1b[31mred" in said.out and r"caf\udce9" in said.out and "[red]x[bold]:smile:" in said.out
    assert load_run(run).config.classes == tuple(sorted(NAMES))
    assert sorted(place.name for place in tmp_path.iterdir()) == sorted(["runs", data.name]), "no name led elsewhere"
    for file in run.iterdir():
        if file.suffix in (".json", ".yaml", ".csv"):
            assert harmless(file.read_text(encoding="utf-8")), file.name


@pytest.mark.parametrize("name", [*NAMES, "_hidden", "日本", "$", "a_b^c $ d"])
def test_any_name_can_be_drawn(tmp_path: Path, name: str):
    """matplotlib takes what lies between dollars for a formula, and warnings are errors here."""
    assert draw_comparison({name: {name: [0.5, 0.6]}}, tmp_path / "a.png", name).is_file()
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_metrics([{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.6}])
    with Image.open(draw_curves({name: [run]}, tmp_path / "b.png")) as picture:
        assert min(picture.size) > 300


def test_names_in_tables_stay_in_their_cells_and_are_text():
    name = "<script>x</script>|![x](http://example.com/x)\n| [a](b)"
    table = markdown([["method", name], ["kd", "1"]])
    assert len(table.splitlines()) == 3 and "<script" not in table and "](" not in table
    assert len(re.findall(r"(?<!\\)\|", table.splitlines()[0])) == 3
    assert inline("# a\n## b") == r"# a\n## b"
    assert latex([["a", name]], "\\input{x}").count("\\input") == 0


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)"])
def test_names_in_comma_separated_values_are_no_formulas(name: str):
    run = dict.fromkeys(("method", "seed", "seconds", "extra_parameters", "lr", "settings", "weights", "commit"), "x")
    rows = list(csv.reader(io.StringIO(csv_text(run_rows({"runs": [run | {"pair": name, "accuracy": -0.5}]})))))
    assert rows[1][0] == f"'{name}" and "-0.5" in rows[1], "numbers stay numbers"


def test_a_pair_that_is_called_by_dots_gets_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its name is that of a folder of the comparison: "." and ".." would lie outside."""
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert pair_names((".", "..", "digits/vit")) == ["here", "above", "vit"]


# ---------------------------------------------------------------- links, temporary files, permissions


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of our business."""
    place = tmp_path / "outside"
    (place / "step-1").mkdir(parents=True)
    (place / "precious.txt").write_text("precious")
    (place / "step-1" / "facts.json").write_text("{}")
    (place / ".step-9.1.tmp").mkdir()
    return place


def content(place: Path) -> dict[str, str | None]:
    return {str(p.relative_to(place)): p.read_text() if p.is_file() else None for p in place.rglob("*")}


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.ones(3)}, {"state": {}, "param_groups": []}, {"rows": []})


def test_files_of_a_run_that_are_links_are_replaced_and_not_written_through(tmp_path: Path, outside: Path):
    run, before = RunFolder(tmp_path / "run"), content(outside)
    run.path.mkdir()
    names = (
        "recipe.yaml",
        "environment.json",
        "card.json",
        "model.safetensors",
        "metrics.csv",
        "diagnostics.npz",
        "a.png",
    )
    for name in names:
        (run.path / name).symlink_to(outside / "precious.txt")
    run.write_model({"name": "x"}, {"w": torch.ones(2)})
    run.write_metrics([{"epoch": 1, "val_accuracy": 0.5}])
    run.write_arrays({"a": np.ones(2)})
    run.write_json("environment.json", {})
    write_atomically(run.recipe, "a: 1\n")
    draw_curves({"run": [run]}, run.path / "a.png")
    assert content(outside) == before
    assert not any((run.path / name).is_symlink() for name in names)


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json", "result.json", "card.json"])
def test_what_a_run_says_is_not_read_through_links(tmp_path: Path, name: str):
    """A page or a model card would show it."""
    secret, run = tmp_path / "secret", RunFolder(tmp_path / "run")
    secret.write_text('{"token": "x"}')
    run.path.mkdir()
    (run.path / name).symlink_to(secret)
    read = {
        "recipe.yaml": run.read_recipe,
        "environment.json": run.read_environment,
        "result.json": run.read_result,
        "card.json": run.read_config,
    }
    with pytest.raises(ValueError, match="is a link to another place"):
        read[name]()


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path: Path, outside: Path):
    before = content(outside)
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(outside / "precious.txt")
    write_atomically(tmp_path / "a.json", "{}")
    assert content(outside) == before and (tmp_path / "a.json").read_text() == "{}"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_a_folder_of_checkpoints_that_is_a_link_is_refused(
    tmp_path: Path, outside: Path, capfd: pytest.CaptureFixture[str]
):
    data, run, before = folder(tmp_path / "data", ["a", "b"]), RunFolder(tmp_path / "run"), content(outside)
    words = [
        "finetune",
        "--model",
        "uhkd/resnet10",
        "--options",
        "channels=[4,4,8,8]",
        "--data",
        str(data),
        "--epochs",
        "1",
    ]
    assert main([*words, "--batch-size", "2", "--workers", "0", "--out", str(run.path)]) == 0
    run.result.unlink()
    run.checkpoints.symlink_to(outside, target_is_directory=True)
    assert main([*words, "--batch-size", "2", "--workers", "0", "--out", str(run.path), "--resume"]) == 2
    assert f"{run.checkpoints} is a link to another place" in capfd.readouterr().err
    run.drop_checkpoints()
    assert content(outside) == before


def test_a_checkpoint_that_is_a_link_is_dropped_and_what_it_leads_to_stays(tmp_path: Path, outside: Path):
    run, before = RunFolder(tmp_path / "run"), content(outside)
    run.checkpoints.mkdir(parents=True)
    for name in ("step-1", "step-4", ".step-2.7.tmp"):
        (run.checkpoints / name).symlink_to(outside, target_is_directory=True)
    run.write_checkpoint(checkpoint(4))  # where a link has its name
    run.write_checkpoint(checkpoint(5))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-4", "step-5"]
    assert not (run.checkpoints / "step-4").is_symlink()
    run.drop_checkpoints()
    assert content(outside) == before and not run.checkpoints.exists()


def test_links_inside_a_checkpoint_are_deleted_as_links(tmp_path: Path, outside: Path):
    run, before = RunFolder(tmp_path / "run"), content(outside)
    run.path.mkdir()
    run.write_checkpoint(checkpoint(1))
    (run.checkpoints / "step-1" / "more").symlink_to(outside, target_is_directory=True)
    run.write_checkpoint(checkpoint(2))
    run.write_checkpoint(checkpoint(3))
    assert run._checkpoints.steps() == [2, 3] and content(outside) == before


@pytest.mark.parametrize("link", ["plan", "locks", "failed", "pair", "pair/kd"])
def test_a_comparison_does_not_work_through_links_in_its_folder(tmp_path: Path, outside: Path, link: str):
    from uhkd.commands.comparing.plan import Plan, Task

    out, before = tmp_path / "out", content(outside)
    place = out / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside, target_is_directory=True)
    with pytest.raises(ValueError, match=f"{place} is a link to another place"):
        TaskStore(out).begin(Plan((Task("pair/kd/seed-0", {}),), {}, {}, {}))
    assert content(outside) == before


@pytest.mark.parametrize("name", ["locks", "view-0000"])
def test_a_cache_does_not_work_through_links_in_its_folder(
    tmp_path: Path, outside: Path, capfd: pytest.CaptureFixture[str], name: str
):
    cache, before = tmp_path / "cache", content(outside)
    cache.mkdir()
    (cache / "cache.json").write_text("{}")
    (cache / name).symlink_to(outside, target_is_directory=True)
    assert main(["cache", "--teacher", "uhkd/resnet10", "--data", "digits", "--out", str(cache)]) == 2
    assert f"{cache / name} is a link to another place" in capfd.readouterr().err
    assert content(outside) == before


def test_image_folders_may_be_links_and_loops_of_links_end(tmp_path: Path):
    data = folder(tmp_path / "data", ["a", "b"], images=2)
    elsewhere = folder(tmp_path / "elsewhere", ["c"], images=2)
    (data / "c").symlink_to(elsewhere / "c")
    (data / "a" / "more").symlink_to(elsewhere)
    plain = open_data(data)
    assert len(plain.train) + len(plain.val) == 8
    for place, target in {
        "a/self": "a",
        "a/up": ".",
        "b/above": "..",
        "b/one": "b",
        "b/two": "b",
        "c/back": "c",
    }.items():
        (data / place).symlink_to((data / target).resolve(), target_is_directory=True)
    assert open_data(data).fingerprint == plain.fingerprint


def test_many_links_to_each_other_are_read_in_no_more_steps_than_there_are_folders(tmp_path: Path):
    """Twelve folders with two links each to the next have 4,096 paths to the last, forty a million million."""
    data = folder(tmp_path / "data", ["a", "b"], images=2)
    deep = tmp_path / "deep"
    for i in range(12):
        (deep / str(i)).mkdir(parents=True)
        for name in ("x", "y"):
            (deep / str(i) / name).symlink_to(deep / str(i + 1))
    (deep / "12").mkdir()
    Image.new("RGB", (8, 8)).save(deep / "12" / "last.png")
    (data / "a" / "deep").symlink_to(deep / "0")
    opened = open_data(data)
    assert len(opened.train) + len(opened.val) == 5


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int):
    run, before = RunFolder(tmp_path / "run"), os.umask(mask)
    try:
        with run.lock():
            run.begin({"data": "digits", "resume": False})
            run.write_model({"name": "x"}, {"w": torch.ones(2)})
            run.write_metrics([{"epoch": 1, "val_accuracy": 0.5}])
            run.write_arrays({"a": np.ones(2)})
            run.write_checkpoint(checkpoint(4))
            draw_curves({"run": [run]}, run.path / "curves.png")
            found = {p.relative_to(run.path): p.stat().st_mode for p in [run.path, *run.path.rglob("*")]}
    finally:
        os.umask(before)
    assert len(found) > 12
    for name, mode in found.items():
        assert not mode & stat.S_IWOTH, f"{name} is for all to write"
        if name != Path(".lock"):  # empty; its library gives it rights of its own
            assert stat.S_IMODE(mode) == (0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask, name


# ---------------------------------------------------------------- what is installed

# package -> the last releases that are known to be unsafe, and why; ours by pyproject.toml, others by constraints.txt alone
UNSAFE = {
    "torch": ["2.5.1"],  # CVE-2025-32434: weights_only=True executes code
    "timm": ["1.0.27"],  # GHSA-pqww-w348-m542: checkpoints by pickle
    "lightning-fabric": ["2.6.2", "2.6.3"],  # GHSA-w37p-236h-pfx3: steals credentials (`lightning`, released together)
    "pydantic": ["2.3.0"],  # CVE-2024-3772: a regular expression without end
    "scikit-learn": ["1.4.2"],  # CVE-2024-5206: vocabularies keep what they saw
    "numpy": ["1.21.6"],  # CVE-2021-34141, CVE-2021-41495
    "pillow": ["10.0.0", "10.2.0", "11.2.1", "12.1.0", "12.2.0", "12.3.0"],  # CVE-2023-4863 to GHSA-8g5g-8vmr-9782
    "pyyaml": ["5.3.1"],  # CVE-2020-14343
    "filelock": ["3.20.0", "3.20.2"],  # CVE-2025-68146, CVE-2026-22701: links are followed
    "setuptools": ["69.5.1", "78.1.0"],  # CVE-2024-6345, CVE-2025-47273
    "pytest": ["9.0.2"],  # CVE-2025-71176: a folder in /tmp that anybody can make before
}
UNSAFE_BELOW_OURS = {
    "jinja2": ["3.1.5"],  # CVE-2025-27516
    "tqdm": ["4.66.2"],  # CVE-2024-34062
    "fonttools": ["4.60.1"],  # CVE-2025-66034
    "h11": ["0.15.0"],  # CVE-2025-43859
    "idna": ["3.6"],  # CVE-2024-3651
    "joblib": ["1.1.0"],  # CVE-2022-21797
    "virtualenv": ["20.36.0"],  # CVE-2026-22702
}


def requirements() -> dict[str, Requirement]:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = said["project"]
    lines = [*said["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {found.name.lower(): found for found in map(Requirement, lines)}


def pinned() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", UNSAFE)
def test_releases_known_to_be_unsafe_are_excluded(name: str):
    floor = requirements()[name].specifier
    assert not [version for version in UNSAFE[name] if version in floor]
    assert pinned()[name] in floor


@pytest.mark.parametrize("name", UNSAFE | UNSAFE_BELOW_OURS)
def test_the_pinned_set_is_newer_than_what_is_known_to_be_unsafe(name: str):
    assert pinned()[name] > max(map(Version, (UNSAFE | UNSAFE_BELOW_OURS)[name]))


def test_every_pinned_release_satisfies_its_floor():
    known = pinned()
    assert not [str(said) for name, said in requirements().items() if known[name] not in said.specifier]


def test_every_test_that_the_page_on_security_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 15 and named <= there


# ---------------------------------------------------------------- no network

GUARD = """
import os, sys

def refuse(event, given):
    if event.startswith("socket.") and event != "socket.__new__" and event != "socket.gethostname":
        address = given[1] if event in ("socket.connect", "socket.sendto", "socket.bind") else None
        if isinstance(address, (str, bytes)):
            return  # between processes of this machine
        file = os.open(os.environ["ATTEMPTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{event} {given!r}\\n".encode())
        raise OSError(f"no network here: {event}")

sys.addaudithook(refuse)
"""
TRAINING = """
import sys, uhkd
small = dict(data="digits", epochs=1, train_limit=200, workers=0)
tiny = {"channels": [4, 4, 8, 8]}
uhkd.finetune(model="uhkd/resnet10", options=tiny, out=sys.argv[1] + "/teacher", **small)
uhkd.distill(teacher=sys.argv[1] + "/teacher", student="uhkd/resnet10", student_options=tiny, method="uhkd",
             out=sys.argv[1] + "/student", allow_weak_teacher=True, **small)
uhkd.evaluate(run=sys.argv[1] + "/student")
"""


def without_network(place: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A Python program with every way to a network closed, also to its children, and what it tried nonetheless."""
    (place / "guard").mkdir()
    (place / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = os.environ | {"ATTEMPTS": str(place / "attempts"), "PYTHONPATH": f"{place / 'guard'}:{ROOT / 'src'}"}
    cut_off = ["unshare", "-rn"]  # a network of its own, with nothing in it; not every system lets us
    with contextlib.suppress(OSError):
        if subprocess.run([*cut_off, "true"], capture_output=True, check=False).returncode == 0:
            words = (*cut_off, sys.executable, *words)
    words = words if words[0] == "unshare" else (sys.executable, *words)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=place, check=False)
    attempts = place / "attempts"
    return done, attempts.read_text() if attempts.exists() else ""


@pytest.mark.slow
def test_a_training_needs_no_network(tmp_path: Path):
    done, attempts = without_network(tmp_path, "-c", TRAINING, str(tmp_path))
    assert (done.returncode, attempts) == (0, ""), done.stderr
    assert (tmp_path / "student" / "result.json").is_file()


def test_the_closed_network_is_closed(tmp_path: Path):
    call = "import urllib.request; urllib.request.urlopen('http://example.com', timeout=5)"
    done, attempts = without_network(tmp_path, "-c", call)
    assert done.returncode == 1 and "no network here" in done.stderr and "socket.getaddrinfo" in attempts


@pytest.mark.slow
def test_the_demo_needs_no_network(tmp_path: Path):
    done, attempts = without_network(tmp_path, "-m", "uhkd", "demo", "--quick", "--out", str(tmp_path / "demo"))
    assert (done.returncode, attempts) == (0, ""), done.stderr
    assert json.loads((tmp_path / "demo" / "compare.json").read_text())["missing"] == {}
