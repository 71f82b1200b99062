"""Short trainings by the public interface, and what is compared of them with `digests.json`.

Files of run folders and caches are read by their formats (safetensors, CSV, JSON, NumPy), so that no name inside the package
matters here.
"""

import csv
import functools
import hashlib
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

import uhkd

HERE = Path(__file__).parent
FILE = HERE / "digests.json"
_CAPABILITY = json.loads(FILE.read_text(encoding="utf-8"))["conditions"]["capability"]
TOLERANCE = 1e-4 if torch.backends.cpu.get_cpu_capability() == _CAPABILITY else 3e-4
"""Of losses (relative) and of projections of the weights, where the arithmetic is not that of the file.

Larger for other instructions than those of the file: with AVX2 two trainings differed by 1.0e-4 and 2.1e-4 from AVX-512.
"""
TIMES = {"seconds", "images_per_second", "data_wait"}
CNN: dict[str, Any] = {"channels": [8, 8, 12, 16]}
VIT: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2}
MIXER: dict[str, Any] = {"embed_dim": 16, "depth": 3}
DIGITS: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, "data": "digits", "image_size": 16}
SHORT: dict[str, Any] = DIGITS | {"train_limit": 100, "batch_size": 20, "epochs": 1, "thumbnails": False}
TO_VIT: dict[str, Any] = {"student": "uhkd/vit_micro", "student_options": VIT}
TO_CNN: dict[str, Any] = {"student": "uhkd/resnet10", "student_options": CNN}
TO_MIXER: dict[str, Any] = {"student": "uhkd/mixer_micro", "student_options": MIXER}
MIXED: dict[str, Any] = {"mixup": 0.4, "cutmix": 0.5, "erasing": 0.3, "crop": "pad"}
BATCHES = 4

# as registered; half of them from a CNN to a ViT or a Mixer, half from a Mixer to a CNN
METHODS = ("scratch", "kd", "dkd", "dist", "fitnet", "at", "cc", "rkd", "crd", "ofa", "rsd", "spectralkd")
METHODS += ("twin_a", "twin_b", "uhkd")
DEFAULTS_DIFFER = ("twin_a", "twin_b", "uhkd")  # methods whose own balance is not constant

Measured = dict[str, Any]
"""names, weights (and where there are, data, arrays, records): digests; rows, result, projections: numbers by name."""
SLOW = (  # the others cover most of what these do
    "finetune: lamb from given weights",
    "method: twin_a",
    "method: twin_b",
    "method: uhkd",
    "balance: linear",
    "cache: int8, other spectra",
    "two teachers",
    "unlabelled images",
    "resumed by stored teacher",
    "Lightning",
    "timm",
    "comparison",
)
CASES: dict[str, Callable[["Trainings"], Measured]] = {}


class Trainings:
    """The trainings below one folder; what several of them need (teachers, caches) is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def teacher(self) -> Path:
        """A CNN that has learned something of the digits; a file, so that students differ by their own rounding alone."""
        return Path(shutil.copytree(HERE / "26ff844" / "teacher", self.folder / "teacher"))

    @functools.cached_property
    def mixer(self) -> Path:
        """A Mixer that has learned the digits (four epochs of 400 images at lr 0.01, uncropped)."""
        return Path(shutil.copytree(HERE / "mixer", self.folder / "mixer"))

    @functools.cached_property
    def cache(self) -> Path:
        """Two mixed views of each training image as the CNN sees them."""
        return self.stored("cache")

    def stored(self, name: str, **changes: Any) -> Path:
        """A cache of the CNN's outputs."""
        words = {k: v for k, v in SHORT.items() if k not in ("epochs", "image_size", "thumbnails")} | MIXED
        uhkd.cache(**words | {"teacher": self.teacher, "views": 2, "seed": 5, "out": self.folder / name} | changes)
        return self.folder / name

    def distill(self, name: str, **changes: Any) -> Path:
        """A student of the CNN by `uhkd.distill`: its run folder."""
        teacher = {} if {"teacher", "teachers", "teacher_cache"} & changes.keys() else {"teacher": self.teacher}
        return uhkd.distill(**SHORT | TO_VIT | teacher | changes, out=self.folder / name).run.path

    def measure(self, case: str) -> Measured:
        """Train what the case is about."""
        with quiet():
            return CASES[case](self)


