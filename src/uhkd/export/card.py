"""The model card of an exported network: README.md with the metadata that hubs of models read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from uhkd.console import escape
from uhkd.export.snippets import example, takes
from uhkd.features import FeatureExtractor
from uhkd.recipe.arguments import Form
from uhkd.runs import RunFolder

# words of a recipe that name places on the machine that trained
_PLACES = ("data", "teacher", "teachers", "probe_data", "teacher_cache", "shard_cache", "model", "student", "out")
# names with a slash that mean the same on every machine
_PUBLIC = re.compile(r"(timm|torchvision|uhkd|torch)/\w[\w.+-]*|(transformers|hfds)/\w[\w.+-]*(/\w[\w.+-]*)?")


def card_text(
    run: str,
    network: FeatureExtractor,
    places: Mapping[Form, str],
    measured: Mapping[Form, str],
    license: str = "other",
) -> str:
    """What it is, how it is opened and fed, where it comes from, what it is not for; Markdown under metadata in YAML.

    places: where each form lies, as the examples write it. measured: a sentence for each form that is not as exact as the
    others. license: an identifier of the hub.
    """
    folder, card = RunFolder(run), network.card
    result = folder.read_result() if folder.result.is_file() else {}
    recipe = folder.read_recipe() if folder.started() else {}
    metadata = yaml.safe_dump(_metadata(result, network, places, license), sort_keys=False, allow_unicode=True)
    does = f"sorts images into {card.num_classes} classes" if card.num_classes else "turns an image into an embedding"
    head = f"{card.num_classes} classes" if card.num_classes else "without a head"
    lines = [f"---\n{metadata}---\n", f"# {escape(_named(card.name))}, {head}\n"]
    lines += [f"A network that {does}. {_origin(result)}\n", "## Use\n"]
    height, width = card.image_size
    for form, where in places.items():
        lines += [f"`{form}` takes {takes(form, network)}.", measured.get(form, ""), ""]
        lines += [f"```python\n{example(form, network, where)}\n```\n"]
    lines += [
        f"Images of other sizes are cut to their largest centred part of the shape {height} x {width} and resized "
        f"({card.interpolation}, antialiased). Normalised with mean {list(card.mean)}, std {list(card.std)}.\n"
    ]
    lines += ["## How it was made\n", "| | |\n|---|---|", *_facts(result, recipe, network), ""]
    if card.classes:
        lines += ["Classes: " + ", ".join(escape(name) for name in card.classes) + "\n"]
    if parts := {
        key: _named(value) for key, value in recipe.items() if key not in _PLACES and value not in (None, [], {})
    }:
        recipe_text = yaml.safe_dump(parts, sort_keys=False, allow_unicode=True)
        lines += [
            f"<details><summary>The whole recipe, places left out</summary>\n\n```yaml\n{recipe_text}```\n\n</details>\n"
        ]
    lines += ["## What it is for, and what not\n", _limits(result, bool(card.classes))]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _metadata(
    result: Mapping[str, Any], network: FeatureExtractor, places: Mapping[Form, str], license: str
) -> dict[str, Any]:
    """The fields that hubs know; what a run does not say is left out."""
    card, task = network.card, "image-classification" if network.card.num_classes else "image-feature-extraction"
    found: dict[str, Any] = {"license": license}
    if "timm" in places:
        found["library_name"] = "timm"
    found |= {"pipeline_tag": task, "tags": [task, "knowledge-distillation", "uhkd", *(["onnx"] * ("onnx" in places))]}
    if data := _dataset(result.get("data")):
        found["datasets"] = [data]
        accuracy = (result.get("metrics") or {}).get("val_accuracy")
        if isinstance(accuracy, float) and "probe" not in result:  # else of a probe beside it, on other images
            metric = {"type": "accuracy", "value": round(accuracy, 4), "name": "validation accuracy, last epoch"}
            measured = {"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": [metric]}
            found["model-index"] = [{"name": _named(card.name), "results": [measured]}]
    return found


def _dataset(name: Any) -> str | None:
    """A data set's name as a hub takes it: letters, numbers and ._-, without the folders that lead to it."""
    if not isinstance(name, str) or not name:
        return None
    bare = name.removeprefix("hfds/") if name.startswith("hfds/") else Path(name).name
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", bare).strip("-./") or None


def _origin(result: Mapping[str, Any]) -> str:
    if result.get("verb") == "distill":
        teacher_metrics = _joined([str(_named(teacher)) for teacher, _ in _teachers(result, {})]) or "no teacher"
        return (
            f"Distilled with uhkd from {escape(teacher_metrics)}, method {escape(str(_named(result.get('method'))))}."
        )
    return "Trained on labels with uhkd." if result else "Written by uhkd."


