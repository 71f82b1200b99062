"""Recipes as YAML: plain data only, read with line numbers in errors, found by name or path."""

import re
from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uhkd.recipe import safe_yaml
from uhkd.recipe.errors import RecipeError, did_you_mean, shown
from uhkd.recipe.train import TrainRecipe


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads 1e-3 as a number (YAML 1.1 reads it as text) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):  # by a tag: !!map in front of something else
            raise yaml.constructor.ConstructorError(None, None, "expected 'key: value' pairs", node.start_mark)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML's own error, below, names the line
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key)} given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # PyYAML's own, where a tag or a date does not fit
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(node.value)} is no {kind}", node.start_mark
            ) from error


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes text which `_Loader` would read as a number."""


_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def scalar(text: str) -> Any:
    """The plain value that `text` stands for in YAML: number, true or false, null, list or the text itself."""
    try:
        return safe_yaml.load_yaml(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; nothing in it is executed and relative paths stay as they are.

    Raises `RecipeError` for an unreadable file, a syntax error (with its line), anything but a mapping, and a file that is too
    long, too deep or by its aliases too large.
    """
    path = Path(path)
    try:
        content = safe_yaml.load_yaml(safe_yaml.read_text(path, safe_yaml.LARGEST), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError([f"cannot read recipe {path}: {reason}"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError([f"{path}{where}: {error.problem or 'not valid YAML'}"]) from None
    except yaml.YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {str(error).splitlines()[0]}"]) from None
    except ValueError as error:
        raise RecipeError([f"cannot read recipe {path}: {error}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError([f"{path}, line 1: expected 'key: value' lines, found a {type(content).__name__}"])
    wrong = [key for key in content if not isinstance(key, str)]
    if wrong:
        raise RecipeError([f"{path}: expected names as keys, found {shown(key)}" for key in wrong])
    return content


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as digits/teacher."""
    root = Path(str(files("uhkd"))) / "recipes"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The YAML file of `name`: a path, or the name of a packaged recipe. Raises `RecipeError` with near names."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    names = recipe_names()
    given = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    if given in names:
        return Path(str(files("uhkd"))) / "recipes" / f"{given}.yaml"
    hint = did_you_mean(given, names) or "; `uhkd recipes` lists those"
    raise RecipeError([f"no recipe {str(name)!r}: neither a file nor a packaged recipe{hint}"])


def to_yaml(recipe: TrainRecipe) -> str:
    """The whole recipe as YAML, learning rate and weight decay resolved: reading it back gives the same training."""
    fields = recipe.resolved().model_dump(mode="json")
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
