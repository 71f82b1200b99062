"""Recipes: every mistake at once, in words; YAML as plain data; a recipe survives the way to YAML and back."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from uhkd.recipe import (
    CompareRecipe,
    DistillRecipe,
    FinetuneRecipe,
    RecipeError,
    TrainRecipe,
    as_recorded,
    build,
    did_you_mean,
    find_recipe,
    load_yaml,
    recipe_names,
    scalar,
    to_yaml,
)

FINETUNE = {"model": "uhkd/resnet10", "data": "digits"}
DISTILL = {"teacher": "runs/t", "student": "uhkd/vit_micro", "data": "digits"}


def problems(schema: type[TrainRecipe], **words: object) -> list[str]:
    """What `build` complains about."""
    with pytest.raises(RecipeError) as caught:
        build(schema, words)
    return caught.value.problems


def test_defaults_of_the_short_form():
    recipe = build(DistillRecipe, DISTILL)
    assert (recipe.method, recipe.epochs, recipe.batch_size, recipe.optimizer) == ("uhkd", None, None, "adamw")
    assert recipe.settings == {} and recipe.weights == {} and recipe.flip is None and recipe.val_fraction is None


@pytest.mark.parametrize(
    ("optimizer", "rate", "decay"), [("adamw", 1e-3, 0.05), ("sgd", 0.05, 5e-4), ("lamb", 5e-3, 0.02)]
)
def test_learning_rate_and_decay_follow_the_optimizer(optimizer: str, rate: float, decay: float):
    recipe = build(FinetuneRecipe, FINETUNE | {"optimizer": optimizer})
    assert (recipe.lr, recipe.learning_rate, recipe.effective_weight_decay) == (None, rate, decay)
    assert (recipe.resolved().lr, recipe.resolved().weight_decay) == (rate, decay)
    own = build(FinetuneRecipe, FINETUNE | {"optimizer": optimizer, "lr": 0.3, "weight_decay": 0})
    assert (own.learning_rate, own.effective_weight_decay) == (0.3, 0.0)


def test_every_problem_is_told_at_once():
    found = problems(
        DistillRecipe, student="s", data="d", epoch=3, epochs="many", lr=-1, schedule="cosin", warmup_epochs=-1
    )
    text = "\n".join(found)
    assert len(found) == 6
    assert "epoch: unknown key; did you mean 'epochs'" in text
    assert "epochs: expected a whole number, found 'many'" in text
    assert "lr: expected a value > 0, found -1" in text
    assert "schedule: expected cosine, step or constant, found 'cosin'; did you mean 'cosine'?" in text
    assert "teacher: required but not given" in text
    assert "warmup_epochs: expected a value >= 0, found -1" in text
    assert str(RecipeError(found)).startswith("6 problems:\n  - ")


def test_checks_between_fields_are_told_with_the_others():
    found = problems(
        FinetuneRecipe, data="d", batch_size=10, grad_accum_steps=3, epochs=2, warmup_epochs=2, crop="middle"
    )
    text = "\n".join(found)
    assert "model: required" in text and "crop: expected auto, none, pad or resized" in text
    assert "grad_accum_steps: expected a divisor of batch_size (10), found 3" in text
    assert "warmup_epochs: expected less than epochs (2), found 2" in text


def test_a_field_that_is_wrong_by_itself_brings_no_second_complaint():
    found = problems(FinetuneRecipe, **FINETUNE, schedule="step", step_epochs=["x"])
    assert found == ["step_epochs.0: expected a whole number, found 'x'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"schedule": "step"}, "step_epochs: schedule step needs at least one epoch"),
        ({"step_epochs": [3]}, "only schedule step uses it"),
        ({"schedule": "step", "step_epochs": [9, 5], "epochs": 30}, "increasing numbers from 1 to 29, found [9, 5]"),
        ({"schedule": "step", "step_epochs": [30], "epochs": 30}, "increasing numbers from 1 to 29"),
        ({"schedule": "step", "step_epochs": [0, 3]}, "increasing numbers of at least 1, found [0, 3]"),
        ({"resume": True}, "resume: needs out"),
        ({"val_fraction": 1.0}, "val_fraction: expected a value < 1, found 1.0"),
        ({"label_smoothing": 1}, "label_smoothing: expected a value < 1"),
        ({"epochs": True}, "epochs: expected a number, found true"),
        ({"train_limit": True}, "train_limit: expected a number, found true"),
        ({"epochs": 1.5}, "epochs: expected a whole number, found 1.5"),
        ({"lr": float("nan")}, "lr: expected a finite number"),
        ({"mixup": float("inf")}, "mixup: expected a finite number"),
        ({"flip": "perhaps"}, "flip: expected true or false, found 'perhaps'"),
        ({"options": 3}, "options: expected key: value pairs, found 3"),
        ({"levels": "layer1"}, "levels: expected a list, found 'layer1'"),
        ({"model": 5}, "model: expected text, found 5"),
        ({"optimizer": "lam"}, "optimizer: expected adamw, sgd or lamb, found 'lam'; did you mean 'lamb'?"),
        ({"lr": 0.1, "min_lr": 0.1}, "min_lr: expected less than lr (0.1), found 0.1"),
        ({"min_lr": 0.002}, "min_lr: expected less than lr (0.001), found 0.002"),  # of what the optimizer settles
        ({"min_lr": -1}, "min_lr: expected a value >= 0, found -1"),
        (
            {"min_lr": 1e-5, "schedule": "step", "step_epochs": [3]},
            "min_lr: only schedule cosine uses it, found schedule step",
        ),
        ({"min_lr": 1e-5, "schedule": "constant"}, "min_lr: only schedule cosine uses it, found schedule constant"),
        ({"lr": 0.1, "warmup_lr": 0.2, "warmup_epochs": 1}, "warmup_lr: expected at most lr (0.1), found 0.2"),
        ({"warmup_lr": 0.002, "warmup_epochs": 1}, "warmup_lr: expected at most lr (0.001), found 0.002"),
        ({"warmup_lr": -1}, "warmup_lr: expected a value >= 0, found -1"),
        ({"clip_grad": 0}, "clip_grad: expected a value > 0, found 0"),
        ({"ema_decay": 0}, "ema_decay: expected a value > 0, found 0"),
        ({"ema_decay": 1.0}, "ema_decay: expected a value < 1, found 1.0"),
        ({"crop_scale": 0}, "crop_scale: expected a value > 0, found 0"),
        ({"crop_scale": 1.5}, "crop_scale: expected a value <= 1, found 1.5"),
        ({"erasing": 1.5}, "erasing: expected a value <= 1, found 1.5"),
        ({"erasing": -0.1}, "erasing: expected a value >= 0, found -0.1"),
        ({"color_jitter": 2}, "color_jitter: expected a value <= 1, found 2"),
        ({"randaugment": "rand-m9-mst0.5"}, "randaugment: expected rand followed by sections such as -m9 (magnitude)"),
        ({"randaugment": "rand-m9-mst0.5"}, "found 'rand-m9-mst0.5'"),
        ({"randaugment": 9}, "randaugment: expected text, found 9"),
    ],
)
def test_unfit_values(words: dict, message: str):
    found = problems(FinetuneRecipe, **(FINETUNE | words))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    "words",
    [
        {"lr": 0.1, "warmup_lr": 0.1, "warmup_epochs": 1},
        {"warmup_lr": 0, "warmup_epochs": 1},
        {"optimizer": "lamb", "min_lr": 0.004},  # below lamb's own rate, though above adamw's
        {"erasing": 1, "color_jitter": 1, "crop_scale": 1, "ema_decay": 0.99996, "clip_grad": None},
        {"randaugment": "rand"},
        {"randaugment": "rand-m9-n3-p0.5-mstd101-mmax15-inc1-tweights"},
        {"randaugment": None},
    ],
)
def test_values_at_the_ends_of_their_ranges(words: dict):
    recipe = build(FinetuneRecipe, FINETUNE | words)
    assert {name: getattr(recipe, name) for name in words} == words


def test_loss_weights_are_numbers_from_zero():
    found = problems(DistillRecipe, **DISTILL, weights={"kl": -1, "features": "x"})
    assert found == ["weights.kl: expected a value >= 0, found -1", "weights.features: expected a number, found 'x'"]


def test_the_share_of_a_teacher_is_read_under_its_old_name():
    old = {"teacher": "runs/a", "weight": 3.0}
    recipe = build(
        DistillRecipe, {k: v for k, v in DISTILL.items() if k != "teacher"} | {"teachers": [old, old | {"weight": 1}]}
    )
    assert [share for _, share in recipe.teacher_recipes()] == [0.75, 0.25]
    recorded = as_recorded({"student": "x", "balance": "lead", "teachers": [old]})
    assert recorded["teachers"] == [{"teacher": "runs/a", "share": 3.0}]
    with pytest.raises(RecipeError, match="weight: is now called share, and both are given"):
        build(DistillRecipe, {"student": "x", "data": "digits", "teachers": [old | {"share": 2}]})


def test_recipes_do_not_change():
    recipe = build(FinetuneRecipe, FINETUNE)
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_paths_and_block_numbers_become_text(tmp_path: Path):
    recipe = build(FinetuneRecipe, FINETUNE | {"data": tmp_path, "levels": [2, 5, "head"]})
    assert recipe.data == str(tmp_path)
    assert recipe.levels == ("2", "5", "head")


# YAML has no plain way to write control characters, and PyYAML changes some of them
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(
    lr=st.none() | st.floats(1e-8, 10),
    settings=st.dictionaries(
        st.text("abc_", min_size=1), st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | TEXT
    ),
    weights=st.dictionaries(st.text("klfeatures", min_size=1), st.floats(0, 1e6)),
    flip=st.none() | st.booleans(),
    levels=st.none() | st.lists(TEXT, min_size=1),
)
def test_yaml_and_back_is_the_same_recipe(tmp_path_factory: pytest.TempPathFactory, **words: object):
    recipe = build(DistillRecipe, DISTILL | {k if k != "levels" else "teacher_levels": v for k, v in words.items()})
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert build(DistillRecipe, load_yaml(path)) == recipe.resolved()


def test_yaml_reads_exponents_as_numbers(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("lr: 1e-3\nsettings: {a: 5E-4, b: 1e3x, c: '1e-3'}\n")
    assert load_yaml(path) == {"lr": 1e-3, "settings": {"a": 5e-4, "b": "1e3x", "c": "1e-3"}}


def test_yaml_executes_nothing(tmp_path: Path):
    mark = tmp_path / "executed"
    path = tmp_path / "r.yaml"
    path.write_text(f"data: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]\n")
    with pytest.raises(RecipeError, match="line 1"):
        load_yaml(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\ndata: [1, 2\nlr: 4\n", "line 3"),
        ("epochs: 3\nlr: 1\nepochs: 4\n", "line 3, column 1: key 'epochs' given twice"),
        ("epochs: 3\n? [lr]\n: 4\n", "line 2, column 3: found unhashable key"),
        ("- a\n- b\n", "expected 'key: value' lines, found a list"),
        ("just words\n", "found a str"),
        ("1: 2\n", "expected names as keys, found 1"),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_told_with_its_place(tmp_path: Path, text: str, message: str):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_unreadable_yaml(tmp_path: Path):
    with pytest.raises(RecipeError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a\xd8")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_yaml(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_recipes_are_found_by_path_run_folder_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipe.yaml").write_text("epochs: 2\n")
    assert find_recipe(tmp_path / "recipe.yaml") == tmp_path / "recipe.yaml"
    assert find_recipe(tmp_path) == tmp_path / "recipe.yaml"
    packaged = tmp_path / "recipes" / "digits"
    packaged.mkdir(parents=True)
    (packaged / "teacher.yaml").write_text("epochs: 3\n")
    monkeypatch.setattr("uhkd.recipe.files.files", lambda _: tmp_path)
    assert recipe_names() == ["digits/teacher"]
    assert find_recipe("digits/teacher") == find_recipe("digits/teacher.yaml") == packaged / "teacher.yaml"
    with pytest.raises(RecipeError, match="did you mean 'digits/teacher'"):
        find_recipe("digits/teachr")


def test_packaged_recipes_build():
    for name in recipe_names():
        words = load_yaml(find_recipe(name))
        schema = CompareRecipe if "pairs" in words else DistillRecipe if "student" in words else FinetuneRecipe
        # a packaged recipe may leave out what only the user knows
        missing = {key: "x" for key in ("data", "teacher", "student", "model") if key in schema.model_fields}
        assert isinstance(build(schema, missing | words), schema), name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("amplitude", "amplitude"),
        ("'2'", "2"),
        ("a: [", "a: ["),
    ],
)
def test_scalar(text: str, value: object):
    assert scalar(text) == value


def test_suggestions():
    assert did_you_mean("epoch", ["epochs", "data"]) == "; did you mean 'epochs'?"
    assert did_you_mean("zzz", ["epochs", "data"]) == ""


def test_every_field_explains_itself():
    for schema in (FinetuneRecipe, DistillRecipe):
        for name, info in schema.model_fields.items():
            assert info.description and "\n" not in info.description, name
    assert yaml.safe_load(to_yaml(build(DistillRecipe, DISTILL)))["lr"] == 1e-3
