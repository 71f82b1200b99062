"""Scripts and shells: JSON, exit codes, quiet and verbose, dry runs, completion, schemas for editors, tables when piped."""

import ast
import contextlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.table import Table

import uhkd
from uhkd import console
from uhkd.__main__ import COMMANDS, main
from uhkd.cli import json_output
from uhkd.cli.parser import CONFIGURED, SCHEMAS
from uhkd.commands.dry_run import training_bytes
from uhkd.recipe import FinetuneRecipe, build, find_recipe, load_yaml, recipe_names
from uhkd.recipe.json_schema import RECIPES, editor_schema

TEACHER = ["--model", "uhkd/resnet10", "--data", "digits", "--train-limit", "64", "--epochs", "1", "--device", "cpu"]
STUDENT = ["--student", "uhkd/resnet10", "--data", "digits", "--train-limit", "64", "--epochs", "2"]
STUDENT += ["--batch-size", "16", "--device", "cpu"]


def ask(*line: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A trained network, the JSON document that its training answered, and what stood on stderr."""
    out = tmp_path_factory.mktemp("habits") / "run"
    code, said, err = ask("finetune", *TEACHER, "--out", str(out), "--json")
    assert code == 0
    return out, json.loads(said), err


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_a_training_answers_with_one_document(run: tuple[Path, dict[str, Any], str]):
    out, answer, err = run
    assert (answer["command"], answer["version"]) == ("finetune", uhkd.__version__)
    assert answer["arguments"]["epochs"] == 1 and answer["result"]["run"] == str(out)
    # in full: the very numbers of the run folder
    assert answer["result"]["metrics"] == json.loads((out / "result.json").read_text())["metrics"]
    assert "training" in err and "epoch 1/1" in err


def test_measuring_answers_with_numbers_in_full(run: tuple[Path, dict[str, Any], str]):
    code, said, err = ask("--json", "eval", str(run[0]))
    found = json.loads(said)["result"]
    assert code == 0 and 0 <= found["accuracy"] <= 1 and found["latency_ms"] > 0 and err == ""
    code, table, _ = ask("eval", str(run[0]))
    assert code == 0 and f"{found['accuracy']:.2%}" in table


def test_predictions_as_lines_csv_and_json(run: tuple[Path, dict[str, Any], str], tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a, b.png")
    ask_for = ["predict", str(run[0]), str(tmp_path), "--top", "2", "--device", "cpu"]
    _, line, _ = ask(*ask_for)
    _, csv, _ = ask(*ask_for, "--csv")
    found = json.loads(ask(*ask_for, "--json")[1])["result"][str(tmp_path / "a, b.png")]
    assert line.count("\n") == 1 and len(found) == 2
    rows = csv.splitlines()
    assert rows[0] == "file,rank,class,probability"
    assert rows[1] == f'"{tmp_path / "a, b.png"}",1,{found[0][0]},{found[0][1]}'


def test_predict_goes_on_past_files_that_cannot_be_decoded(run: tuple[Path, dict[str, Any], str], tmp_path: Path):
    from PIL import Image

    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    for name in ("c.jfif", "deep/d.png", "deep/.hidden/e.png"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name)
    (tmp_path / "a.jpg").write_bytes(b"%PDF-1.7")
    (tmp_path / "notes.txt").write_text("x")
    ask_for = ["predict", str(run[0]), str(tmp_path), "--topk", "1", "--device", "cpu"]
    code, said, err = ask(*ask_for)
    assert code == 1 and [line.split(": ")[0] for line in said.splitlines()] == [
        str(tmp_path / "c.jfif"),
        str(tmp_path / "deep/d.png"),
    ]
    assert err.splitlines()[-2:] == [
        "uhkd predict: 1 file without prediction:",
        f"  {tmp_path / 'a.jpg'}: cannot be decoded (its content is a PDF document)",
    ]
    assert "left aside, because they are not images: 1 .txt" in err and "skip-bad" not in err
    code, said, _ = ask(*ask_for, "--json")
    found = json.loads(said)
    assert code == 1 and len(found["result"]) == 2
    assert found["failed"] == {str(tmp_path / "a.jpg"): "cannot be decoded (its content is a PDF document)"}
    code, said, err = ask("predict", str(run[0]), str(tmp_path / "c.jfif"), "--top", "2", "--json")
    assert code == 0 and json.loads(said)["arguments"]["topk"] == 2 and "failed" not in json.loads(said)


@pytest.mark.parametrize(
    ("line", "code", "kind", "verb"),
    [
        (["evl"], 2, "usage", ""),
        (["eval"], 2, "usage", "eval"),
        (["eval", "nowhere"], 2, "refused", "eval"),
        (["eval", "nowhere", "--dry-run"], 2, "usage", "eval"),
    ],
)
def test_a_refusal_is_a_document_too(line: list[str], code: int, kind: str, verb: str):
    got, said, err = ask(*line, "--json")
    answer = json.loads(said)
    assert (got, answer["command"], answer["error"]["kind"], answer["error"]["exit_code"]) == (code, verb, kind, code)
    assert answer["error"]["message"] in err and "result" not in answer


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (uhkd.UhkdError("no"), 2, "refused"),
        (PermissionError(13, "Permission denied", "x"), 2, "system"),
        (KeyboardInterrupt(), 130, "stopped"),
        (BrokenPipeError(), 141, None),
        (ZeroDivisionError("ours"), 1, "internal"),
    ],
)
def test_exit_codes_are_those_of_the_documentation(
    error: BaseException, code: int, kind: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def verb(_: Any) -> None:
        raise error

    monkeypatch.setattr("uhkd.commands.doctor", verb)
    stream = (tmp_path / "out").open("w+")
    monkeypatch.setattr(sys, "stdout", stream)
    if code == 1:  # Python's own for a fault of ours, with the trace
        with pytest.raises(ZeroDivisionError):
            main(["doctor", "--json"])
    else:
        assert main(["doctor", "--json"]) == code
    if kind is not None:
        told = json.loads((tmp_path / "out").read_text())["error"]
        assert (told["kind"], told["exit_code"]) == (kind, code)
    page = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text(encoding="utf-8")
    assert f"| {code} |" in page and (kind is None or f"`{kind}`" in page)


def test_results_become_plain_data():
    class Own:
        def to_json(self) -> dict[str, Any]:
            return {"path": Path("a") / "b"}

    given = {1: (Own(), math.nan, [math.inf, 0.1 + 0.2]), "t": torch.ones(2, dtype=torch.int64), "n": np.float32(0.5)}
    assert json_output.to_jsonable(given) == {
        "1": [{"path": str(Path("a") / "b")}, None, [None, 0.1 + 0.2]],
        "t": [1, 1],
        "n": 0.5,
    }
    text = json_output.dumps({"name": "caf\u00e9 \x1b[31m\udce9"})
    assert text.isascii() and "\x1b" not in text and json.loads(text)["name"].startswith("caf\u00e9")
    with pytest.raises(TypeError, match="contains a object"):
        json_output.to_jsonable(object())


def test_names_errors_and_sizes_in_messages():
    assert [console.listed("abcde"[:n], 3) for n in (0, 1, 3, 5)] == ["", "a", "a, b, c", "a, b, c and 2 more"]
    assert console.listed(["a\n", *range(8)]) == "a\\n, 0, 1, 2, 3, 4, 5, 6 and 1 more"
    assert [console.first_line(error) for error in (OSError(" \na\nb"), OSError())] == ["a", "OSError"]
    assert [console.file_size(size) for size in (1, 999.6, 3.24e6, 2e12)] == ["1 byte", "1.0 kB", "3.2 MB", "2.0 TB"]


def test_quiet_says_the_result_alone_and_verbose_more(run: tuple[Path, dict[str, Any], str]):
    copy = [*TEACHER, "--dry-run"]
    _, out, err = ask("-q", "finetune", *copy)
    assert out.startswith("would train") and err == ""
    _, out, err = ask("finetune", *copy, "--verbose")
    assert out.startswith("would train") and "uhkd 0" in err and " s] running on cpu" in err and "took" in err
    assert console.VERBOSITY not in os.environ
    code, _, err = ask("eval", "nowhere", "-v")
    assert code == 2 and "Traceback" in err and "uhkd eval: error:" in err


def test_of_several_processes_the_first_speaks(monkeypatch: pytest.MonkeyPatch, run: tuple[Path, dict[str, Any], str]):
    monkeypatch.setenv("RANK", "1")
    assert ask("finetune", *TEACHER, "--dry-run", "--json") == (0, "", "")


@pytest.mark.parametrize("verb", ["finetune", "distill", "cache", "compare", "demo", "export"])
def test_a_dry_run_settles_and_writes_nothing(
    verb: str, run: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = {
        "finetune": [*TEACHER, "--out", "new"],
        "distill": ["--teacher", str(run[0]), *STUDENT, "--out", "new"],
        "cache": ["--teacher", str(run[0]), "--data", "digits", "--views", "3", "--out", "new", "--device", "cpu"],
        "compare": [
            "--pairs",
            "digits/vit",
            "--teachers",
            "digits/teacher",
            "--seeds",
            "2",
            "--methods",
            "scratch",
            "kd",
            "--out",
            "new",
        ],
        "demo": ["--quick", "--out", "new"],
        "export": [str(run[0]), "--to", "pt2", "safetensors", "--out", "new"],
    }
    before = files(run[0])
    code, said, _ = ask(verb, *words[verb], "--dry-run", "--json")
    plan = json.loads(said)["result"]
    assert code == 0 and plan["disk"]["bytes"] > 0 and list(tmp_path.iterdir()) == [] and files(run[0]) == before
    if verb == "distill":
        assert (plan["steps_per_epoch"], plan["steps"], plan["images_seen"]) == (4, 8, 128)
        assert plan["teacher"]["parameters"] == plan["student"]["parameters"] == 1_241_226
        assert plan["method"]["extra_parameters"] > 0 and plan["recipe"]["lr"] == 0.001
    if verb == "cache":
        assert plan["records"] == 3 * 1295 and plan["disk"]["bytes"] >= plan["records"] * plan["bytes_a_record"]
    if verb == "compare":
        assert (plan["trainings"], plan["teachers_to_train"], plan["done"]) == (5, 1, 0)


def test_a_plan_of_several_teachers_tells_them_apart(capsys: pytest.CaptureFixture[str]):
    from uhkd.commands.plan_table import print_plan

    print_plan("train", {"teachers": [{"name": "a", "levels": [1, 2]}, {"name": "b"}]})
    assert "teachers  name a, levels 1 2; name b" in capsys.readouterr().out


def test_a_dry_run_refuses_as_the_verb_would(run: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch):
    for words in (["--out", str(run[0])], ["--batch-size", "9999"], ["--device", "cuda"]):
        if words[-1] == "cuda" and torch.cuda.is_available():
            continue
        line = ["finetune", *TEACHER, *words]
        dry, wet = ask(*line, "--dry-run"), ask(*line)
        assert dry[0] == wet[0] == 2 and dry[2].splitlines()[-1] == wet[2].splitlines()[-1]
    assert (
        "has no setting 'nonsense'"
        in ask("distill", "--teacher", str(run[0]), *STUDENT, "--settings", "nonsense=1", "--dry-run")[2]
    )
    monkeypatch.setattr("uhkd.runs.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    code, _, err = ask("finetune", *TEACHER, "--dry-run")
    assert code == 2 and "1 byte free" in err


def test_the_disk_foreseen_is_not_less_than_what_a_run_leaves(run: tuple[Path, dict[str, Any], str]):
    out = run[0]
    foreseen = json.loads(ask("finetune", *TEACHER, "--dry-run", "--json")[1])["result"]["disk"]["bytes"]
    left = sum(size for size, _ in files(out).values())
    assert left < foreseen < 20 * left
    last, best = (build(FinetuneRecipe, {"model": "m", "data": "d", "keep": keep}) for keep in ("last", "best"))
    # the best weights in two checkpoints, and those of the last epoch at the end
    assert training_bytes(1000, 10, best) - training_bytes(1000, 10, last) == 3 * 4000


def test_completion_offers_every_option_and_needs_no_torch():
    script = (
        "import sys; from uhkd.__main__ import main; main(['completion', 'bash']);"
        "print([m for m in ('torch', 'numpy', 'timm') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    spec = ast.literal_eval(done.stdout.split("COMPLETION_SPEC = ")[1].split("\n")[0])
    for verb, schema in SCHEMAS.items():
        below = spec
        for word in verb.split():
            below = below["subcommands"][word]
        offered = {flag for option in below["options"] for flag in option["flags"]}
        positional = getattr(schema, "positional", ())
        wanted = {"--" + name.rstrip("_").replace("_", "-") for name in schema.model_fields if name not in positional}
        wanted |= {"--config", "-c"} if issubclass(schema, CONFIGURED) else set()
        wanted |= {"--dry-run"} if verb in console.PLANS else set()
        assert wanted | {"--json", "--quiet", "-q", "--verbose", "-v"} <= offered, verb


ASKED = [
    ("", "distill", "nothing"),
    ("distill --met", "--method", "--teacher"),
    ("distill --method uh", "uhkd", "kd"),
    ("export x --to timm o", "onnx", "timm"),
    ("eval runs --split t", "test", "val"),
    ("cache v", "verify", "uhkd"),
    ("cache verify --s", "--sample", "--storage"),
    ("-q mo", "models", "demo"),
    ("distill -c digits/v", "digits/vit", "digits/mlp"),
    ("distill --data pict", "picture.png", "other.png"),
    ("predict x pict", "", "picture.png"),  # left to bash, see below
    ("recipes --schema d", "distill", "cache"),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(tmp_path: Path):
    for name in ("picture.png", "other.png"):
        (tmp_path / name).touch()
    lines = [ask("completion", "bash")[1]]
    for words, _, _ in ASKED:
        *before, current = words.split(" ")
        typed = " ".join(f"'{word}'" for word in ["uhkd", *before, current])
        lines.append(
            f'COMP_WORDS=({typed}); COMP_CWORD={len(before) + 1}; _uhkd_or_files; echo "${{#COMPREPLY[@]}} ${{COMPREPLY[*]}}"'
        )
    lines.append("complete -p uhkd")
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    *answers, rule = done.stdout.splitlines()
    for (words, wanted, other), answer in zip(ASKED, answers, strict=True):
        number, _, offered = answer.partition(" ")
        assert wanted in offered.split(" ") and other not in offered.split(" "), (words, offered)
        assert bool(wanted) == (number != "0")
    assert rule == "complete -o default -F _uhkd_or_files uhkd"  # files where nothing is offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes(tmp_path: Path):
    (tmp_path / "u.fish").write_text(ask("completion", "fish")[1])
    for words, wanted, other in ASKED[1:7]:
        command = f"source u.fish; complete -C 'uhkd {words}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        offered = [line.split("\t")[0] for line in done.stdout.splitlines()]
        assert wanted in offered and other not in offered, (words, offered)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script(tmp_path: Path):
    (tmp_path / "_uhkd").write_text(ask("completion", "zsh")[1])
    subprocess.run(["zsh", "-n", str(tmp_path / "_uhkd")], check=True)


def fits(value: Any, schema: Any) -> bool:
    """Whether a value meets the parts of JSON Schema that pydantic writes for our recipes."""
    if schema is True:
        return True
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if ("enum" in schema and value not in schema["enum"]) or ("const" in schema and value != schema["const"]):
        return False
    kinds = schema.get("type", [])
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    types |= {"array": (list, tuple), "object": dict}
    names = [kinds] if isinstance(kinds, str) else kinds
    if names and not any(
        isinstance(value, types[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names
    ):
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        bounds = [value >= schema.get("minimum", value), value <= schema.get("maximum", value)]
        bounds += [value > schema.get("exclusiveMinimum", -math.inf), value < schema.get("exclusiveMaximum", math.inf)]
        return all(bounds)
    if isinstance(value, list | tuple):
        return len(value) >= schema.get("minItems", 0) and all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        return all(
            fits(v, known[k]) if k in known else others is not False and fits(v, others) for k, v in value.items()
        )
    return True


@pytest.mark.parametrize("verb", RECIPES)
def test_packaged_recipes_meet_the_schema_for_editors(verb: str):
    schema = json.loads(ask("recipes", "--schema", verb)[1])
    assert schema == json.loads(json.dumps(editor_schema(verb)))
    assert all(field.get("description") for field in schema["properties"].values()) and "required" not in schema
    assert schema["additionalProperties"] is False
    seen = 0
    for name in recipe_names():
        words = load_yaml(find_recipe(name))
        kind = "compare" if "pairs" in words else "distill" if "student" in words else "finetune"
        if kind == verb:
            seen += 1
            assert fits(words, schema), name
            with contextlib.suppress(ImportError):  # where it is installed, the library's word counts
                import jsonschema  # pyright: ignore[reportMissingImports]

                jsonschema.validate(words, schema)
    assert seen > 0 or verb == "cache"
    given = {"data": "d", "out": "o", "teacher": "t", "student": "s", "model": "m", "pairs": ["p"], "views": 1}
    own = {key: value for key, value in given.items() if key in RECIPES[verb].model_fields}
    assert fits(json.loads(build(RECIPES[verb], own).model_dump_json()), schema)
    for wrong in ({"epocs": 1}, {"seed": "x", "seeds": 0, "jobs": 0}, {"device": "gpu", "part": "train"}):
        assert not fits(wrong, schema)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_are_folded_on_terminals_and_never_cut(width: int, monkeypatch: pytest.MonkeyPatch):
    name = "timm/" + "a_long_name_of_a_network_" * 6
    table = Table("network", "accuracy")
    table.add_row(name, "12.34 ± 0.56")
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", out)
    console.print_table(table)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert "\u2026" not in out.getvalue() and max(map(len, lines)) <= width
    cells = "".join(line.split("\u2502")[1].strip() for line in lines if "\u2502" in line)
    assert name in cells


def test_tables_that_are_piped_are_whole_and_colourless(monkeypatch: pytest.MonkeyPatch):
    table = Table("network")
    table.add_row("x" * 300)
    monkeypatch.setenv("COLUMNS", "80")
    for name, coloured in (("NO_COLOR", False), ("FORCE_COLOR", True), (None, False)):
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.delenv("FORCE_COLOR", raising=False)
            if name:
                patch.setenv(name, "1")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                console.print_table(table)
        assert "x" * 300 in out.getvalue() and ("\x1b[" in out.getvalue()) == coloured


def test_letters_that_an_encoding_lacks_end_nothing(tmp_path: Path):
    code = "from uhkd.console import print_result; from uhkd.__main__ import main; main(['--version']); "
    code += "print_result('0.5 ± caf\u00e9')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == r"0.5 \xb1 caf\xe9"


def test_verbs_and_schemas_and_the_page_agree():
    page = (Path(__file__).parents[2] / "docs" / "scripting.md").read_text(encoding="utf-8")
    assert set(console.PLANS) <= set(COMMANDS)
    for word in (*console.OPTIONS, console.DRY_RUN, console.VERBOSITY, "NO_COLOR", "UHKD_TRACEBACK", "uhkd completion"):
        assert word in page
