"""The model card of an exported network: README.md with the metadata that hubs read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from uhkd.console import escape
from uhkd.export.snippets import example, input_description
from uhkd.features import FeatureExtractor
from uhkd.recipe import RESULT_KEYS, rename_keys
from uhkd.recipe.arguments import Form
from uhkd.runs import RunFolder
from uhkd.runs.best_epoch import OPTIMISTIC, best_epoch

# recipe options that are paths on the training machine
_PATH_OPTIONS = (
    *("data", "train_dir", "val_dir", "test_dir", "probe_data", "shard_cache"),
    *("teacher", "teachers", "teacher_cache", "model", "student", "out"),
)
# names with a slash that are the same on every machine
_PUBLIC = re.compile(r"(timm|torchvision|uhkd|torch)/\w[\w.+-]*|(transformers|hfds)/\w[\w.+-]*(/\w[\w.+-]*)?")


def card_text(
    run: str,
    network: FeatureExtractor,
    locations: Mapping[Form, str],
    measured: Mapping[Form, str],
    license: str = "other",
    temperature: float = 1.0,
) -> str:
    """Return the Markdown text, with metadata in YAML: use, preprocessing, training, and intended and unsuitable uses.

    Args:
        run: run folder; may lack a recipe and results.
        network: its network.
        locations: the Python expression for each form, as in the examples.
        measured: sentences about format and accuracy, for forms that have them.
        license: an identifier of the hub.
        temperature: by which the exported logits were divided.
    """
    folder = RunFolder(run)
    result = rename_keys(folder.read_result(), RESULT_KEYS) if folder.result.is_file() else {}
    recipe = folder.read_recipe() if folder.started() else {}
    teachers = _teachers(result, recipe)
    options = {k: _public(v) for k, v in recipe.items() if k not in _PATH_OPTIONS and v not in (None, [], {})}
    environment = Environment(loader=PackageLoader("uhkd.export"), trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"one_line": lambda value: escape(str(value)), "public": _public}
    return environment.get_template("card.md").render(
        network=network,
        config=network.config,
        locations=locations,
        measured=measured,
        result=result,
        metadata=_metadata(result, network, locations, license).to_yaml(),
        teachers=_names(teachers),
        facts=_facts(result, recipe, teachers, network) | _probabilities(folder.read_calibration(), temperature),
        options=yaml.safe_dump(options, sort_keys=False, allow_unicode=True) if options else "",
        accuracy=(result.get("metrics") or {}).get("val_accuracy"),
        example=example,
        input_description=input_description,
    )


def _metadata(result: Mapping[str, Any], network: FeatureExtractor, locations: Mapping[Form, str], license: str) -> Any:
    """Return huggingface_hub's ModelCardData; fields that the run does not specify are omitted."""
    from huggingface_hub import EvalResult, ModelCardData

    task = "image-classification" if network.config.num_classes else "image-feature-extraction"
    data = _dataset(result.get("data"))
    accuracy = (result.get("metrics") or {}).get("val_accuracy")
    evaluation: dict[str, Any] = {}
    if data and isinstance(accuracy, float) and "probe" not in result:  # the accuracy of a probe is not the network's
        name = f"validation accuracy, {best_epoch(result) or 'last epoch'}"
        metric = EvalResult(task, data, data, "accuracy", round(accuracy, 4), metric_name=name)
        evaluation = {"model_name": _public(network.config.name), "eval_results": [metric]}
    return ModelCardData(
        license=license,
        library_name="timm" if "timm" in locations else None,
        pipeline_tag=task,
        tags=[task, "knowledge-distillation", "uhkd", *(["onnx"] * ("onnx" in locations))],
        datasets=[data] if data else None,
        **evaluation,
    )


def _dataset(name: Any) -> str | None:
    """Return a data set's name as hubs accept it: letters, digits and ._-, without its parent folders."""
    if not isinstance(name, str) or not name:
        return None
    bare = name.removeprefix("hfds/") if name.startswith("hfds/") else Path(name).name
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", bare).strip("-./") or None


