"""The command line: what it answers without heavy imports, how it reads flags and YAML, how it tells mistakes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import uhkd
from uhkd.__main__ import COMMANDS, main
from uhkd.cli import names, parser
from uhkd.recipe import RecipeError
from uhkd.training.signals import TrainingInterrupted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Verbs that only note what they were asked, by function name."""
    notes: dict[str, Any] = {}
    functions = ["demo", "models", "inspect", "finetune", "distill", "evaluate", "predict", "report", "doctor"]
    verbs = {name: (lambda arguments, name=name: notes.__setitem__(name, arguments)) for name in functions}
    monkeypatch.setitem(sys.modules, "uhkd.commands", SimpleNamespace(**verbs))
    monkeypatch.setattr(uhkd, "commands", sys.modules["uhkd.commands"], raising=False)
    monkeypatch.setattr(names, "check_names", lambda _: None)  # their teachers and data are not there
    return notes


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What stands on stderr for a mistaken command line; nothing may stand on stdout and no trace anywhere."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and err.count("\n") < 25
    return err


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {verb} " in text for verb in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"uhkd {uhkd.__version__}\n"


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]):
    assert set(COMMANDS) == {verb for verb in parser.SCHEMAS if " " not in verb}
    for verb, schema in parser.SCHEMAS.items():
        assert main([*verb.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: uhkd {verb} " in text
        flags = text.lower().replace("_", "-")
        assert [name for name in schema.model_fields if name.rstrip("_").replace("_", "-") not in flags] == []


def test_help_imports_no_heavy_module():
    heavy = ["torch", "timm", "numpy", "matplotlib", "sklearn", "lightning_fabric"]
    script = (
        "import sys; from uhkd.__main__ import main; main([]); light = set(sys.modules); main(['distill', '--help']);"
        f"print([m for m in {heavy} if m in sys.modules], [m for m in ('tyro', 'pydantic') if m in light])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["distil"], "uhkd: error: unknown command 'distil'; did you mean 'distill'?"),
        (["xyz"], "the commands are demo, models"),
        (["--verson"], "unknown option '--verson'"),
        (
            ["finetune", "--model", "m", "--data", "d", "--epoch", "3"],
            "unknown option --epoch; did you mean '--epochs'",
        ),
        (["finetune", "--model", "m", "--data", "d", "--epochs"], "--epochs: needs a value, found none"),
        (["finetune", "--model", "m", "--data", "d", "--epochs", "--seed", "3"], "--epochs: needs a value"),
        (["finetune", "--model", "m", "--data", "d", "junk"], "unexpected argument 'junk'"),
        (["finetune", "--model", "m"], "uhkd finetune: error: data: required but not given"),
        (["distill", "--settings", "radius"], "--settings: expected KEY=VALUE, found 'radius'"),
        (["distill", "-c", "no/such"], "uhkd distill: error: no recipe 'no/such': neither a file nor"),
        (
            ["eval", "runs/x", "--split", "tes"],
            "split: expected auto, val, test or all, found 'tes'; did you mean 'test'?",
        ),
        (["eval"], "uhkd eval: error: run: required but not given"),
        (["predict", "runs/x"], "images: required but not given"),
        (["models", "--max-params", "small"], "max_params: expected a number, found 'small'"),
        (["doctor", "--now"], "unknown option --now"),
        (["finetune", "--lr", "-1", "--epochs"], "--epochs: needs a value, found none"),
        (["distill", "--batch_size", "--lr", "1"], "--batch_size: needs a value, found none"),
        (["distill", "-c", "--lr", "1"], "-c: needs a value, found none"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str], asked: dict, argv: list[str], message: str):
    err = complaint(capsys, *argv)
    assert message in err
    if argv[0] != "distill":
        assert err.count("\n") == 1
    assert not asked


def test_all_mistakes_of_one_line_together(capsys: pytest.CaptureFixture[str], asked: dict):
    err = complaint(
        capsys, "distill", "--epoch=3", "--student", "s", "--data", "d", "--epochs", "x", "--lr", "0", "--weights", "kl"
    )
    assert err.startswith("uhkd distill: error: 5 problems:\n")
    for part in (
        "unknown option --epoch;",
        "epochs: expected",
        "lr: expected",
        "--weights: expected",
        "teacher: required",
    ):
        assert part in err


def test_flags_reach_the_verb(asked: dict):
    line = (
        "distill --teacher runs/t --student timm/resnet18 --data d --method uhkd --epochs 7 --seed 3 --lr 1e-3 --flip"
    )
    more = "--settings radius=2 form=amplitude --settings decay=1e-2 --weights features=10 --clip-grad none --levels-x"
    assert main([*line.split(), *more.split()[:-1], "--student_levels", "2", "5", "--train-limit=100"]) == 0
    recipe = asked["distill"]
    assert (recipe.teacher, recipe.student, recipe.epochs, recipe.seed, recipe.lr) == (
        "runs/t",
        "timm/resnet18",
        7,
        3,
        1e-3,
    )
    assert recipe.settings == {"radius": 2, "form": "amplitude", "decay": 1e-2}
    assert recipe.weights == {"features": 10.0}
    assert (recipe.clip_grad, recipe.flip, recipe.student_levels, recipe.train_limit) == (None, True, ("2", "5"), 100)


def test_small_verbs_reach_their_functions(asked: dict):
    assert main(["eval", "--split", "val", "runs/x"]) == 0
    assert (asked["evaluate"].run, asked["evaluate"].split, asked["evaluate"].data) == ("runs/x", "val", None)
    assert main(["predict", "runs/x", "a.png", "b", "--top", "2"]) == 0
    assert (asked["predict"].images, asked["predict"].topk) == (("a.png", "b"), 2)
    assert main(["models", "timm/*vit*", "--max-params", "6"]) == 0
    assert (asked["models"].pattern, asked["models"].max_params) == ("timm/*vit*", 6.0)
    assert main(["models"]) == 0
    assert asked["models"].pattern == "*"
    assert main(["demo", "--quick", "--seeds", "1"]) == 0
    assert (asked["demo"].quick, asked["demo"].seeds, asked["demo"].out) == (True, 1, "runs/demo")
    assert main(["doctor"]) == 0
    assert main(["report", "runs/x", "runs/y", "--figures"]) == 0
    assert (asked["report"].runs, asked["report"].out, asked["report"].figures) == (("runs/x", "runs/y"), None, True)


def test_only_given_flags_override_the_yaml(asked: dict, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "teacher: t\nstudent: s\ndata: d\nepochs: 5\nflip: true\nskip_bad_images: true\nlr: 3e-4\n"
        "settings: {radius: 2, form: amplitude}\n"
    )
    assert main(["distill", "-c", str(path)]) == 0
    recipe = asked["distill"]
    assert (recipe.epochs, recipe.flip, recipe.skip_bad_images, recipe.lr) == (5, True, True, 3e-4)
    flags = ["--epochs", "6", "--no-skip-bad-images", "--no-flip", "--settings", "radius=1", "--lr", "none"]
    assert main(["distill", "--config", str(path), *flags]) == 0
    recipe = asked["distill"]
    assert (recipe.epochs, recipe.flip, recipe.skip_bad_images, recipe.lr) == (6, False, False, None)
    assert recipe.settings == {"radius": 1, "form": "amplitude"}
    # a flag that repeats the schema's default still overrides
    assert main(["distill", "-c", str(path), "--epochs", "30"]) == 0
    assert asked["distill"].epochs == 30


def test_yaml_mistakes_come_with_the_flags_mistakes(capsys: pytest.CaptureFixture[str], asked: dict, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\nepocs: 5\ndata: d\n")
    err = complaint(capsys, "finetune", "-c", str(path), "--batch-size", "0")
    assert "epocs: unknown key; did you mean 'epochs'" in err
    assert "batch_size: expected a value >= 1, found '0'" in err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def verb(_: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["uhkd.commands"], "finetune", verb)


FINETUNE = ["finetune", "--model", "m", "--data", "d"]


def test_errors_of_the_library(capsys: pytest.CaptureFixture[str], asked: dict, monkeypatch: pytest.MonkeyPatch):
    raising(monkeypatch, RecipeError(["no images in d"]))
    assert complaint(capsys, *FINETUNE).startswith("uhkd finetune: error: no images in d\n")
    raising(monkeypatch, PermissionError(13, "Permission denied", "runs/x"))
    assert "Permission denied: 'runs/x'" in complaint(capsys, *FINETUNE)
    monkeypatch.setenv("UHKD_TRACEBACK", "1")
    with pytest.raises(PermissionError):
        main(FINETUNE)
    raising(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(FINETUNE)


def test_errors_of_other_modules_point_to_the_traceback(
    capsys: pytest.CaptureFixture[str], asked: dict, monkeypatch: pytest.MonkeyPatch
):
    raising(monkeypatch, OSError("deep inside"))
    assert "UHKD_TRACEBACK=1" in complaint(capsys, *FINETUNE)
    raising(monkeypatch, ValueError("deep inside"))
    with pytest.raises(ValueError, match="deep inside"):
        main(FINETUNE)
    assert "internal error, not a mistake in the command" in capsys.readouterr().err


def test_stopping_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], asked: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    raising(monkeypatch, KeyboardInterrupt())
    out = tmp_path / "my run"
    assert main([*FINETUNE, "--out", str(out)]) == 130
    assert "stopped before the run folder was created: nothing was written" in capsys.readouterr().err
    raising(monkeypatch, TrainingInterrupted("stopped", 130, out))
    assert main([*FINETUNE, "--out", str(out)]) == 130
    assert f"resume with: uhkd finetune --model m --data d --out '{out}' --resume\n" in capsys.readouterr().err
    assert main(FINETUNE) == 130
    assert f"resume with: uhkd finetune --model m --data d --resume --out '{out}'\n" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(asked: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    raising(monkeypatch, BrokenPipeError())
    with (tmp_path / "out").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(FINETUNE) == 141


def test_an_option_of_an_older_version_is_reported_with_its_current_name(capsys: pytest.CaptureFixture[str]):
    assert main(["finetune", "--model", "timm/resnet18", "--lanes", "2"]) == 2
    assert "unknown option --lanes; it is --shuffle-streams now" in capsys.readouterr().err
