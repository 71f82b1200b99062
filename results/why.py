"""Why a UHKD student differs from a KD student, measured from finished run folders: one JSON a pair, and its figures.

python results/why.py --data DATA --pair NAME --teacher RUN --kd RUN [RUN ...] --uhkd RUN [RUN ...] --out results/why

Runs of one method are seeds of one recipe; every number is mean, sample sd and the list over them. What a run noted itself
(CKA, error by frequency, spectra, calibration) is read from its folder; linear probes and robustness are measured here, on the
held-out part of the training images, in float32.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from why_figures import draw
from why_probes import CHANGES, SEED, STRENGTHS, WIDEST, bands, probe

from uhkd import load_run, open_data
from uhkd.console import log_info
from uhkd.data import DataSplits, ImageSource, Split, eval_loader, stratified_subset
from uhkd.evaluation.metrics import predict_logits
from uhkd.features import FeatureExtractor
from uhkd.models import fingerprint
from uhkd.runs import RunFolder, environment, write_atomically
from uhkd.spectral import match_by_depth, max_radius, radial_frequencies, spectrum
from uhkd.training.inputs import image_size

ROOT = Path(__file__).resolve().parents[1]
RADIUS = 2  # highest frequency an axis that is probed
Arrays = Mapping[str, np.ndarray]


def over(values: Sequence[Any]) -> dict[str, Any]:
    """Mean, sample sd (None for one run) and all of equally shaped numbers, one entry a run."""
    x = np.stack([np.asarray(value, dtype=float) for value in values])
    sd = x.std(0, ddof=1).round(6).tolist() if len(x) > 1 else None
    return {"mean": x.mean(0).round(6).tolist(), "sd": sd, "runs": x.round(6).tolist()}


def similarity(found: Sequence[Arrays]) -> dict[str, Any]:
    """CKA before and after training, (student levels, teacher levels), over runs; None where a run has none."""
    accuracies = {when: [a[f"cka_{when}"] for a in found if f"cka_{when}" in a] for when in ("start", "end")}
    return {when: over(values) if len(values) == len(found) else None for when, values in accuracies.items()}


def errors(found: Sequence[Arrays]) -> dict[str, Any] | None:
    """Error of FAM's prediction by level, (evaluations, bands), over runs; about 1 says that nothing was learnt."""
    if not all("error_0" in a for a in found):
        return None
    levels = []
    for i in range(sum(name.startswith("error_") for name in found[0])):
        places = bands(found[0][f"frequency_{i}"])
        by_band = [np.stack([a[f"error_{i}"][:, at].mean(1) for at in places.values()], 1) for a in found]
        levels.append({"bands": list(places), "error": over(by_band)})
    return {"steps": found[0]["steps"].tolist(), "levels": levels}


def energies(found: Sequence[Arrays]) -> dict[str, Any]:
    """Energy by integer frequency radius of each level over runs: the teacher's, and at first and last evaluation."""
    teachers, students = ([n for n in found[0] if n.startswith(f"{w}_spectrum_")] for w in ("teacher", "student"))
    accuracies = {w: [over([a[n][row] for a in found]) for n in students] for w, row in (("first", 0), ("last", -1))}
    accuracies["teacher"] = [over([a[n] for a in found]) for n in teachers]
    return {"steps": found[0]["steps"][[0, -1]].tolist()} | accuracies


def facts(run: RunFolder) -> dict[str, Any]:
    """What a run's numbers rest on, without places of the machine."""
    result, recipe, card = run.read_result(), run.read_recipe(), run.read_config()
    argv = ("epochs", "optimizer", "lr", "batch_size", "weights_schedule", "val_fraction")
    accuracies = {"network": card["name"], "options": card["options"], "method": recipe.get("method", result["verb"])}
    accuracies |= {"settings_and_weights": result.get("methods")} | {option: recipe.get(option) for option in argv}
    accuracies |= {"train_images": result["train_images"], "seed": result["seed"]}
    return accuracies | {"commit": result["environment"]["commit"]}


