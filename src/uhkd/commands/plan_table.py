"""Plan of a dry run: networks, data and disk as plain data and as a table."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from uhkd.console import escape, file_size, print_result, print_table
from uhkd.data import DataSplits
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor
from uhkd.runs.disk import free_bytes
from uhkd.training.fit import count_parameters


def describe(network: FeatureExtractor) -> dict[str, Any]:
    return {
        "name": network.config.name,
        "parameters": count_parameters(network.module),
        "input": list(network.input_size),
        "levels": list(network.levels),
    }


def describe_data(data: DataSplits) -> dict[str, Any]:
    return {
        "name": data.name,
        "train": len(data.train),
        "val": len(data.val),
        "test": None if data.test is None else len(data.test),
        "classes": len(data.classes),
    }


def disk(folder: Path, needed: int) -> dict[str, int]:
    """Return the bytes to write and the free bytes.

    Raises:
        UhkdError: the disk is too small.
    """
    free = free_bytes(folder)
    if needed > free:
        raise UhkdError(
            f"{folder} has {file_size(free)} free, but about {file_size(needed)} would be written; free some space, or "
            "choose another --out"
        )
    return {"bytes": needed, "free": free}


def print_plan(what: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Print a plan as a table, and return it unchanged."""
    print_result(f"would {what} (nothing was written):")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in plan.items():
        if name != "recipe":
            table.add_row(f"  {name.replace('_', ' ')}", escape(_text(name, value)))
    print_table(table)
    if recipe := plan.get("recipe"):
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        print_result("with this recipe:\n" + textwrap.indent(text, "  ").rstrip())
    return plan


def _text(name: str, value: Any) -> str:
    """Format a value of a plan for the table."""
    if name == "disk":
        return f"about {file_size(value['bytes'])} at most, {file_size(value['free'])} free"
    if name in ("data", "teachers"):
        return "; ".join(_text("", item) for item in value) if isinstance(value, list) else _text("", value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text('', item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text("", item) for item in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
