"""Results and errors of commands as JSON documents for scripts."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from uhkd import __version__


def result_document(command: str, result: Any, arguments: Any = None) -> dict[str, Any]:
    """Return the document of a result: command, version, parsed options, result and, if there are any, files that failed."""
    failed = getattr(result, "failed", None)
    return {
        "command": command,
        "version": __version__,
        "arguments": to_jsonable(arguments),
        "result": to_jsonable(result),
    } | ({"failed": to_jsonable(failed)} if failed else {})


def error_document(command: str, kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """Return the document of an error; kind: usage, refused, system, stopped or internal (docs/scripting.md)."""
    error = {"kind": kind, "message": message, "exit_code": exit_code}
    return {"command": command, "version": __version__, "error": error}


def dumps(document: Mapping[str, Any]) -> str:
    """Return JSON (RFC 8259) in ASCII, which every terminal and encoding can represent."""
    return json.dumps(document, indent=2, allow_nan=False)


def to_jsonable(value: Any) -> Any:
    """Convert a value to JSON types: paths to text, arrays and tensors to lists, NaN and infinities to null.

    Of an object, the result of its method `to_json` is converted; without it, all fields of a data class.

    Raises:
        TypeError: for any other object.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    for method in ("to_json", "model_dump", "tolist"):
        if (convert := getattr(value, method, None)) is not None:
            return to_jsonable(convert())
    if dataclasses.is_dataclass(value):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"a result contains a {type(value).__name__}, which is not plain data; give it a method to_json")
