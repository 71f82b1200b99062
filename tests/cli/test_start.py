"""What a command imports before it answers: counted, not timed."""

import ast
import inspect
import json
import os
import shlex
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torchvision

import uhkd
from uhkd.__main__ import main
from uhkd.models.cifar_variants import PARAMETERS, VARIANTS
from uhkd.models.factories import build_module
from uhkd.models.listing import _registered, may_exist
from uhkd.models.names import ModelName

SOURCE = Path(uhkd.__file__).parent
HEAVY = ("torch", "torchvision", "timm", "lightning_fabric", "torchmetrics", "sklearn", "scipy", "matplotlib")
SCRIPT = f"""\
import json, sys
from uhkd.__main__ import main
code = main(sys.argv[1:])
print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))
"""
PAIR = "--teacher uhkd/resnet10 --student uhkd/vit_micro"


def imported(line: str, folder: Path) -> tuple[int, list[str]]:
    """The exit code of a command line of `uhkd` in a process of its own, and the heavy modules in it at the end."""
    words = [sys.executable, "-c", SCRIPT, *line.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was begun."""
    place = tmp_path_factory.mktemp("here")
    (place / "run").mkdir()
    (place / "run" / "recipe.yaml").write_text("model: uhkd/vit_micro\ndata: digits\n", encoding="utf-8")
    (place / "run" / "metrics.csv").write_text("step,val_accuracy\n1,0.5\n", encoding="utf-8")
    return place


@pytest.mark.parametrize(
    "line",
    [
        "recipes",
        "recipes digits/vit digits/mlp",
        "models uhkd/*",
        "watch --once run",
        "completion bash",
        "distill --help",
    ],
)
def test_what_needs_no_network_imports_no_library_for_networks(line: str, folder: Path):
    assert imported(line, folder) == (0, [])


@pytest.mark.parametrize(
    "line",
    [
        "distil",
        f"distill {PAIR} --data digits --epoch 3",
        f"distill {PAIR}",
        f"distill {PAIR} --data digits --epochs many",
        f"distill {PAIR} --data digits --method uhk",
        f"distill {PAIR} --data digit",
        "distill --teacher timm/resnet81 --student uhkd/vit_micro --data digits",
        "finetune --model torchvision/resnet19 --data digits",
        "cache --teacher uhkd/resnet11 --data digits --out cache",
        f"inspect {PAIR} --method uhk",
        "compare --pairs digits/vit --methods kd uhk",
        "compare --pairs digits/vit --teachers nosuch",
        "eval nosuch",
        "watch nosuch",
        "recipes digit/vit",
        "models nosuch/*",
    ],
)
def test_a_mistake_in_a_name_or_option_is_answered_before_any_of_them_is_imported(line: str, folder: Path):
    assert imported(line, folder) == (2, [])
    assert [path.name for path in folder.iterdir()] == ["run"]


def test_a_setting_is_looked_up_by_torch_alone(folder: Path):
    assert imported(f"distill {PAIR} --data digits --settings radios=2", folder) == (2, ["torch"])


def test_all_names_that_are_wrong_are_told_at_once(capsys: pytest.CaptureFixture[str]):
    students = "distill --student uhkd/vit_micr --teacher nosuch"
    assert main(shlex.split(f"{students} --data digit")) == 2
    told = capsys.readouterr().err
    assert told.startswith("uhkd distill: error: 3 problems:\n") and told.count("\n  - ") == 3
    for part in ("data digit", "teacher: unknown", "unknown model 'uhkd/"):
        assert f"\n  - {part}" in told
    assert main(shlex.split(f"{students} --data digit --method kd+uhk+xyz")) == 2
    assert [line.split()[2] for line in capsys.readouterr().err.replace("uhkd distill: error: ", "").splitlines()] == [
        "'uhk';",
        "'xyz'",
    ]
    assert main(shlex.split(f"{students} --data digits --method scratch")) == 2
    assert "nosuch" not in capsys.readouterr().err, "scratch has no use for a teacher"


def test_a_bug_in_a_check_of_names_stays_visible(monkeypatch: pytest.MonkeyPatch):
    def bug(_: str) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("uhkd.cli.names.check_data_name", bug)
    with pytest.raises(ValueError, match="ours"):
        main(shlex.split(f"distill {PAIR} --data digits"))


def test_names_read_from_sources_are_those_the_libraries_list():
    assert list(_registered("timm")) == timm.list_models()
    assert list(_registered("torchvision")) == torchvision.models.list_models(module=torchvision.models)


def test_a_name_is_out_of_the_question_only_where_no_function_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("uhkd.models.listing._imported", lambda _: ("mine",))
    assert may_exist("timm", "mine")  # imported here, and a program registered it
    monkeypatch.delitem(sys.modules, "timm")
    assert may_exist("timm", "resnet18") and not may_exist("timm", "resnet81")
    monkeypatch.setattr("uhkd.models.listing._source", lambda _: "")
    assert may_exist("timm", "resnet81")  # its sources cannot be read


@pytest.mark.parametrize("name", VARIANTS)
def test_noted_parameters_are_those_of_the_network(name: str):
    module = build_module(ModelName("uhkd", name), size=None, num_classes=None, options={}, pretrained=False).module
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    assert list(PARAMETERS) == list(VARIANTS)


@pytest.mark.parametrize("package", ["uhkd", "uhkd.commands", "uhkd.data", "uhkd.models"])
def test_a_lazy_package_has_the_names_that_type_checkers_see(package: str):
    module = import_module(package)
    tree = ast.parse(inspect.getsource(module))
    seen = {
        alias.name: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == module._modules
    assert set(module.__all__) - {"__version__", "UhkdError"} == set(seen) and dir(module) == sorted(module.__all__)
    for name, home in seen.items():
        assert getattr(module, name) is getattr(import_module(home), name)


def test_a_lazy_package_in_a_zip_file_finds_its_names(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        for path in SOURCE.glob("**/*.py"):
            archive.write(path, path.relative_to(SOURCE.parent))
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'lib.zip')!r}); from uhkd.models import ModelConfig, __file__ as f"
    script += "; print(f, ModelConfig.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, check=True
    )
    assert "lib.zip" in done.stdout and done.stdout.endswith(" uhkd.models.config\n")


def test_a_submodule_does_not_hide_the_function_of_its_name():
    import_module("uhkd.commands.compare")
    import_module("uhkd.data.tar_headers")
    from uhkd.commands import compare
    from uhkd.data import tars

    assert callable(compare) and callable(tars)