def case(name: str) -> Callable[[Callable[[Trainings], Measured]], Callable[[Trainings], Measured]]:
    """Register a training under a name."""

    def register(function: Callable[[Trainings], Measured]) -> Callable[[Trainings], Measured]:
        assert name not in CASES
        CASES[name] = function
        return function

    return register


def distilled(name: str, **changes: Any) -> None:
    """Register a training by `uhkd.distill`."""
    case(name)(lambda trainings: of_run(trainings.distill(name, **changes)))


# what is measured


def of_run(run: Path) -> Measured:
    """What a finished run folder holds, but for times and places."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items() if v and k not in TIMES} for row in csv.DictReader(file)]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in result.pop("metrics").items() if k not in TIMES} == rows[-1]
    with np.load(run / "diagnostics.npz") as arrays:
        kept = {name: arrays[name] for name in sorted(arrays) if not name.endswith("latency_ms")}  # of older versions
    told = {name: value for name, value in _numbers(result) if not name.startswith("environment.")}
    measured = of_state(load_file(run / "model.safetensors"), rows) | {"result": told}
    return measured | {"data": result["data_fingerprint"], "arrays": digest(kept[name].tobytes() for name in kept)}


def of_state(state: Mapping[str, Tensor], rows: list[dict[str, float]]) -> Measured:
    """Measure weights by name, and rows of metrics that belong to them."""
    ordered = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    described = "\n".join(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in ordered.items())
    flat = np.concatenate([tensor.double().numpy().ravel() for tensor in ordered.values()])
    return {
        "names": digest([described.encode()]),
        "weights": digest(tensor.numpy().tobytes() for tensor in ordered.values()),
        "rows": rows,
        "projections": projections(flat),
    }


def of_cache(folder: Path) -> Measured:
    """Measure stored records: files view-V/shard-S.bin of one record an image, each with a head of eight bytes."""
    images = json.loads((folder / "cache.json").read_text(encoding="utf-8"))["images"]
    files = sorted(folder.glob("view-*/shard-*.bin"))
    records = [np.frombuffer(file.read_bytes(), np.uint8).reshape(images, -1)[:, 8:] for file in files]
    measured = {"records": digest(record.tobytes() for record in records), "rows": [], "projections": {}}
    if "int8" in (folder / "recipe.yaml").read_text(encoding="utf-8"):
        return measured
    flat = np.concatenate([np.ascontiguousarray(record).view(np.float16).ravel() for record in records])
    return measured | {"projections": projections(flat.astype(np.float64))}


def digest(pieces: Iterator[bytes] | list[bytes]) -> str:
    """SHA-256 of bytes one after the other."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def projections(flat: np.ndarray) -> dict[str, float]:
    """The norm of a vector and its projections on three fixed waves, in units of the root of its length."""
    root = math.sqrt(len(flat))  # fsum: sums that do not depend on their order
    waves = {f"projection {k}": np.cos(k * np.arange(len(flat))) for k in (1, 2, 3)}
    norm = {"norm": math.sqrt(math.fsum(flat * flat)) / root}
    return norm | {name: math.fsum(flat * wave) / root for name, wave in waves.items()}


def _numbers(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings and lists, by their path."""
    if isinstance(content, Mapping | list):
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in pairs:
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, int | float):
        yield name, content


# the file and the arithmetic it was made by


def conditions() -> dict[str, Any]:
    """What must agree for bits to agree: torch, the CPU's instructions, threads, and what a few operations come to."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "operations": _operations(),
    }


def _operations() -> str:
    """A digest of a training step by torch alone: CPUs of the same instructions can have other kernels."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 12, 3, 2), nn.ReLU(), nn.Flatten(2)),
            *(nn.Linear(36, 16), nn.LayerNorm(16), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)),
            *(nn.Flatten(), nn.Linear(192, 10)),
        ).to(memory_format=torch.channels_last)
        images = torch.rand(20, 3, 16, 16)
        loss = net(images).log_softmax(1).square().mean() + torch.fft.rfft2(net[0](images)).abs().std()
        loss.backward()
    return digest([p.grad.contiguous().numpy().tobytes() for p in net.parameters() if p.grad is not None])


def read() -> dict[str, Any]:
    """The file: conditions, versions and commit it was made by, and the cases."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def differences(wanted: Measured, found: Measured, *, exact: bool) -> list[str]:
    """Return a line for each thing that differs: to the bit, or of names, projections and losses within the tolerance."""
    digests = ("names", "data", "weights", "arrays", "records") if exact else ("names", "data")
    lines = [f"{kind}: other bits" for kind in digests if wanted.get(kind) != found.get(kind)]
    rows = None if exact else _rows_with_one_lead(wanted, found)
    before, after = _compared(wanted, exact, rows), _compared(found, exact, rows)
    close = {"rel_tol": 0.0, "abs_tol": 0.0} if exact else {"rel_tol": TOLERANCE, "abs_tol": TOLERANCE}
    return lines + [
        f"{name}: {before.get(name)}, now {after.get(name)}"
        for name in before | after
        if before.get(name) != after.get(name)
        and (name not in before or name not in after or not math.isclose(before[name], after[name], **close))
    ]


