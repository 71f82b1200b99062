"""Recipes as YAML files: plain data only, found by name or path, errors with line numbers."""

import re
from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from uhkd.console import first_line
from uhkd.recipe import safe_yaml
from uhkd.recipe.errors import RecipeError, did_you_mean, format_value
from uhkd.recipe.near_paths import path_hint
from uhkd.recipe.train import TrainRecipe


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-3 is a number (text in YAML 1.1) and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):  # tag !!map before another kind of value
            raise _error("expected 'key: value' pairs", node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML raises an error with the line below
            if key in seen:
                raise _error(f"key {format_value(key)} given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # an invalid tag or date
            raise _error(f"{format_value(node.value)} is not a valid {node.tag.rpartition(':')[2]}", node) from error


def _error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, except that it quotes text that `_Loader` reads as a number."""


_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def scalar(text: str) -> Any:
    """Return the YAML value of `text`: a number, bool, None, list or dict; `text` itself if it is not valid YAML."""
    try:
        return safe_yaml.load_yaml(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file. Nothing in it is executed; relative paths are not changed.

    Raises:
        RecipeError: for an unreadable file, a syntax error (with its line), content other than a mapping, and a file that is too
            long, too deeply nested, or too large after expanding its aliases.
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
        raise RecipeError([f"{path}: not valid YAML: {first_line(error)}"]) from None
    except ValueError as error:
        raise RecipeError([f"cannot read recipe {path}: {error}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError([f"{path}, line 1: expected 'key: value' lines, found a {type(content).__name__}"])
    wrong = [key for key in content if not isinstance(key, str)]
    if wrong:
        raise RecipeError([f"{path}: expected names as keys, found {format_value(key)}" for key in wrong])
    return content


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, for example digits/teacher."""
    root = Path(str(files("uhkd"))) / "recipes"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """Return the YAML file of a recipe: `name` is a YAML file, a run folder or the name of a packaged recipe.

    Raises:
        RecipeError: if there is none; the message suggests similar names.
    """
    path = Path(name)
    if _is_recipe(path):
        return path / "recipe.yaml" if path.is_dir() else path
    names = recipe_names()
    packaged = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    if packaged in names:
        return Path(str(files("uhkd"))) / "recipes" / f"{packaged}.yaml"
    near = path_hint(path, lambda near: _is_recipe(near) and (near.is_dir() or near.suffix in (".yaml", ".yml")))
    hint = near or did_you_mean(packaged, names) or "; `uhkd recipes` lists them"
    raise RecipeError([f"no recipe {str(name)!r}: neither a file nor a packaged recipe{hint}"])


def _is_recipe(path: Path) -> bool:
    return path.is_file() or (path / "recipe.yaml").is_file()


def to_yaml(recipe: TrainRecipe) -> str:
    """Return the recipe as YAML with all options, including the resolved `lr` and `weight_decay`."""
    fields = recipe.resolved().model_dump(mode="json")
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
