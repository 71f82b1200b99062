"""The report as one HTML page that needs nothing else: no network, no model, no data."""

import base64
import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from uhkd.console import escape_lines
from uhkd.reporting import error_figures, feature_figures, figures, tables, thumbnails
from uhkd.reporting.aggregates import KINDS, classes_of, examples, gains, labels_of, predicted
from uhkd.reporting.draw import inline
from uhkd.reporting.figure_data import DARK, DASHES, LIGHT, Drawing
from uhkd.reporting.grouping import MethodGroup, Report, StudentGroup
from uhkd.reporting.run_data import Run
from uhkd.reporting.summary import verdict
from uhkd.runs import RunFolder, leads_out

MARK = '<meta name="generator" content="uhkd report">'  # by this a page of ours is known
LINES = 8  # drawn from the start in a figure that compares groups; the reader adds others
_INSIDE = 60  # groups whose own figures are drawn: a page stays below some ten megabytes
_RECIPE = 8_000  # letters of a recipe that are shown
_CLASSES = 200  # rows of the table of gains by class
_NAMES = 12  # its columns
_LARGE = 64  # pixels from which an image is shown smoothly


def render(report: Report, version: str) -> str:
    """The page; version: of uhkd, for its foot."""
    environment = Environment(
        loader=PackageLoader("uhkd.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda x: x if isinstance(x, Markup) or not isinstance(x, str) else escape_lines(x),
    )
    assert environment.loader is not None
    script, style = (Markup(environment.loader.get_source(environment, name)[0]) for name in ("page.js", "page.css"))
    families = [_family(family) for family in report.families]
    drawn = sum(len(f["inside"]) for f in families)
    notes = [*report.notes]
    groups = sum(len(family.groups) for family in report.families)
    if groups > drawn:
        notes.append(f"the features of {groups - drawn} groups are not drawn here; report fewer runs to see them")
    return environment.get_template("page.html").render(
        mark=Markup(MARK),
        title=report.title,
        version=version,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=len(report.runs),
        families=families,
        notes=notes,
        head=tables.HEAD,
        machines=tables.machines(report.runs),
        colours=Markup(_colours()),
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        swatch=_swatch,
    )


def _colours() -> str:
    def variables(colours: Mapping[str, str]) -> str:
        return ";".join(f"--{name}:{colour}" for name, colour in colours.items())

    return (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    )


def _swatch(hue: str, dash: int) -> Markup:
    dashes = Markup(' stroke-dasharray="{}"').format(DASHES[dash % 4]) if dash % 4 else ""
    line = Markup('<path fill="none" stroke="var(--{})" stroke-width="2" d="M1 5L29 5"{}/>').format(hue, dashes)
    return Markup('<svg class="swatch" aria-hidden="true" viewBox="0 0 30 10" width="30" height="10">{}</svg>').format(
        line
    )


def _family(family: StudentGroup) -> dict[str, Any]:
    first = {group.key for group in family.groups[:LINES]}
    some = family.groups[:_INSIDE]
    return {
        "key": family.key,
        "title": family.title,
        "verdict": verdict(family),
        "rows": tables.summary_rows(family, first),
        "many": len(family.groups) > LINES,
        "figures": [_figure(drawing, first) for drawing in figures.of_family(family)],
        "focus": family.focus.label,
        "classes": _class_table(family),
        "examples": _examples(family),
        "inside": [_inside(group) for group in some],
        "recipes": [_recipe(group) for group in family.groups],
        "differing": tables.differing(family) if len(family.groups) > 1 else [],
        "run_rows": tables.run_rows(family),
        "lacking": _lacking(family),
    }


def _figure(drawing: Drawing, first: set[str] | None = None) -> dict[str, Any]:
    hidden = [key for *_, key in drawing.legend if key and first is not None and key not in first]
    panels = []
    for place, panel in enumerate(drawing.panels):
        name = f"{drawing.title}, {panel.title}" if panel.title else drawing.title
        panels.append(inline(panel, f"{name}. {drawing.alt}", f"{drawing.key}-{place}", hidden))
    comparing = any(key for *_, key in drawing.legend)
    return {
        "key": drawing.key,
        "title": drawing.title,
        "how": drawing.how,
        "alt": drawing.alt,
        "panels": panels,
        "frames": drawing.frames,
        "legend": [(label, _swatch(hue, dash), key) for label, hue, dash, key in drawing.legend],
        "hidden": hidden,
        "comparing": comparing,
    }


def _inside(group: MethodGroup) -> dict[str, Any]:
    drawings = feature_figures.of_group(group)
    return {
        "key": group.key,
        "label": group.label,
        "runs": len(group.runs),
        "swatch": _swatch(f"s{group.hue}", group.dash),
        "figures": [_figure(drawing) for drawing in drawings],
        "missing": feature_figures.missing_of(group),
    }


def _recipe(group: MethodGroup) -> dict[str, Any]:
    labels = yaml.safe_dump(dict(group.first.recipe), sort_keys=False, allow_unicode=True) if group.first.recipe else ""
    cut = len(labels) > _RECIPE
    return {
        "label": group.label,
        "runs": [run.name for run in group.runs],
        "words": labels[:_RECIPE] if labels else tables.NOT_RECORDED,
        "cut": cut,
    }


def _class_table(family: StudentGroup) -> dict[str, Any] | None:
    """Gain of up to `_NAMES` groups on what the focus is compared with, class by class."""
    known, labels = error_figures.compared(family), labels_of(family)
    if known is None or labels is None:
        return None
    name, before, _, _ = known
    others = [g for g in family.groups if g.label != name]
    order = sorted(others, key=lambda g: g is not family.focus)
    classes = classes_of(family)
    found = {
        g.label: {x.name: x for x in gains(before, own, labels, classes)}
        for g in order[:_NAMES]
        if (own := predicted(g, labels))
    }
    rows = [
        (x.name, x.images, f"{x.before:.0f}", [f"{found[label][x.name].points:+.1f}" for label in found])
        for x in next(iter(found.values())).values()
    ]
    return {"base": name, "columns": [*found], "rows": rows[:_CLASSES], "left_out": max(0, len(rows) - _CLASSES)}


def _examples(family: StudentGroup) -> dict[str, Any]:
    """Examples by kind, each with its picture; or why there are none."""
    found = examples(family)
    if not found:
        noted = any(run.array("val_shown", 1) is not None for g in family.groups for run in g.runs)
        why = "on none of the images kept do they differ" if noted else "no images were recorded with these runs"
        return {"kinds": [], "why": why}
    images = _images(family)
    if images is None:
        return {"kinds": [], "why": "the file of images is missing or damaged"}
    labels = {"focus": family.focus.label, "base": family.baseline.label if family.baseline else "the baseline"}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for example in found:
        image = images[example.thumbnail]
        answers = [
            (name, named, "" if sure is None else f" ({100 * sure:.0f} %)", right)
            for name, named, sure, right in example.predictions
        ]
        text = "; ".join(f"{name} says {named}" for name, named, _, _ in answers)
        kinds.setdefault(example.kind, []).append(
            {
                "source": _data_address(image),
                "alt": f"validation image {example.index} of class {example.true}; {text}",
                "true": example.true,
                "index": example.index,
                "said": answers,
                "small": max(image.shape[:2]) < _LARGE,
            }
        )
    return {"kinds": [(KINDS[kind].format(**labels), cards) for kind, cards in kinds.items()], "why": ""}


def _images(family: StudentGroup) -> list[np.ndarray] | None:
    """The thumbnails of the run that kept them largest: each student's are as large as it sees them."""
    wanted = next((s for r in family.focus.runs if (s := r.array("val_shown", 1)) is not None), None)
    best: list[np.ndarray] | None = None
    for run in (run for group in family.groups for run in group.runs[:1]):
        own = run.array("val_shown", 1)
        if wanted is None or own is None or not np.array_equal(own, wanted):
            continue
        sheet = RunFolder(run.path).thumbnails
        try:
            if leads_out(sheet, run.path):
                continue
            found = thumbnails.read_sheet(sheet, len(own))
        except (ValueError, OSError):
            continue
        if best is None or found[0].size > best[0].size:
            best = found
    return best


def _data_address(image: np.ndarray) -> Markup:
    content = io.BytesIO()
    if max(image.shape[:2]) < _LARGE:
        Image.fromarray(image).save(content, format="PNG")
        kind = "png"
    else:
        Image.fromarray(image).save(content, format="JPEG", quality=88)
        kind = "jpeg"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}")


def _lacking(family: StudentGroup) -> list[tuple[str, str]]:
    def labels(group: MethodGroup, run: Run) -> list[str]:
        known = group.teacher is not None and group.teacher.prediction is not None
        return [w for w in tables.lacking(run) if not (known and w == "predictions of the teacher")]

    return [(run.name, ", ".join(found)) for g in family.groups for run in g.runs if (found := labels(g, run))]