def _rows_with_one_lead(wanted: Measured, found: Measured) -> int | None:
    """The number of rows before the first of another lead, None if there is none.

    Rounding can change which class a network predicts, then its accuracy, and so the weights of all that follows.
    """
    for i, (before, after) in enumerate(zip(wanted["rows"], found["rows"], strict=False)):
        leads = [name for name in before if name.startswith("lead") and name in after]
        if not all(math.isclose(before[name], after[name], rel_tol=TOLERANCE) for name in leads):
            return i
    return None


def _compared(measured: Measured, exact: bool, rows: int | None) -> dict[str, float]:
    """Numbers by name; without `exact` those alone that change little where rounding does, of the first `rows` rows."""
    losses = {
        f"row {i}: {k}": v
        for i, row in enumerate(measured["rows"][:rows])
        for k, v in row.items()
        if exact or _is_loss(k)
    }
    projections = measured["projections"] if rows is None else {}
    return projections | losses | (measured.get("result", {}) if exact else {})


def _is_loss(metric: str) -> bool:
    name = metric.rpartition("/")[2]
    return (name in ("loss", "ce") or "." in name) and not name.startswith("grad_")


@contextmanager
def quiet() -> Iterator[None]:
    """Draw no pictures, which take longer than these trainings, and print nothing."""

    def empty(figure: Figure, file: Any, **_: Any) -> None:
        if isinstance(file, io.BytesIO):  # the report reads what was drawn
            file.write(b"<svg><defs></defs></svg>")

    drawn, Figure.savefig = Figure.savefig, empty
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        Figure.savefig = drawn


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Send SIGTERM to this process after so many steps of any optimiser, and expect the training to end by it."""
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_post_hook(note)
    try:
        yield
    except KeyboardInterrupt:
        assert count == steps
    else:
        raise AssertionError("the training came to its end")
    finally:
        handle.remove()


def interrupted(train: Callable[..., uhkd.Result], steps: int, words: Mapping[str, Any], out: Path) -> Path:
    """A training that is stopped after so many steps and resumed: its run folder."""
    with stopped_after(steps):
        train(**words, out=out)
    assert not (out / "result.json").exists()
    return train(**words, out=out, resume=True).run.path


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, positions) of a few batches of the first digits."""
    pixels, labels = map(torch.as_tensor, _digits())
    images = pixels.float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 16
    parts = [slice(20 * i, 20 * i + 20) for i in range(BATCHES)]
    return [(images[part].contiguous(), labels[part], torch.arange(part.start, part.stop)) for part in parts]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


# the trainings


@case("finetune: cnn")
def _(trainings: Trainings) -> Measured:
    words = SHORT | {"model": "uhkd/resnet10", "options": CNN, "epochs": 2}
    return of_run(uhkd.finetune(**words, out=trainings.folder / "cnn").run.path)


@case("finetune: mixer, its weights averaged")
def _(trainings: Trainings) -> Measured:
    words = SHORT | {"model": "uhkd/mixer_micro", "options": MIXER, "ema_decay": 0.9, "crop": "none"}
    return of_run(uhkd.finetune(**words, out=trainings.folder / "averaged").run.path)


@case("finetune: sgd in steps, warm-up, no smoothing")
def _(trainings: Trainings) -> Measured:
    words: dict[str, Any] = {
        "optimizer": "sgd",
        "schedule": "step",
        "step_epochs": (1,),
        "warmup_epochs": 0.5,
        "label_smoothing": 0.0,
    }
    words |= SHORT | {"model": "uhkd/vit_micro", "options": VIT, "epochs": 2, "clip_grad": None}
    return of_run(uhkd.finetune(**words, out=trainings.folder / "steps").run.path)


