"""`export`: a run's network for other programs, checked on real images, with a model card beside it."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from uhkd import export as forms
from uhkd.arguments import ExportArguments
from uhkd.commands.judging import images_of, open_run
from uhkd.commands.outcome import KINDS
from uhkd.commands.setup import say
from uhkd.data import eval_loader
from uhkd.recipe import build
from uhkd.runs import RunFolder, check_place, write_atomically
from uhkd.taps import TappedModel
from uhkd.telling import show
from uhkd.text import shown

# of the largest logit: what other orders of adding up make of float32, with room; a wrong normalisation makes far more
_TOLERANCE = 1e-3
_REPEATS = 30


def export(arguments: ExportArguments | None = None, **words: Any) -> dict[str, Path]:
    """Write a run's network in each form asked for and return what is to be opened, by form.

    Every form is opened again by the library that others would use, and asked the same images as PyTorch, one by one and all at
    once; the table that is printed has the largest difference (of the largest logit), how many answers agree, and the time of one
    image.

    Raises:
        ValueError: for a folder that is no run, a form that cannot hold this network, a missing package, a place that is
            taken, or a form that answers otherwise than PyTorch.
    """
    asked = arguments or build(ExportArguments, words)
    network, _ = open_run(asked.run, "cpu")
    opened, part, source = images_of(asked.run, network, asked.data)
    out = place_of(asked)
    for form in asked.to:
        forms.check(form, network)
    images = _first(eval_loader(source, network.input_size, batch_size=asked.images), asked.images)
    expected = _answers(forms.answer_of(network), images)
    names = "form", "MB", "differs", "agrees", "ms"
    table = Table(*names, title=shown(f"{network.card.name} on {len(images)} {part} images of {opened.name}"))
    size, took = _bytes_of(network) / 1e6, _milliseconds(forms.answer_of(network), images)
    table.add_row("PyTorch", f"{size:.2f}", "", "", f"{took:.2f}")
    found: dict[str, Path] = {}
    for form in asked.to:
        found[form] = forms.write(form, network, out / form)
        write_atomically(out / form / "README.md", card_text(asked.run, network, form, found[form].name))
        answer = forms.reopen(form, found[form])
        got = _answers(answer, images)
        difference = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"{found[form]} answers otherwise than PyTorch: its numbers differ by up to {difference:.1%} of the largest; do "
                "not use it, and please report this with the network's name"
            )
        same = float((got.argmax(1) == expected.argmax(1)).float().mean())
        size = sum(file.stat().st_size for file in (out / form).iterdir()) / 1e6
        agrees = f"{same:.1%}" if network.shapes.logits else ""
        cells = f"{size:.2f}", f"{difference:.1e}", agrees, f"{_milliseconds(answer, images):.2f}"
        table.add_row(form, *cells)
    show(table)
    for form, path in found.items():
        say(f"{form}: {_OPENED[form].format(path=path)}")
    return found


def place_of(asked: ExportArguments) -> Path:
    """The folder that the forms go into.

    Raises:
        ValueError: when it cannot be a folder, or a form is there already.
    """
    out = Path(asked.out) if asked.out else Path(asked.run) / "export"
    check_place(out)
    taken = [str(out / form) for form in asked.to if (out / form).exists() and any((out / form).iterdir())]
    if taken:
        raise ValueError(f"{', '.join(taken)} already exists and is not empty; delete it, or choose another --out")
    return out


_OPENED = {
    "safetensors": 'uhkd.load_run("{path}")',
    "timm": 'timm.create_model("local-dir:{path}", pretrained=True).eval()',
    "pt2": 'torch.export.load("{path}").module()',
    "onnx": 'onnxruntime.InferenceSession("{path}")',
}
_TAKES = {
    "safetensors": "images in [0, 1] of any size, (B, 3, H, W); it resizes and normalises by itself",
    "timm": "normalised images; `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` makes them",
    "pt2": "images in [0, 1] of {size}, float32 (B, 3, H, W), any B; normalisation is inside",
    "onnx": "`image`: images in [0, 1] of {size}, float32 (B, 3, H, W), any B; normalisation is inside. Output: `{output}`",
}


@torch.no_grad()
def _answers(answer: forms.Answer, images: Tensor) -> Tensor:
    """Logits of all images at once; two of them also alone, which must not matter."""
    together = answer(images).float()
    for i in (0, len(images) - 1):
        alone = answer(images[i : i + 1]).float()[0]
        assert torch.allclose(alone, together[i], rtol=1e-3, atol=1e-3 * float(together.abs().max())), "a batch matters"
    return together


@torch.no_grad()
def _milliseconds(answer: forms.Answer, images: Tensor) -> float:
    times = []
    for i in range(_REPEATS + 3):
        began = time.perf_counter()
        answer(images[i % len(images)][None])
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[3:])


def _first(loader: Any, count: int) -> Tensor:
    images = [batch.image for batch, _ in zip(loader, range(1), strict=False)]
    return torch.cat(images)[:count]


def _bytes_of(network: TappedModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.module.state_dict().values())


def card_text(run: str, network: TappedModel, form: str, path: str) -> str:
    """The model card: what it is, how it is fed, where it comes from; Markdown."""
    folder, card = RunFolder(run), network.card
    result = folder.read_result() if folder.result.is_file() else {}
    recipe = folder.read_recipe() if folder.started() else {}
    height, width = card.image_size
    metrics = result.get("metrics", {})
    takes = _TAKES[form].format(size=f"{height} x {width} pixels", output="logits" if card.num_classes else "embedding")
    cut = f"the largest centred part of this shape, resized ({card.interpolation}, antialiased)"
    others = f"It cuts others by itself: {cut}" if form == "safetensors" else f"Cut and resize others before: {cut}"
    lines = [
        f"# {shown(card.name)}, {f'{card.num_classes} classes' if card.num_classes else 'a backbone without head'}",
        "",
        f"Open it with `{_OPENED[form].format(path=path)}`.",
        "",
        f"Takes {takes}. {others}. mean {list(card.mean)}, std {list(card.std)}.",
        "",
        f"| | |\n|---|---|\n| parameters | {sum(p.numel() for p in network.module.parameters()):,} |",
    ]
    probed = result.get("probe")
    by = f", {KINDS[probed['kind']]} on {probed['data']}" if probed else ""
    facts = {
        "method": result.get("method") or result.get("verb"),
        "teacher": result.get("teacher"),
        f"teacher's validation accuracy{by}": _percent(result.get("teacher_metrics", {}) or {}, "accuracy"),
        "data": result.get("data"),
        "training images": result.get("train_images"),
        f"validation accuracy, last epoch{by}": _percent(metrics, "val_accuracy"),
        "calibration error (ECE)": _percent(metrics, "val_ece"),
        "epochs, seed": f"{recipe.get('epochs')}, {recipe.get('seed')}" if recipe else None,
        "first weights": recipe.get("student_start") or recipe.get("start"),
        "licence of the teacher's weights": _licence(result.get("teacher"), recipe.get("teacher_start")),
    }
    lines += [f"| {name} | {shown(str(value))} |" for name, value in facts.items() if value is not None]
    lines += ["", "Classes: " + ", ".join(shown(name) for name in card.classes)] if card.classes else []
    return "\n".join(lines) + "\n"


def _percent(values: dict[str, Any], name: str) -> str | None:
    value = values.get(name)
    return f"{value:.2%}" if isinstance(value, float) else None


def _licence(teacher: Any, start: Any) -> str | None:
    """As timm says it of pretrained weights; of others nobody has told us."""
    if not isinstance(teacher, str):
        return None
    if teacher.startswith("timm/") and start in (None, "pretrained"):
        import timm

        cfg = timm.get_pretrained_cfg(teacher.removeprefix("timm/"))
        return getattr(cfg, "license", None) or "timm does not say"
    return "not known here: ask whoever made them"
