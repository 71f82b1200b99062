"""Recipes from elsewhere: whatever the file holds, it is read or refused in words, and what is read can be written down again."""

import contextlib
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uhkd.recipe import (
    CacheRecipe,
    CompareRecipe,
    DistillRecipe,
    FinetuneRecipe,
    RecipeError,
    StrictModel,
    TrainRecipe,
    build,
    find_recipe,
    load_yaml,
    recipe_names,
    scalar,
    to_yaml,
)

WHOLE: dict[type[StrictModel], dict[str, Any]] = {
    FinetuneRecipe: {"model": "uhkd/resnet10", "data": "digits", "options": {"channels": [4, 8]}, "lr": 1e-3},
    DistillRecipe: {"teacher": "t", "student": "s", "data": "d", "settings": {"radius": 2}, "student_levels": [1, 2]},
    CacheRecipe: {"teacher": "t", "data": "d", "out": "o", "keep": ["logits"], "flip": None},
    CompareRecipe: {
        "pairs": ["p"],
        "variants": {"v": {"method": "kd", "weights": {"kl": 2}}},
        "changes": {"epochs": 1},
    },
}
often = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
every = pytest.mark.parametrize("schema", WHOLE, ids=lambda schema: schema.__name__)


def read(schema: type[StrictModel], file: Path) -> StrictModel | None:
    """A recipe that comes back the same from what a run folder notes of it, or None where it is refused, shortly."""
    problems, size = list[str](), file.stat().st_size
    try:
        recipe = build(schema, load_yaml(file))
    except RecipeError as error:
        recipe, problems = None, error.problems
    assert all("\n" not in problem and len(problem) < 1000 + size for problem in problems), problems
    if recipe is None:
        return None
    noted = recipe.model_dump(mode="json")
    file.write_text(yaml.safe_dump(noted), encoding="utf-8")
    assert build(schema, load_yaml(file)).model_dump(mode="json") == noted
    if isinstance(recipe, TrainRecipe):
        file.write_text(to_yaml(recipe), encoding="utf-8")
        assert build(schema, load_yaml(file)) == recipe.resolved()
    return recipe


@every
def test_a_whole_recipe_is_read(schema: type[StrictModel], tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(WHOLE[schema]))
    assert read(schema, file) is not None


@every
@often
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, schema: type[StrictModel], content: bytes):
    (tmp_path / "recipe.yaml").write_bytes(content)
    read(schema, tmp_path / "recipe.yaml")


@every
@often
@given(data=st.data())
def test_a_changed_piece(tmp_path: Path, schema: type[StrictModel], data: st.DataObject):
    content = bytearray(yaml.safe_dump(WHOLE[schema]).encode())
    start = data.draw(st.integers(0, len(content)))
    piece = data.draw(
        st.binary(max_size=8) | st.text(st.sampled_from("[]{}&*!|>'\"%@`#-:?,<=. \n\t0eE+_~"), max_size=8)
    )
    content[start : start + data.draw(st.integers(0, 8))] = piece.encode() if isinstance(piece, str) else piece
    (tmp_path / "recipe.yaml").write_bytes(content)
    read(schema, tmp_path / "recipe.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers() | st.booleans(), inner, max_size=4)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)


@every
@often
@given(data=st.data())
def test_plain_data_of_any_shape(tmp_path: Path, schema: type[StrictModel], data: st.DataObject):
    file, words = tmp_path / "recipe.yaml", data.draw(plain)
    if data.draw(st.integers(0, 9)):
        mappings = sorted(name for name, info in schema.model_fields.items() if get_origin(info.annotation) is dict)
        names = st.sampled_from(sorted(schema.model_fields)) | st.sampled_from(mappings or ["out"])
        words = WHOLE[schema] | data.draw(st.dictionaries(names, plain, min_size=1, max_size=2))
    file.write_text(yaml.safe_dump(words, allow_unicode=True), encoding="utf-8")
    read(schema, file)


# pieces of which most files are no YAML, and of the others many are odd
TOKENS = [
    "- ",
    ": ",
    ", ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<",
    "=",
    "? ",
    "| ",
    "> ",
    "\n",
    "\n  ",
    "\n---\n",
    "\t",
    "'",
    '"',
    "#",
]
TOKENS += [
    f"!!{tag} "
    for tag in ("bool", "int", "float", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "map", "x")
]
TOKENS += [
    "2026-02-31",
    "2026-02-28",
    "12:30:99",
    "1e999",
    ".nan",
    "-.inf",
    "0x",
    "0b2",
    "0o8",
    "1_000",
    "~",
    "''",
    "yes",
    "k",
]
TOKENS += [
    "epochs",
    "options",
    "settings",
    "data",
    "pairs",
    "9" * 5000,
    "!!python/object/apply:os.mkdir [executed]",
    "%YAML 9.9\n",
]


@every
@often
@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=12), before=st.booleans())
def test_any_yaml(tmp_path: Path, schema: type[StrictModel], tokens: list[str], before: bool):
    text = "".join(tokens)
    with contextlib.chdir(tmp_path):
        Path("recipe.yaml").write_text(yaml.safe_dump(WHOLE[schema]) + text if before else text, encoding="utf-8")
        read(schema, Path("recipe.yaml"))
        scalar(text)
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"], "something was executed"


@pytest.mark.parametrize("levels", [10, 600])
def test_brackets_in_brackets(tmp_path: Path, levels: int):
    file = tmp_path / "recipe.yaml"
    file.write_text("[" * levels + "]" * levels)
    with pytest.raises(RecipeError):
        load_yaml(file)
    scalar("[" * levels)


@every
def test_a_few_bytes_that_stand_for_all_memory(schema: type[StrictModel], tmp_path: Path):
    """Ten lists of ten times the one before: ten thousand million values where anything follows the aliases."""
    file = tmp_path / "recipe.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    for field in ("seed", "data", "options", "settings", "keep", "pairs", "changes", "variants", "unknown"):
        file.write_text("\n".join([*lines, f"{field}: {{a: *a9}}"]))
        assert read(schema, file) is None


@often
@given(
    name=st.text(max_size=20)
    | st.lists(st.sampled_from(["..", "/", "a", ".yaml", "~", "\0", "digits", "//"])).map("".join)
)
def test_any_name(name: str):
    """A name is found, or refused with advice; none leads out of the package's recipes but to files that are there."""
    try:
        found = find_recipe(name)
    except RecipeError:
        return
    assert found.is_file() and (Path(name).exists() or Path(name).with_suffix("").as_posix() in recipe_names())