@case("finetune: lamb from given weights")
def _(trainings: Trainings) -> Measured:
    words = SHORT | {"model": "uhkd/mixer_micro", "options": MIXER, "start": str(trainings.mixer), "optimizer": "lamb"}
    return of_run(uhkd.finetune(**words, seed=3, out=trainings.folder / "lamb").run.path)


for _number, _method in enumerate(METHODS):
    _pair: dict[str, Any] = TO_VIT if _number % 4 == 0 else TO_MIXER if _number % 4 == 2 else TO_CNN
    _words: dict[str, Any] = {"method": _method, "optimizer": "sgd", "lr": 0.02, **_pair}

    def _by_method(trainings: Trainings, words: dict[str, Any], name: str) -> Measured:
        teacher = trainings.mixer if words["student"] == TO_CNN["student"] else trainings.teacher
        return of_run(trainings.distill(name, teacher=teacher, **words))

    case(f"method: {_method}")(
        functools.partial(_by_method, words=_words | {"balance": "constant"}, name=f"method-{_method}")
    )
    if _method in DEFAULTS_DIFFER:
        case(f"method: {_method}, its own balance")(functools.partial(_by_method, words=_words, name=f"own-{_method}"))

distilled("joined methods", method="uhkd+dkd", settings={"radius": 2, "dkd.temperature": 2.0}, weights={"ce": 0.5})
for _balance in ("linear", "cap", "famo"):
    distilled(f"balance: {_balance}", balance=_balance, epochs=2)
distilled("balance: lead, logits falling", balance="lead", balance_settings={"logits_fall": "cosine", "window": 100})


@case("balance: lead of a teacher that is overtaken")
def _(trainings: Trainings) -> Measured:
    """Its terms are switched off, and the teacher with them."""
    words = SHORT | {"model": "uhkd/resnet10", "options": CNN, "lr": 1e-6}
    weak = uhkd.finetune(**words, out=trainings.folder / "weak").run.path
    lead = {"balance": "lead", "balance_settings": {"window": 20}}
    words = {"teacher": weak, "allow_weak_teacher": True, "epochs": 4, "lr": 0.01, **TO_CNN, **lead}
    return of_run(trainings.distill("overtaken", **words))


distilled("mixed views", epochs=2, **MIXED)
distilled("other views", crop="resized", flip=True, randaugment="rand-m9-mstd0.5-inc1", balance="constant")
distilled("weight average", ema_decay=0.8, method="kd", epochs=2)
distilled("accumulation", grad_accum_steps=2, method="uhkd+crd", nonfinite="skip")
distilled("probed teacher", teacher_head="probe", method="dist")
distilled("chosen layers", teacher_levels=("layer1", "layer2"), student_levels=("0", "2"), balance="constant")


@case("cache: fp16")
def _(trainings: Trainings) -> Measured:
    return of_cache(trainings.cache)


@case("cache: int8, other spectra")
def _(trainings: Trainings) -> Measured:
    words = {"storage": "int8", "radius": 2, "standardise": "channel", "keep": ("logits", "spectra"), "views": 1}
    return of_cache(trainings.stored("int8", **words))


@case("stored teacher")
def _(trainings: Trainings) -> Measured:
    return of_run(trainings.distill("stored", teacher_cache=trainings.cache, epochs=3, seed=2))


@case("two teachers")
def _(trainings: Trainings) -> Measured:
    return of_run(
        trainings.distill("two", teacher=(str(trainings.teacher), str(trainings.mixer)), method="kd", **TO_MIXER)
    )


@case("two teachers, a method each")
def _(trainings: Trainings) -> Measured:
    teachers = [
        {"teacher": str(trainings.teacher), "weight": 2.0},
        {"teacher": str(trainings.mixer), "method": "rsd+kd", "settings": {"temperature": 2.0}},
    ]
    return of_run(trainings.distill("each", teachers=teachers, **TO_MIXER))


distilled("unlabelled images", unlabelled=True, method="uhkd+rkd")
distilled("unlabelled images, probed", unlabelled=True, balance="constant", probe_data="digits", **TO_MIXER)


@case("resumed")
def _(trainings: Trainings) -> Measured:
    """Stopped within an epoch and resumed: the same as without."""
    words = SHORT | TO_VIT | MIXED | {"teacher": trainings.teacher, "epochs": 2, "ema_decay": 0.8, "method": "uhkd+crd"}
    measured = of_run(uhkd.distill(**words, out=trainings.folder / "whole").run.path)
    again = of_run(interrupted(uhkd.distill, 7, words, trainings.folder / "resumed"))
    assert differences(measured, again, exact=True) == []
    return measured