def _public(value: Any) -> Any:
    """Replace paths on this machine, which are private and mean nothing elsewhere, in a value, list or mapping.

    A run folder becomes the name of its network, any other path its last part.
    """
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser() if value.startswith("~/") else Path(value)
    if RunFolder(path).has_model():
        return f"{_public(RunFolder(path).read_config().get('name'))} (a run of uhkd)"
    if _PUBLIC.fullmatch(value) and not path.exists():
        return value
    # both separators; a home or parent folder has no public name
    return PureWindowsPath(value).name.lstrip("~") if set(value) & set("/\\~") or value == ".." else value


def _teachers(result: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return (teacher, start) of each teacher; start is its initial weights, None if unknown."""
    if teachers := result.get("teachers"):
        starts = [teacher.get("start") for teacher in recipe.get("teachers") or ()] or [None] * len(teachers)
        pairs = zip((teacher.get("teacher") for teacher in teachers), starts, strict=True)
        return [(teacher, start or recipe.get("teacher_start")) for teacher, start in pairs]
    return [(result["teacher"], recipe.get("teacher_start"))] if result.get("teacher") else []


def _names(teachers: Iterable[tuple[Any, Any]]) -> str:
    *others, last = [str(_public(teacher)) for teacher, _ in teachers] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _facts(
    result: Mapping[str, Any], recipe: Mapping[str, Any], teachers: Sequence[tuple[Any, Any]], network: FeatureExtractor
) -> dict[str, Any]:
    """Return the rows of the table; what the run does not specify is omitted."""
    metrics, teacher_metrics = result.get("metrics") or {}, result.get("teacher_metrics") or {}
    environment = result.get("environment") or {}
    versions = environment.get("versions") or {}
    by = ""
    if probe := result.get("probe"):
        by = ", " + str(probe.get("by")).replace(str(probe.get("data")), str(_public(probe.get("data"))))
    best = best_epoch(result)
    same = f", of the same epoch ({OPTIMISTIC})" if best else ""
    schedule = ", ".join(str(recipe.get(key)) for key in ("epochs", "batch_size", "seed")) if recipe else None
    libraries = [f"{name} {versions[name]}" for name in ("torch", "torchvision", "timm") if name in versions]
    facts = {
        "parameters": f"{sum(p.numel() for p in network.module.parameters()):,}",
        "method": result.get("method") or result.get("command"),
        "teacher": _names(teachers),
        f"teacher's validation accuracy{by}": _percent(teacher_metrics, "accuracy"),
        "licence of the teacher's weights": "; ".join(dict.fromkeys(_licence(*teacher) for teacher in teachers)),
        "data": _public(result.get("data")),
        "training images": result.get("train_images"),
        f"validation accuracy, {best or 'last epoch'}{by}": _percent(metrics, "val_accuracy"),
        f"top-5{same}": _percent(metrics, "val_top5"),
        f"calibration error (ECE) as trained{same}": _percent(metrics, "val_ece"),
        "epochs, batch, seed": schedule,
        "first weights": _public(recipe.get("student_start") or recipe.get("start")),
        "uhkd": " ".join(filter(None, (versions.get("uhkd"), environment.get("commit")))),
        "versions": ", ".join(libraries),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _probabilities(calibration: Mapping[str, Any], temperature: float) -> dict[str, str]:
    """Return the rows on the temperature; none where the run has none. temperature: in the exported logits."""
    if not calibration.get("summary"):
        return {}
    state = "divided into these logits" if temperature != 1 else "not in these logits, which are as trained"
    rows = {} if calibration.get("reason") else {"temperature": state}
    return rows | {"probabilities": str(calibration["summary"])}


def _percent(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return f"{value:.2%}" if isinstance(value, float) else None


def _licence(teacher: Any, start: Any) -> str:
    """Return the licence of pretrained weights according to timm, also of a run folder that started from them."""
    if isinstance(teacher, str) and teacher.startswith("timm/") and start in (None, "pretrained"):
        import timm

        cfg = timm.get_pretrained_cfg(teacher.removeprefix("timm/"))
        return getattr(cfg, "license", None) or "not specified by timm"
    folder = RunFolder(str(teacher))
    if isinstance(teacher, str) and folder.started():
        recipe = folder.read_recipe()
        if recipe.get("model") and recipe.get("start") == "pretrained":
            return _licence(recipe["model"], "pretrained")
        if (recipe.get("start") or recipe.get("student_start")) == "random":
            return "yours: trained from random weights in a run of uhkd"
    return "unknown: ask the authors of the weights"