def check_data(teacher: RunFolder, students: Mapping[str, Sequence[RunFolder]], data: DataSplits) -> None:
    """Raises ValueError unless runs of a side differ by their seeds alone, and all had this teacher and held-out part."""
    own = fingerprint(load_run(teacher.path))
    for side, runs in students.items():
        accuracies = [{k: v for k, v in facts(run).items() if k not in ("seed", "commit")} for run in runs]
        if any(other != accuracies[0] for other in accuracies) or len(
            {run.read_result()["seed"] for run in runs}
        ) < len(runs):
            raise ValueError(f"the runs of {side} are not seeds of one recipe")
        if any(run.read_result().get("teacher_fingerprint") != own for run in runs):
            raise ValueError(f"a run of {side} had another teacher")
        noted = [run.read_arrays() for run in runs]
        if "val_label" in (others := teacher.read_arrays()):  # a kept teacher has no arrays
            noted.append(others)
        if any(not np.array_equal(arrays["val_label"], data.val.labels) for arrays in noted):
            raise ValueError(f"the teacher or a run of {side} held other images out of {data.name}")


@torch.no_grad()
def project(network: FeatureExtractor, source: ImageSource, size: tuple[int, int]) -> list[Tensor]:
    """Low-frequency coefficients of all images' maps, (N, C, K) a level, on the CPU."""
    device, found = next(network.parameters()).device, []
    for batch in eval_loader(source, size, batch_size=100):
        maps = network(batch.image.to(device), frozenset({"maps"})).maps or ()
        made = (spectrum(m, tuple(min(RADIUS, max_radius(n)) for n in m.shape[-2:])) for m in maps)
        found.append([x.flatten(-2).cpu() for x in made])
    return [torch.cat(level) for level in zip(*found, strict=True)]


def probes(
    network: FeatureExtractor, fit: ImageSource, held: ImageSource, size: Any, classes: int
) -> list[dict[str, float]]:
    """Accuracy of a probe of each band, and of all of them, a level."""
    labels = [torch.from_numpy(source.labels) for source in (fit, held) if source.labels is not None]
    accuracies: list[dict[str, float]] = []
    seen = [project(network, source, size) for source in (fit, held)]
    for x, y, (_, *grid) in zip(*seen, network.shapes.maps, strict=True):
        sizes = tuple(2 * min(RADIUS, max_radius(n)) + 1 for n in grid)
        places = bands(radial_frequencies(sizes, "pairs").numpy()) | {"all": list(range(x.shape[2]))}
        sets = {name: [part[..., at].flatten(1) for part in (x, y)] for name, at in places.items()}
        accuracies.append({name: probe(a, labels[0], b, labels[1], classes) for name, (a, b) in sets.items()})
    return accuracies


def robustness(network: FeatureExtractor, held: ImageSource, size: tuple[int, int]) -> dict[str, float]:
    """Accuracy on the held-out images under each change."""
    accuracies, device = {}, next(network.parameters()).device
    for name, change in CHANGES.items():
        batches = (b._replace(image=change(b.image, b.index)) for b in eval_loader(held, size, batch_size=100))
        logits, labels = predict_logits(network, batches, device)
        accuracies[name] = (logits.argmax(1) == labels).double().mean().item()
    return accuracies


def probed(runs: Sequence[RunFolder], data: DataSplits, fit: ImageSource) -> dict[str, Any]:
    """A side's levels, and the accuracy of their probes over runs."""
    found = []
    for run in runs:
        log_info(f"probes of {run.path}")
        network = load(run)
        found.append(probes(network, fit, data.val, image_size(data, [network]), len(data.classes)))
    levels = zip(network.levels, network.shapes.maps, strict=True)
    return {
        "levels": [{"layer": name, "shape": shape} for name, shape in levels],
        "bands": [{name: over([own[i][name] for own in found]) for name in level} for i, level in enumerate(found[0])],
    }


