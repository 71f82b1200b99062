"""The report as one HTML page that loads nothing else."""

import base64
import hashlib
import io
from collections import defaultdict
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
from uhkd.reporting.aggregates import KINDS, classes_of, examples, gains, predicted
from uhkd.reporting.draw import inline
from uhkd.reporting.figure_data import DARK, DASHES, LIGHT, Drawing
from uhkd.reporting.grouping import MethodGroup, Report, StudentGroup
from uhkd.reporting.run_data import Run
from uhkd.reporting.summary import calibration_sentence, summary_sentence
from uhkd.runs import RunFolder, leads_out
from uhkd.runs.best_epoch import OPTIMISTIC, best_epoch

MARK = '<meta name="generator" content="uhkd report">'  # identifies a page that may be overwritten
LINES = 8  # drawn at first in a figure that compares groups; the reader adds others
_MAX_GROUPS = 60  # with figures of features: a page stays below about ten megabytes
_MAX_RECIPE = 8_000  # characters
_MAX_CLASSES, _MAX_METHODS = 200, 12  # rows and columns of the table of gains by class
_LARGE = 64  # pixels from which an image is enlarged smoothly and stored as JPEG


def render(report: Report, version: str) -> str:
    """Return the page. version: of uhkd, for the footer."""
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
    notes = [*report.notes]
    left_out = sum(max(0, len(student_group.groups) - _MAX_GROUPS) for student_group in report.student_groups)
    if left_out:
        notes.append(f"the features of {left_out} groups are not drawn; report fewer runs to see them")
    return environment.get_template("page.html").render(
        mark=Markup(MARK),
        title=report.title,
        version=version,
        optimistic=OPTIMISTIC,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=len(report.runs),
        kept=[run.name for run in report.runs if best_epoch(run.result)],
        student_groups=[_student_group(student_group) for student_group in report.student_groups],
        notes=notes,
        head=tables.HEAD,
        environments=tables.environments(report.runs),
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
    return Markup(
        '<svg class="swatch" aria-hidden="true" viewBox="0 0 30 10" width="30" height="10">'
        '<path fill="none" stroke="var(--{})" stroke-width="2" d="M1 5L29 5"{}/></svg>'
    ).format(hue, dashes)


def _student_group(student_group: StudentGroup) -> dict[str, Any]:
    first = {group.key for group in student_group.groups[:LINES]}
    return {
        "key": student_group.key,
        "title": student_group.title,
        "sentence": summary_sentence(student_group) + calibration_sentence(student_group.focus),
        "rows": tables.summary_rows(student_group, first),
        "many": len(student_group.groups) > LINES,
        "figures": [_figure(drawing, first) for drawing in figures.of_student_group(student_group)],
        "focus": student_group.focus.label,
        "classes": _class_table(student_group),
        "examples": _examples(student_group),
        "features": [_features(group) for group in student_group.groups[:_MAX_GROUPS]],
        "recipes": [_recipe(group) for group in student_group.groups],
        "differing": tables.differing(student_group) if len(student_group.groups) > 1 else [],
        "run_rows": tables.run_rows(student_group),
        "missing": _missing(student_group),
    }


def _figure(drawing: Drawing, first: set[str] | None = None) -> dict[str, Any]:
    hidden = [key for *_, key in drawing.legend if key and first is not None and key not in first]
    panels = []
    for i, panel in enumerate(drawing.panels):
        title = f"{drawing.title}, {panel.title}" if panel.title else drawing.title
        panels.append(inline(panel, f"{title}. {drawing.alt}", f"{drawing.key}-{i}", hidden))
    return {
        "key": drawing.key,
        "title": drawing.title,
        "caption": drawing.caption,
        "alt": drawing.alt,
        "panels": panels,
        "frames": drawing.frames,
        "legend": [(label, _swatch(hue, dash), key) for label, hue, dash, key in drawing.legend],
        "hidden": hidden,
        "comparing": any(key for *_, key in drawing.legend),
    }


def _features(group: MethodGroup) -> dict[str, Any]:
    return {
        "key": group.key,
        "label": group.label,
        "runs": len(group.runs),
        "swatch": _swatch(f"s{group.hue}", group.dash),
        "figures": [_figure(drawing) for drawing in feature_figures.of_group(group)],
        "missing": feature_figures.missing_of(group),
    }


def _recipe(group: MethodGroup) -> dict[str, Any]:
    recipe = dict(group.first.recipe)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else tables.NOT_RECORDED
    return {
        "label": group.label,
        "runs": [run.name for run in group.runs],
        "text": text[:_MAX_RECIPE],
        "cut": len(text) > _MAX_RECIPE,
    }


def _class_table(student_group: StudentGroup) -> dict[str, Any] | None:
    """Return the gain of up to `_MAX_METHODS` groups over the reference by class, the group in focus first."""
    comparison = error_figures.compared(student_group)
    if comparison is None:
        return None
    others = [g for g in student_group.groups if g.label != comparison.name]
    others.sort(key=lambda g: g is not student_group.focus)
    columns = {
        g.label: {x.name: x for x in gains(comparison.before, after, comparison.labels, classes_of(student_group))}
        for g in others[:_MAX_METHODS]
        if (after := predicted(g, comparison.labels))
    }
    rows = [
        (x.name, x.images, f"{x.before:.0f}", [f"{column[x.name].points:+.1f}" for column in columns.values()])
        for x in next(iter(columns.values())).values()
    ]
    left_out = max(0, len(rows) - _MAX_CLASSES)
    return {"base": comparison.name, "columns": [*columns], "rows": rows[:_MAX_CLASSES], "left_out": left_out}


def _examples(student_group: StudentGroup) -> dict[str, Any]:
    """Return example images by kind, or the reason why there are none."""
    selected = examples(student_group)
    if not selected:
        recorded = any(run.array("val_shown", 1) is not None for g in student_group.groups for run in g.runs)
        why = (
            "the networks do not differ on the stored images" if recorded else "no images were recorded with these runs"
        )
        return {"kinds": [], "why": why}
    images = _images(student_group)
    if images is None:
        return {"kinds": [], "why": "the file of images is missing or damaged"}
    labels = {
        "focus": student_group.focus.label,
        "base": student_group.baseline.label if student_group.baseline else "the baseline",
    }
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for example in selected:
        image = images[example.thumbnail]
        text = "; ".join(f"{name} predicts {named}" for name, named, _, _ in example.predictions)
        kinds[example.kind].append(
            {
                "source": _data_url(image),
                "alt": f"validation image {example.index} of class {example.true}; {text}",
                "true": example.true,
                "index": example.index,
                "predictions": [
                    (name, named, "" if probability is None else f" ({100 * probability:.0f} %)", right)
                    for name, named, probability, right in example.predictions
                ],
                "small": max(image.shape[:2]) < _LARGE,
            }
        )
    return {"kinds": [(KINDS[kind].format(**labels), cards) for kind, cards in kinds.items()], "why": ""}


def _images(student_group: StudentGroup) -> list[np.ndarray] | None:
    """Return the largest thumbnails of the selected images: each run stores them at its input size."""
    selected = next((s for r in student_group.focus.runs if (s := r.array("val_shown", 1)) is not None), None)
    largest: list[np.ndarray] | None = None
    for run in (group.first for group in student_group.groups):
        indices = run.array("val_shown", 1)
        if selected is None or indices is None or not np.array_equal(indices, selected):
            continue
        sheet = RunFolder(run.path).thumbnails
        try:
            images = None if leads_out(sheet, run.path) else thumbnails.read_sheet(sheet, len(indices))
        except (ValueError, OSError):  # Pillow raises both for damaged files
            continue
        if images is not None and (largest is None or images[0].size > largest[0].size):
            largest = images
    return largest


def _data_url(image: np.ndarray) -> Markup:
    content = io.BytesIO()
    kind = "png" if max(image.shape[:2]) < _LARGE else "jpeg"
    Image.fromarray(image).save(content, format=kind, **({"quality": 88} if kind == "jpeg" else {}))
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}")


def _missing(student_group: StudentGroup) -> list[tuple[str, str]]:
    def names(group: MethodGroup, run: Run) -> list[str]:
        teacher_recorded = group.teacher is not None and group.teacher.prediction is not None
        return [x for x in tables.missing(run) if not (teacher_recorded and x == "predictions of the teacher")]

    return [
        (run.name, ", ".join(missing)) for g in student_group.groups for run in g.runs if (missing := names(g, run))
    ]
