"""A verb's result as one JSON document for scripts; what a user is refused as another."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from uhkd import __version__


def result_document(command: str, result: Any, arguments: Any = None) -> dict[str, Any]:
    """What a verb answers: its name, the version, the words that it was asked with, and its result."""
    fields = arguments.model_dump(mode="json") if hasattr(arguments, "model_dump") else arguments
    return {"verb": command, "version": __version__, "arguments": to_jsonable(fields), "result": to_jsonable(result)}


def error_document(command: str, kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """What stands in place of a result: kind is usage, refused, system, stopped or internal (docs/scripting.md)."""
    error = {"kind": kind, "message": message, "exit_code": exit_code}
    return {"verb": command, "version": __version__, "error": error}


def dumps(answer: Mapping[str, Any]) -> str:
    """One JSON document (RFC 8259), all of it ASCII: no terminal and no encoding can harm it."""
    return json.dumps(answer, indent=2, allow_nan=False)


def to_jsonable(value: Any) -> Any:
    """A value of JSON for a value of ours: numbers in full, paths as text, NaN and infinities as null.

    An object says what of it is data by a method `as_json`; of a data class that has none all fields count. Arrays and tensors
    become lists.

    Raises:
        TypeError: for an object that is none of these.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(below) for key, below in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(below) for below in (sorted(value) if isinstance(value, set | frozenset) else value)]
    for method in ("as_json", "model_dump", "tolist"):
        if (data := getattr(value, method, None)) is not None:
            return to_jsonable(data())
    if dataclasses.is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"a result holds a {type(value).__name__}, which is no plain data; give it a method as_json")