@case("resumed by stored teacher")
def _(trainings: Trainings) -> Measured:
    """Stopped at the end of an epoch and resumed: the same as without."""
    words = SHORT | TO_CNN | {"teacher_cache": trainings.cache, "epochs": 2, "grad_accum_steps": 2, "lr": 1e-4}
    measured = of_run(uhkd.distill(**words, out=trainings.folder / "stored-whole").run.path)
    again = of_run(interrupted(uhkd.distill, 5, words, trainings.folder / "stored-resumed"))
    assert differences(measured, again, exact=True) == []
    return measured


@case("own loop")
def _(trainings: Trainings) -> Measured:
    words: dict[str, Any] = {
        "num_classes": 10,
        "image_size": 16,
        "num_samples": 20 * BATCHES,
        "total_steps": 2 * BATCHES,
    }
    words |= {"method": "uhkd+crd", "balance": "lead", "balance_settings": {"features_fall": "linear"}, "seed": 4}
    loss_of = uhkd.Distillation(trainings.teacher, "uhkd/vit_micro", student_options=VIT, **words).train()
    given = batches()
    loss_of.calibrate(given)
    optimizer = torch.optim.AdamW(loss_of.parameters(), lr=2e-3)
    torch.manual_seed(0)  # crd draws negatives from the global generator, as a user's loop has it
    rows = []
    for batch in given * 2:
        loss, terms = loss_of(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.append({"loss": loss.item()} | {name: value.item() for name, value in terms.items()})
    return of_state(load_file(loss_of.save(trainings.folder / "own-loop") / "model.safetensors"), rows)


@case("Lightning")
def _(trainings: Trainings) -> Measured:
    from pytorch_lightning import Trainer

    from uhkd.integrations.lightning import UHKDLightningModule

    words: dict[str, Any] = {"method": "uhkd", "num_classes": 10, "image_size": 16, "student_options": VIT, "lr": 2e-4}
    module = UHKDLightningModule(trainings.teacher, "uhkd/vit_micro", **words)
    images, labels, _ = map(torch.cat, zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    words = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=2, accelerator="cpu", **words)
    trainer.fit(module, loader, loader)
    row = {name: value.item() for name, value in trainer.callback_metrics.items()}
    saved = module.distillation.save(trainings.folder / "lightning")
    return of_state(load_file(saved / "model.safetensors"), [row])


@case("timm")
def _(trainings: Trainings) -> Measured:
    import timm
    from timm.optim import create_optimizer_v2

    from uhkd.integrations.timm import UHKDTask

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    given = [(images, labels) for images, labels, _ in batches()]
    norms: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    task = UHKDTask(model, str(trainings.teacher), given, image_size=32, verbose=False, **norms)
    task.setup_ema(decay=0.5)
    trained = task.get_trainable_module()
    optimizer, rows = create_optimizer_v2(trained, opt="adamw", lr=1e-4), []
    trained.train()
    for step, (images, labels) in enumerate(given):
        result = task(torch.nn.functional.interpolate(images, 32), labels)
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step + 1)
        rows.append({name: value.item() for name, value in result.items()})
    average = task.get_eval_model(ema=True)
    assert average is not None
    states = {"student": model.state_dict(), "average": average.state_dict()}
    return of_state({f"{kind}.{name}": x for kind, state in states.items() for name, x in state.items()}, rows)


@case("comparison")
def _(trainings: Trainings) -> Measured:
    import yaml

    out = trainings.folder / "comparison"
    pair = trainings.folder / "pair.yaml"
    words = SHORT | TO_VIT | {"teacher": str(trainings.teacher), "epochs": 1}
    pair.write_text(yaml.safe_dump(words))
    summary = uhkd.compare(pairs=[str(pair)], methods=["scratch", "kd", "uhkd"], seeds=1, out=str(out))
    runs = sorted(out.rglob("model.safetensors"))
    states = {path.parent.relative_to(out).as_posix(): load_file(path) for path in runs}
    rows = [{f"accuracy of {run['method']}": run["accuracy"] for run in summary["runs"]}]
    return of_state({f"{run}.{name}": x for run, state in states.items() for name, x in state.items()}, rows)