def changed(runs: Sequence[RunFolder], data: DataSplits) -> dict[str, Any]:
    """A side's accuracy on changed images over runs, and the share of the accuracy on clean ones that is kept."""
    found = []
    for run in runs:
        log_info(f"changed images to {run.path}")
        network = load(run)
        found.append(robustness(network, data.val, image_size(data, [network])))
    shares = [{name: own[name] / max(own["clean"], 1e-12) for name in CHANGES} for own in found]
    accuracies = {"accuracy": found, "kept": shares}
    return {kind: {name: over([own[name] for own in each]) for name in CHANGES} for kind, each in accuracies.items()}


def calibration(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """What a side's runs say of their logits on the held-out images after the last epoch, over runs."""
    metrics = [run.read_result()["metrics"] for run in runs]
    names = [name for name in ("accuracy", "top5", "nll", "ece") if f"val_{name}" in metrics[0]]
    return {name: over([own[f"val_{name}"] for own in metrics]) for name in names}


def load(run: RunFolder) -> FeatureExtractor:
    """A run's network on the fastest device at hand."""
    return load_run(run.path).to("cuda" if torch.cuda.is_available() else "cpu")


def measure(pair: str, option: Any, runs: Mapping[str, Sequence[RunFolder]], images: int) -> dict[str, Any]:
    """The whole JSON of a pair; runs by side: teacher (one), kd, uhkd. images: how many the probes are fitted to."""
    # asked first, as files may change meanwhile; the command would name places of the machine
    where = {name: value for name, value in environment().items() if name != "command"}
    data = open_data(option, val_fraction=runs["teacher"][0].read_recipe()["val_fraction"])
    students = {name: runs[name] for name in ("kd", "uhkd")}
    check_data(runs["teacher"][0], students, data)
    # of all training images, not of the few that a student may have seen, and with a seed of its own
    chosen = stratified_subset(data.train.labels, min(images, len(data.train)), SEED)
    counts = {"classes": len(data.classes), "fitting_images": len(chosen), "held_out_images": len(data.val)}
    accuracies = {name: probed(own, data, Split(data.train, chosen)) for name, own in runs.items()}
    levels = {name: own["levels"] for name, own in accuracies.items()}
    arrays = {name: [run.read_arrays() for run in own] for name, own in students.items()}
    return {
        "pair": pair,
        "environment": where,
        "data": {"name": data.name} | counts,
        "probe": {"radius": RADIUS, "widest": WIDEST, "strengths": STRENGTHS, "seed": SEED},
        "runs": {name: [facts(run) for run in own] for name, own in runs.items()},
        "levels": levels,
        "matched": match_by_depth(len(levels["uhkd"]), len(levels["teacher"])),  # (student's level, teacher's)
        "cka": {name: similarity(own) for name, own in arrays.items()},
        "spectral_error": errors(arrays["uhkd"]),
        "spectra": {name: energies(own) for name, own in arrays.items()},
        "bands": {name: own["bands"] for name, own in accuracies.items()},
        "robustness": {name: changed(own, data) for name, own in students.items()},
        "calibration": {name: calibration(own) for name, own in runs.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the runs' data")
    parser.add_argument("--pair", required=True, help="name of the file to write, without .json")
    for name, count in (("teacher", 1), ("kd", "+"), ("uhkd", "+")):
        parser.add_argument(f"--{name}", required=True, nargs=count, type=RunFolder, metavar="RUN")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "why")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--images", type=int, default=5000, help="training images that the probes are fitted to")
    arguments = parser.parse_args(argv)
    runs = {name: getattr(arguments, name) for name in ("teacher", "kd", "uhkd")}
    found = measure(arguments.pair, arguments.data, runs, arguments.images)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / f"{arguments.pair}.json", json.dumps(found, indent=1) + "\n")
    draw(found, arguments.figures)


if __name__ == "__main__":
    main()
