"""What a dry run prints: networks, images and disk, as plain data and as a table."""

import shutil
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


def described(network: FeatureExtractor) -> dict[str, Any]:
    return {
        "name": network.card.name,
        "parameters": parameters_of(network),
        "input": list(network.input_size),
        "levels": list(network.levels),
    }


def parameters_of(network: FeatureExtractor) -> int:
    return sum(p.numel() for p in network.module.parameters())


def described_data(data: DataSplits) -> dict[str, Any]:
    return {
        "name": data.name,
        "train": len(data.train),
        "val": len(data.val),
        "test": None if data.test is None else len(data.test),
        "classes": len(data.classes),
    }


def existing(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def disk(folder: Path, needed: int) -> dict[str, int]:
    """Bytes that would be written at most, and those that are free.

    Raises:
        UhkdError: when it does not fit.
    """
    free = shutil.disk_usage(existing(folder)).free
    if needed > free:
        raise UhkdError(
            f"{folder} has {file_size(free)} free, and about {file_size(needed)} would be written; make room, or choose "
            "another --out"
        )
    return {"bytes": needed, "free": free}


def shown_plan(what: str, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as a table; returned as it is."""
    print_result(f"would {what} (nothing was written):")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    recipe = plan.get("recipe", {})
    for name, value in plan.items():
        if name == "recipe":
            continue
        table.add_row(f"  {name.replace('_', ' ')}", escape(_text(name, value)))
    print_table(table)
    if recipe:
        print_result(
            "by this recipe:\n"
            + textwrap.indent(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "  ").rstrip()
        )
    return plan


def _text(name: str, value: Any) -> str:
    """A value for people; of a recipe what differs from nothing said."""
    if name == "disk":
        return f"about {file_size(value['bytes'])} at most, {file_size(value['free'])} free"
    if name in ("data", "teachers"):
        return "; ".join(_text("", one) for one in value) if isinstance(value, list) else _text("", value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text('', below)}" for key, below in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_text("", below) for below in value) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