def _named(value: Any) -> Any:
    """A value as others may know it: places on this machine mean nothing to them, and are nobody's business.

    Of a run folder the network that lies there, of other places the last part; in lists and mappings of each value.
    """
    if isinstance(value, Mapping):
        return {key: _named(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_named(below) for below in value]
    if not isinstance(value, str) or not value:
        return value
    place = Path(value).expanduser() if value.startswith("~/") else Path(value)
    if RunFolder(place).exists():
        return f"{_named(RunFolder(place).read_card().get('name'))} (a run of uhkd)"
    if _PUBLIC.fullmatch(value) and not place.exists():
        return value
    # both kinds of separators; a home or a parent folder alone has no name that others know
    return PureWindowsPath(value).name.lstrip("~") if set(value) & set("/\\~") or value == ".." else value


def _teachers(result: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Each teacher's word, and its first weights as far as the recipe says."""
    if several := result.get("teachers"):
        starts = [one.get("start") for one in recipe.get("teachers") or ()] or [None] * len(several)
        each = zip((one.get("teacher") for one in several), starts, strict=True)
        return [(teacher, start or recipe.get("teacher_start")) for teacher, start in each]
    return [(result["teacher"], recipe.get("teacher_start"))] if result.get("teacher") else []


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def _facts(result: Mapping[str, Any], recipe: Mapping[str, Any], network: FeatureExtractor) -> list[str]:
    """Rows of a table; what the run does not say is left out."""
    metrics, teacher_metrics = result.get("metrics") or {}, result.get("teacher_metrics") or {}
    environment = result.get("environment") or {}
    versions = environment.get("versions") or {}
    data, teachers = result.get("data"), _teachers(result, recipe)
    by = ""
    if probed := result.get("probe"):
        by = ", " + str(probed.get("by")).replace(str(probed.get("data")), str(_named(probed.get("data"))))
    facts = {
        "parameters": f"{sum(p.numel() for p in network.module.parameters()):,}",
        "method": result.get("method") or result.get("verb"),
        "teacher": _joined([str(_named(teacher)) for teacher, _ in teachers]) or None,
        f"teacher's validation accuracy{by}": _percent(teacher_metrics, "accuracy"),
        "licence of the teacher's weights": "; ".join(dict.fromkeys(_licence(*one) for one in teachers)) or None,
        "data": _named(data),
        "training images": result.get("train_images"),
        f"validation accuracy, last epoch{by}": _percent(metrics, "val_accuracy"),
        "top-5": _percent(metrics, "val_top5"),
        "calibration error (ECE)": _percent(metrics, "val_ece"),
        "epochs, batch, seed": ", ".join(str(recipe.get(key)) for key in ("epochs", "batch_size", "seed"))
        if recipe
        else None,
        "first weights": _named(recipe.get("student_start") or recipe.get("start")),
        "uhkd": " ".join(filter(None, (versions.get("uhkd"), environment.get("commit")))) or None,
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm") if name in versions
        )
        or None,
    }
    return [f"| {name} | {escape(str(value))} |" for name, value in facts.items() if value is not None]


def _limits(result: Mapping[str, Any], classes: bool) -> str:
    sentence = (
        "It knows the classes above and no others: of an image of something else it names one of them all the same, and its "
        "probabilities are calibrated no better than the table says. "
        if classes
        else ""
    )
    if classes and "uhkd" in str(result.get("method")):
        sentence += "Those of students of uhkd by its defaults are low, and not calibrated. "
    measured = (
        "Measured on held-out images of the data named above alone"
        if (result.get("metrics") or {}).get("val_accuracy") is not None
        else "Not measured"
    )
    return (
        f"For images like those it was trained on. {sentence}{measured}: on other cameras, places, times or groups of people it "
        "may do worse, and nobody has looked for bias. What a teacher gets wrong, its student learns too. Check the licences of "
        "the teacher's weights and of the images before you pass it on."
    )


def _percent(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return f"{value:.2%}" if isinstance(value, float) else None


def _licence(teacher: Any, start: Any) -> str:
    """As timm says it of pretrained weights, through the run folders that began with them; of others nobody has told us."""
    if isinstance(teacher, str) and teacher.startswith("timm/") and start in (None, "pretrained"):
        import timm

        cfg = timm.get_pretrained_cfg(teacher.removeprefix("timm/"))
        return getattr(cfg, "license", None) or "timm does not say"
    folder = RunFolder(str(teacher))
    if isinstance(teacher, str) and folder.started():
        recipe = folder.read_recipe()
        if recipe.get("model") and recipe.get("start") == "pretrained":
            return _licence(recipe["model"], "pretrained")
        if (recipe.get("start") or recipe.get("student_start")) == "random":
            return "yours: trained from random weights in a run of uhkd"
    return "not known here: ask whoever made them"
