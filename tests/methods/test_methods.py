"""Methods: losses against literal references, identities, and one contract for every method and kind of pair."""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from references import rivals
from references.methods import fam, ftm, relations, soft_targets, soft_targets_gradient, weighted_error, weights_of
from references.rivals import dist
from uhkd.data import Batch
from uhkd.errors import UhkdError
from uhkd.features import FeatureExtractor, NetworkOutput, OutputShapes, PairShapes
from uhkd.methods import MethodSpec, build_losses, factory, find_matching_loss, method_class, parse_methods
from uhkd.methods.base import DistillationLoss, Requirements
from uhkd.methods.kd import soft_target_loss
from uhkd.methods.spectral_matching import SpectralMatchingLoss, level_error, relation_error
from uhkd.models import create
from uhkd.spectral import (
    FTM,
    LevelPair,
    SpectralTarget,
    SpectralTransform,
    area_basis,
    fourier_basis,
    ftm_shapes,
    match_levels,
)
from uhkd.spectral.fam import FAM
from uhkd.training.learner import StudentWithLosses, weighted_sum
from uhkd.training.teacher import Teacher, calibrate

F64 = torch.float64
CLASSES = 5


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def batch_of(size: int = 4, labelled: bool = True, seed: int = 0, side: int = 16) -> Batch:
    """Random images; with soft targets, as mixup gives them."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, 3, side, side, generator=generator)
    target = torch.rand(size, CLASSES, generator=generator).softmax(-1) if labelled else None
    return Batch(image, target, target.argmax(1) if target is not None else None, torch.arange(size))


# Soft targets.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_equal_the_reference_in_value_and_gradient(temperature):
    student, teacher = random(6, 7).mul(3).requires_grad_(), random(6, 7, seed=1).mul(3)
    loss = soft_target_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(soft_targets(student, teacher, temperature), rel=1e-12)
    torch.testing.assert_close(student.grad, soft_targets_gradient(student, teacher, temperature), rtol=0, atol=1e-13)


def test_soft_targets_are_zero_exactly_at_equal_distributions():
    logits = random(4, 6).requires_grad_()
    loss = soft_target_loss(
        logits, logits.detach() + torch.tensor([[5.0]], dtype=F64), 4.0
    )  # a constant shift is no change
    loss.backward()
    assert loss.abs() < 1e-14 and logits.grad.abs().max() < 1e-14
    assert soft_target_loss(logits, logits.detach() * 1.1, 4.0) > 0


def test_the_size_of_the_gradient_does_not_vanish_with_temperature():
    norms = []
    for temperature in (50.0, 100.0):
        student = random(4, 6).requires_grad_()
        soft_target_loss(student, random(4, 6, seed=1), temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_soft_targets_of_half_precision_are_computed_in_float32():
    student, teacher = random(4, 6).bfloat16(), random(4, 6, seed=1).bfloat16()
    loss = soft_target_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(soft_targets(student.double(), teacher.double(), 4.0), rel=1e-5)


# Feature terms: from maps to loss.

STUDENT, TEACHER = ((3, 5, 4), (4, 3, 3)), ((2, 6, 7), (3, 3, 5))
SMALL = PairShapes(OutputShapes(STUDENT, 4, CLASSES), OutputShapes(TEACHER, 3, CLASSES), CLASSES, 100)


def exact(module: nn.Module) -> nn.Module:
    """In float64, with bases that never were float32."""
    for part in module.double().modules():
        if isinstance(part, SpectralTransform):
            make: Callable[..., Tensor] = area_basis if part.form == "area" else fourier_basis
            for name, k in zip(("rows", "cols"), part.size, strict=True):
                n = getattr(part, name).shape[1]
                setattr(part, name, make(n, k if part.form == "area" else k // 2, F64))
    return module


def maps_of(shapes, batch: int, seed: int) -> tuple[Tensor, ...]:
    return tuple(random(batch, *shape, seed=seed + i) + 0.3 for i, shape in enumerate(shapes))


def slope(function: Callable[[Tensor], float], at: Tensor, along: Tensor, step: float = 1e-5) -> float:
    """Central difference of a function along a direction."""
    return (function(at + step * along) - function(at - step * along)) / (2 * step)


OBJECTIVES = [
    ("uhkd", {"form": "pairs", "radius": 2}),
    ("uhkd", {"form": "pairs", "standardise": "none", "frequency_decay": 1.0}),
    ("uhkd", {"form": "pairs", "standardise": "channel", "level_weights": (0.3, 2.0)}),
    ("uhkd", {"form": "log-amplitude", "frequency_decay": 1.5}),
    ("uhkd", {"form": "amplitude", "standardise": "channel"}),
    ("twin_a", {"radius": 1}),
    ("twin_b", {"standardise": "none"}),
]


WEIGHTS = {"kl": 0.7, "inter": 1.1, "intra": 0.6, "features": 5.0, "relations": 2.0}
NO_LOGITS = {"kl": 0.0, "inter": 0.0, "intra": 0.0}
NO_FEATURES = {"features": 0.0, "relations": 0.0}


@pytest.mark.parametrize(("method", "settings"), OBJECTIVES)
def test_the_objective_equals_the_reference_in_value_and_gradient(method, settings):
    torch.manual_seed(0)  # weights of a FAM by which a slope is near zero would be judged by its rounding
    distiller = exact(build_losses(method, SMALL, {"temperature": 3.0, **settings}, WEIGHTS))[method]
    target, match = distiller.needs.target, distiller.match
    for i, part in enumerate(match.fams):  # a gain and bias that are not 1 and 0
        part.norm.weight.data.copy_(1 + 0.3 * random(part.norm.num_features, seed=40 + i))
        part.norm.bias.data.copy_(0.3 * random(part.norm.num_features, seed=50 + i))
    transform = exact(FTM(target, TEACHER))
    seen, taught = maps_of(TEACHER, 6, 10), maps_of(TEACHER, 4, 20)
    transform.calibrate(transform.raw(seen))
    maps = tuple(x.requires_grad_() for x in maps_of(STUDENT, 4, 30))
    logits, teacher_logits = random(4, CLASSES, seed=1).requires_grad_(), random(4, CLASSES, seed=2)

    terms = distiller(NetworkOutput(logits, maps), NetworkOutput(teacher_logits, spectra=transform(taught)), batch_of())
    weighted_sum(
        {f"{method}.{k}": v for k, v in terms.items()}, {f"{method}.{k}": w for k, w in distiller.weights.items()}
    ).backward()

    standardise, decay = settings.get("standardise", "coefficient"), settings.get("frequency_decay", 0.0)
    shares = settings.get("level_weights", (0.5, 0.5))
    forms = [(level.size, level.form) for level in target.levels]
    targets = [ftm(taught[i], seen[i], *forms[i], standardise) for i in (0, 1)]
    mixes = [part.mix.weight.detach() for part in match.fams]

    def level(i: int, x: Tensor, mix: Tensor) -> tuple[float, float]:
        scale = [p.detach().view(targets[i].shape[1:]) for p in (match.fams[i].norm.weight, match.fams[i].norm.bias)]
        predicted = fam(x, mix, *scale, *forms[i])
        error = weighted_error(predicted, targets[i], weights_of(*forms[i], standardise, decay))
        return shares[i] * error, shares[i] * relations(predicted, targets[i])

    def weighted(*words: Any) -> float:
        error, relation = level(*words)
        return 5.0 * error + 2.0 * relation

    errors, likenesses = zip(*(level(i, maps[i].detach(), mixes[i]) for i in (0, 1)), strict=True)
    assert terms["kl"].item() == pytest.approx(soft_targets(logits, teacher_logits, 3.0), rel=1e-12)
    assert terms["features"].item() == pytest.approx(sum(errors), rel=1e-6)
    assert terms["relations"].item() == pytest.approx(sum(likenesses), rel=1e-6)
    assert [terms["inter"].item(), terms["intra"].item()] == pytest.approx(dist(logits, teacher_logits, 3.0), rel=1e-9)
    along = random(*logits.shape, seed=62)
    by_dist = slope(
        lambda x: sum(w * d for w, d in zip((1.1, 0.6), dist(x, teacher_logits, 3.0), strict=True)),
        logits.detach(),
        along,
    )
    by_kl = 0.7 * (soft_targets_gradient(logits, teacher_logits, 3.0) * along).sum().item()
    assert (logits.grad * along).sum().item() == pytest.approx(by_kl + by_dist, rel=1e-5)
    for i in (0, 1):
        along = random(*maps[i].shape, seed=60)
        found = (maps[i].grad * along).sum().item()
        assert found == pytest.approx(slope(lambda x, i=i: weighted(i, x, mixes[i]), maps[i].detach(), along), rel=1e-5)
        along = random(*mixes[i].shape, seed=61)
        found = (match.fams[i].mix.weight.grad * along).sum().item()
        expected = slope(lambda m, i=i: weighted(i, maps[i].detach(), m), mixes[i], along)
        assert found == pytest.approx(expected, rel=1e-5)


def test_level_error_equals_the_reference_and_is_the_mse_for_equal_weights():
    predicted, target, weights = random(3, 4, 5), random(3, 4, 5, seed=1), random(5, seed=2).abs()
    assert level_error(predicted, target, weights).item() == pytest.approx(
        weighted_error(predicted, target, weights.tolist()), rel=1e-12
    )
    mean = level_error(predicted, target, torch.full((5,), 0.2, dtype=F64))
    torch.testing.assert_close(mean, F.mse_loss(predicted, target))


def test_norms_of_the_error_are_what_they_say():
    predicted, target, weights = random(3, 4, 5), random(3, 4, 5, seed=1), random(5, seed=2).abs()
    squares = [(predicted - target)[..., k].square().mean().item() for k in range(5)]
    sizes = [(predicted - target)[..., k].abs().mean().item() for k in range(5)]
    expected = {
        "mse": sum(w * e for w, e in zip(weights.tolist(), squares, strict=True)),
        "mae": sum(w * e for w, e in zip(weights.tolist(), sizes, strict=True)),
        "log": math.log(sum(w * e for w, e in zip(weights.tolist(), squares, strict=True))),
        "log-band": sum(w * math.log(e) for w, e in zip(weights.tolist(), squares, strict=True)),
    }
    assert {norm: level_error(predicted, target, weights, norm).item() for norm in expected} == pytest.approx(expected)
    for norm in ("log", "log-band"):
        x = target.clone().requires_grad_()
        level_error(x, target, weights, norm).backward()
        assert x.grad.isfinite().all(), "also where nothing is left to learn"


def test_relations_compare_each_two_images():
    predicted, target = random(4, 3, 5), random(4, 3, 5, seed=1)
    assert relation_error(predicted, target).item() == pytest.approx(relations(predicted, target), rel=1e-9)
    assert relation_error(3 * target, target).item() == pytest.approx(0, abs=1e-15)
    assert relation_error(predicted[:1], target[:1]).item() == pytest.approx(0, abs=1e-15)


def test_relations_are_not_computed_in_half_precision():
    predicted, target = (random(8, 3, 5, seed=i).float() for i in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        inside = relation_error(predicted, target)
    assert torch.equal(inside, relation_error(predicted, target))


def test_redundancy_of_spectra_is_that_of_every_number_of_a_level():
    distiller = exact(
        build_losses("uhkd", SMALL, weights=NO_LOGITS | {"features": 0.0, "redundancy": 2.0, "relations": 1.0})
    )["uhkd"]
    maps, spectra = (
        maps_of(STUDENT, 4, 30),
        tuple(random(4, *shape, seed=9) for shape in ftm_shapes(distiller.needs.target, TEACHER)),
    )
    terms = distiller(NetworkOutput(maps=maps), NetworkOutput(spectra=spectra), batch_of())
    assert set(terms) == {"redundancy", "relations"}
    expected = 0.0
    for predicted, target in zip(distiller.match.predict(maps), spectra, strict=True):
        expected += (
            rivals.rsd(predicted.flatten(1).tolist(), target.flatten(1).tolist(), 0.01) / predicted[0].numel() / 2
        )
    assert terms["redundancy"].item() == pytest.approx(expected, rel=1e-6)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm='mde' of uhkd: input should be 'mse', 'mae', 'log'"):
        build_losses("uhkd", SMALL, {"norm": "mde"})


@pytest.mark.parametrize("method", ["uhkd", "twin_a", "twin_b"])
def test_features_are_zero_when_the_student_predicts_the_target(method):
    # T = 1: T^2 would multiply the roundings.
    distiller = build_losses(method, SMALL, {"temperature": 1.0}, weights={"kl": 1.0})[method]
    maps = tuple(x.float() for x in maps_of(STUDENT, 4, 30))
    predicted = distiller.match.predict(maps)
    logits = torch.randn(4, CLASSES)
    terms = distiller(NetworkOutput(logits, maps), NetworkOutput(logits, spectra=predicted), batch_of())
    assert terms["features"] == 0
    assert all(terms[name].abs() < 1e-5 for name in ("kl", "inter", "intra"))


def test_with_every_frequency_and_nothing_standardised_uhkd_is_its_spatial_twin():
    """Parseval: on odd grids the full spectrum holds the same squared error as the map."""
    sides = [OutputShapes(((c, 5, 7), (c, 3, 3)), None, None) for c in (4, 2)]
    shapes, weights = PairShapes(*sides, CLASSES, 10), NO_LOGITS
    maps, taught = maps_of(sides[0].maps, 4, 0), maps_of(sides[1].maps, 4, 9)
    errors = []
    for method, settings in (("uhkd", {"form": "pairs", "radius": 3}), ("twin_b", {})):
        torch.manual_seed(0)
        distiller = build_losses(method, shapes, {"standardise": "none", **settings}, weights)[method]
        for part in distiller.match.fams:
            part.norm = nn.Identity()
        exact(distiller)
        transform = exact(FTM(distiller.needs.target, sides[1].maps))
        errors.append(
            distiller(NetworkOutput(maps=maps), NetworkOutput(spectra=transform(taught)), batch_of())["features"].item()
        )
    mixed = [part.mix(x.movedim(1, -1)).movedim(-1, 1) for part, x in zip(distiller.match.fams, maps, strict=True)]
    spatial = sum(F.mse_loss(x, y).item() for x, y in zip(mixed, taught, strict=True)) / 2
    assert errors == pytest.approx([spatial, spatial], rel=1e-6)


def test_weights_by_frequency_belong_to_the_loss_and_fall():
    plain, falling = (build_losses("uhkd", SMALL, {"form": "pairs", "frequency_decay": d})["uhkd"] for d in (0.0, 2.0))
    assert plain.needs.target == falling.needs.target
    weights = falling.match.get_buffer("weights0")
    assert weights.sum().item() == pytest.approx(1) and weights[0] > weights[1] > weights[4]
    assert (weights[0] / weights[1]).item() == pytest.approx(4)
    assert plain.match.get_buffer("weights0").tolist() == pytest.approx([1 / 9] * 9)


# The contract of every method with every kind of pair.

METHODS_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "scratch": ("scratch", {}),
    "kd": ("kd", {}),
    "kd standardised": ("kd", {"standardise_logits": True, "temperature": 2.0}),
    "uhkd log-amplitude": ("uhkd", {"form": "log-amplitude"}),
    "uhkd amplitude": ("uhkd", {"form": "amplitude", "standardise": "channel"}),
    "uhkd pairs": ("uhkd", {"form": "pairs", "radius": 2, "frequency_decay": 1.0}),
    "uhkd reduced": ("uhkd", {"channels": 8, "standardise": "none"}),
    "uhkd mlp": ("uhkd", {"fam": "mlp", "hidden": 16}),
    "uhkd conv": ("uhkd", {"fam": "conv"}),
    "uhkd offset": ("uhkd", {"form": "pairs", "fam": "offset"}),
    "uhkd rotation": ("uhkd", {"form": "pairs", "fam": "rotation"}),
    "twin_a": ("twin_a", {}),
    "twin_b": ("twin_b", {}),
    "dkd": ("dkd", {}),
    "dkd standardised": ("dkd", {"standardise_logits": True}),
    "dist": ("dist", {"temperature": 2.0}),
    "fitnet": ("fitnet", {}),
    "at": ("at", {}),
    "cc": ("cc", {"dim": 16}),
    "rkd": ("rkd", {}),
    "crd": ("crd", {"negatives": 64}),
    "crd many": ("crd", {"temperature": 0.1}),  # 16384 draws
    "crd few": ("crd", {"negatives": 7, "dim": 16}),
    "ofa": ("ofa", {"eps": 1.5}),
    "ofa conv": ("ofa", {"head": "conv"}),
    "ofa tokens": ("ofa", {"head": "tokens", "eps": (1.0, 1.1, 1.2, 1.3, 1.4)}),
    "rsd": ("rsd", {}),
    "spectralkd": ("spectralkd", {}),
    "uhkd+kd": ("uhkd+kd", {"uhkd.temperature": 2.0}),
    "uhkd+dkd": ("uhkd+dkd", {}),
    "rsd+kd": ("rsd+kd", {}),
    "crd+at+uhkd": ("crd+at+uhkd", {"negatives": 64}),
}
RESNET, VIT, MIXER = ("uhkd/resnet10", 16), ("uhkd/vit_micro", 16), ("uhkd/mixer_micro", 16)
PAIRS = {
    "CNN<-ViT": (RESNET, VIT),
    "ViT<-CNN": (VIT, RESNET),
    "MLP<-CNN": (MIXER, RESNET),
    "CNN<-CNN": (RESNET, RESNET),
    "foreign size and normalisation": (VIT, ("timm/test_convnext", 64)),
}
every_method = pytest.mark.parametrize("case", METHODS_TABLE)


@functools.cache
def original(name: str, size: int, seed: int, classes: int = CLASSES) -> FeatureExtractor:
    torch.manual_seed(seed)
    built = create(name, num_classes=classes, image_size=size)
    with torch.no_grad():  # layers that start at zero let no gradient through: networks in the middle of training do
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return built


def network(name: str, size: int, seed: int, classes: int = CLASSES) -> FeatureExtractor:
    return copy.deepcopy(original(name, size, seed, classes))


def assemble(
    pair: str,
    method: str,
    settings: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    *,
    teacher_classes: int = CLASSES,
    seed: int = 2,
) -> tuple[StudentWithLosses, Teacher]:
    """A learner and its calibrated teacher, as `uhkd distill` puts them together."""
    student, network_ = network(*PAIRS[pair][0], 0), network(*PAIRS[pair][1], 1, teacher_classes)
    torch.manual_seed(seed)
    distillers = build_losses(method, PairShapes(student.shapes, network_.shapes, CLASSES, 100), settings, weights)
    target = next((d.needs.target for d in distillers.values() if d.needs.target is not None), None)
    teacher = Teacher(network_, target)
    if target is not None:
        assert calibrate(teacher, [batch_of(8, seed=7)], torch.device("cpu")) == 8
    return StudentWithLosses(student, distillers).train(), teacher


def names_of(method: str) -> set[str]:
    """Terms that count: all, but soft targets that a method brings along give way to another method's."""
    found = set()
    for name, spec in parse_methods(method).items():
        weights = {**method_class(name).default_weights, **spec.weights}
        found |= {f"{name}.{term}" for term, weight in weights.items() if weight}
    return found


def learning(module: nn.Module) -> list[str]:
    """Names of the parameters that a gradient reached."""
    return [n for n, p in module.named_parameters() if p.grad is not None and p.grad.count_nonzero()]


@pytest.mark.parametrize("pair", PAIRS)
@every_method
def test_contract(case, pair):
    method, settings = METHODS_TABLE[case]
    learner, teacher = assemble(pair, method, settings)
    if pair.startswith("foreign"):
        assert teacher.network.mean != learner.student.mean and teacher.network.input_size != learner.student.input_size
    sealed = {k: v.clone() for k, v in (*teacher.network.state_dict().items(), *teacher_statistics(teacher).items())}
    batch = batch_of()

    said = teacher.outputs(batch, learner.teacher_needs)
    present = {name for name, value in said._asdict().items() if value is not None and value != ()}
    assert present == learner.teacher_needs
    terms = learner(batch, said)

    assert set(terms) == {"ce"} | names_of(method)
    for name, term in terms.items():
        assert term.shape == () and term.dtype == torch.float32 and term.isfinite() and term >= 0, name
    logits = learner.student(batch.image).logits
    torch.testing.assert_close(
        terms["ce"], -(batch.target * logits.log_softmax(-1)).sum(1).mean(), rtol=1e-4, atol=1e-5
    )
    weighted_sum({k: v for k, v in terms.items() if k != "ce" or method == "scratch"}, learner.weights()).backward()
    assert len(learning(learner.student)) > 0.9 * len(list(learner.student.parameters()))
    parameters = {n: p for n, p in learner.distillers.named_parameters() if p.numel()}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    assert {n.split(".")[0] for n in learning(learner.distillers)} == {n.split(".")[0] for n in parameters}
    assert not [p for p in teacher.network.parameters() if p.grad is not None or p.requires_grad]

    torch.optim.SGD(learner.parameters(), 0.1, momentum=0.9).step()
    now = {**teacher.network.state_dict(), **teacher_statistics(teacher)}
    assert now.keys() == sealed.keys() and all(torch.equal(now[k], sealed[k]) for k in now)


def teacher_statistics(teacher: Teacher) -> dict[str, Tensor]:
    return {} if teacher.ftm is None else {f"ftm.{k}": v for k, v in teacher.ftm.state_dict().items()}


@every_method
def test_bf16_autocast_gives_finite_float32_terms_close_to_float32(case):
    method, settings = METHODS_TABLE[case]
    learner, teacher = assemble("MLP<-CNN", method, settings)
    batch = batch_of(32)
    torch.manual_seed(3)  # a step's draws, as the engine seeds them
    expected = copy.deepcopy(learner)(batch, teacher.outputs(batch, learner.teacher_needs))
    with torch.autocast("cpu", torch.bfloat16):
        teacher.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
        torch.manual_seed(3)
        terms = learner(batch, teacher.outputs(batch, learner.teacher_needs))
        loss = weighted_sum(terms, learner.weights())
    loss.backward()
    for name, term in terms.items():
        assert term.dtype == torch.float32, name
        # bf16 keeps 8 bits, so a forward pass of both networks is off by about 1 in 100
        assert term.item() == pytest.approx(expected[name].item(), rel=0.05), name
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of floating-point numbers in another precision; other values as they are."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@every_method
def test_float32_terms_keep_their_digits(case):
    """No term is a small difference of large sums."""
    method, settings = METHODS_TABLE[case]
    learner, teacher = assemble("MLP<-CNN", method, settings)
    batch = batch_of(32)
    outputs = teacher.outputs(batch, learner.teacher_needs)
    terms = []
    for dtype in (torch.float32, F64):
        given, said = tree_map(lambda x, dtype=dtype: in_precision(x, dtype), (batch, outputs))
        torch.manual_seed(3)  # a step's draws, as the engine seeds them
        terms.append(copy.deepcopy(learner).to(dtype)(given, said))
    for name, term in terms[0].items():
        assert term.item() == pytest.approx(terms[1][name].item(), rel=2e-5, abs=1e-6), name


@every_method
def test_state_round_trip_gives_equal_terms(case):
    method, settings = METHODS_TABLE[case]
    learner, teacher = assemble("ViT<-CNN", method, settings)
    other, its_teacher = assemble("ViT<-CNN", method, settings, seed=11)
    batch = batch_of()
    said = teacher.outputs(batch, learner.teacher_needs)
    learner(batch, said)  # moves the running statistics and memory banks
    other.load_state_dict(learner.state_dict())
    if teacher.ftm is not None:
        its_teacher.ftm.load_state_dict(teacher.ftm.state_dict())
    for mode in (False, True):
        torch.manual_seed(3)  # a step's draws, as the engine seeds them
        mine = learner.train(mode)(batch, said)
        torch.manual_seed(3)
        theirs = other.train(mode)(batch, its_teacher.outputs(batch, other.teacher_needs))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# What may be missing.


@every_method
def test_without_labels_only_the_methods_own_terms_remain(case):
    method, settings = METHODS_TABLE[case]
    learner, teacher = assemble("MLP<-CNN", method, settings)
    batch = batch_of(labelled=False)
    said = teacher.outputs(batch, learner.teacher_needs)
    apart = [name for name in method.split("+") if method_class(name).needs_labels]
    if apart:
        with pytest.raises(ValueError, match=f"{apart[0]} needs the labelled class"):
            learner(batch, said)
        return
    terms = learner(batch, said)
    assert set(terms) == names_of(method)
    if not terms:
        with pytest.raises(ValueError, match="nothing to learn from: no labels"):
            weighted_sum(terms, learner.weights())


@pytest.mark.parametrize("method", ["uhkd", "twin_a", "twin_b"])
def test_a_teacher_without_a_head_teaches_by_features_alone(method):
    learner, teacher = assemble("ViT<-CNN", method, weights=NO_LOGITS, teacher_classes=0)
    assert teacher.network.shapes.logits is None and learner.teacher_needs == {"spectra"}
    batch = batch_of(labelled=False)
    terms = learner(batch, teacher.outputs(batch, learner.teacher_needs))
    assert set(terms) == {f"{method}.features", f"{method}.relations"}
    weighted_sum(terms, learner.weights()).backward()
    assert learning(learner.student)


@pytest.mark.parametrize(
    ("method", "terms"),
    [("kd", "weight of kl"), ("uhkd", "weights of inter, intra"), ("dist", "weights of inter, intra")],
)
def test_logits_of_a_teacher_without_a_head_are_refused(method, terms):
    with pytest.raises(
        ValueError, match=f"{method} needs teacher logits, and the teacher has none; set the {terms} to 0 or give"
    ):
        assemble("ViT<-CNN", method, teacher_classes=0)


def test_soft_targets_over_other_classes_are_refused():
    with pytest.raises(ValueError, match="the student has 5 classes, the teacher 7; give the teacher a head"):
        assemble("ViT<-CNN", "uhkd", teacher_classes=7)
    assemble("ViT<-CNN", "uhkd", weights=NO_LOGITS, teacher_classes=7)  # features know no classes


@pytest.mark.parametrize("method", ["kd", "uhkd", "twin_a", "twin_b"])
def test_methods_with_a_teacher_need_one(method):
    with pytest.raises(ValueError, match=f"method '{method}' needs a teacher"):
        build_losses(method, PairShapes(SMALL.student, None, CLASSES, 100))
    build_losses("scratch", PairShapes(SMALL.student, None, CLASSES, 100))


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_missing_feature_maps_are_refused_before_a_training(side: str, monkeypatch: pytest.MonkeyPatch):
    """Also for a method that does not look at the shapes itself."""

    class ReadsMaps(DistillationLoss):
        def __init__(self, shapes: PairShapes, weights: Mapping[str, float] | None = None) -> None:
            super().__init__(weights)
            maps = frozenset({"maps"})
            self.needs = Requirements(student=maps) if side == "student" else Requirements(teacher=maps)

        def forward(self, student: NetworkOutput, teacher: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
            return {}

    monkeypatch.setattr(factory, "method_class", lambda name: ReadsMaps)
    none = OutputShapes((), 4, CLASSES)
    without = replace(SMALL, student=none) if side == "student" else replace(SMALL, teacher=none)
    with pytest.raises(UhkdError, match=f"kd needs {side} maps, and the {side} has none"):
        build_losses("kd", without)
    build_losses("kd", SMALL)


# Weight 0.


@pytest.mark.parametrize("method", ["uhkd", "twin_a", "twin_b"])
def test_weight_0_skips_a_terms_work(method):
    logits, spectra = random(4, CLASSES).float(), tuple(x.flatten(2).float() for x in maps_of(TEACHER, 4, 0))
    no_features = build_losses(method, SMALL, weights=NO_FEATURES)[method]
    assert no_features.needs.student == no_features.needs.teacher == {"logits"} and no_features.needs.target is None
    assert not list(no_features.parameters()) and find_matching_loss(nn.ModuleDict({"m": no_features})) is None
    assert set(no_features(NetworkOutput(logits), NetworkOutput(logits), batch_of())) == {"inter", "intra"}
    no_logits = build_losses(method, SMALL, weights=NO_LOGITS)[method]
    assert no_logits.needs.student == {"maps"} and no_logits.needs.teacher == {"spectra"}
    maps = tuple(x.float() for x in maps_of(STUDENT, 4, 30))
    spectra = tuple(no_logits.match.predict(maps))
    assert set(no_logits(NetworkOutput(maps=maps), NetworkOutput(spectra=spectra), batch_of())) == {
        "features",
        "relations",
    }
    neither = build_losses(method, SMALL, weights=NO_LOGITS | NO_FEATURES)[method]
    assert not neither.needs.student and not neither.needs.teacher
    assert neither(NetworkOutput(), NetworkOutput(), batch_of()) == {}


def test_kd_of_weight_0_never_runs_the_teacher():
    learner, teacher = assemble("ViT<-CNN", "kd", weights={"kl": 0.0})
    assert not learner.teacher_needs and teacher.outputs(batch_of(), learner.teacher_needs) == NetworkOutput()
    assert set(learner(batch_of(), NetworkOutput())) == {"ce"}


def test_features_of_weight_0_ask_nothing_of_small_maps():
    tiny = OutputShapes(((4, 1, 1), (4, 1, 1)), 4, CLASSES)
    build_losses("uhkd", PairShapes(tiny, tiny, CLASSES, 10), weights=NO_FEATURES)


def test_weights_are_applied_once_and_by_full_name():
    terms = {"ce": torch.tensor(2.0), "uhkd.kl": torch.tensor(3.0), "uhkd.features": torch.tensor(5.0)}
    assert weighted_sum(terms, {"ce": 1.0, "uhkd.kl": 10.0, "uhkd.features": 0.0}) == 32
    assert weighted_sum({"ce": terms["ce"], "kd.kl": torch.tensor(float("nan"))}, {"ce": 1.0, "kd.kl": 0.0}) == 2
    learner, _ = assemble("ViT<-CNN", "uhkd+kd", weights={"kl": 2.0, "uhkd.features": 7.0})
    counted = {name: weight for name, weight in learner.weights(ce=0.5).items() if weight}
    assert counted == {"ce": 0.5, "uhkd.kl": 2.0, "uhkd.features": 7.0, "uhkd.relations": 300.0, "kd.kl": 2.0}


# One image.


def test_kd_takes_a_batch_of_one_image():
    learner, teacher = assemble("MLP<-CNN", "kd")
    batch = batch_of(1)
    for mode in (True, False):
        terms = learner.train(mode)(batch, teacher.outputs(batch, learner.teacher_needs))
        assert terms["kd.kl"].isfinite()


@pytest.mark.parametrize("method", ["uhkd", "twin_a"])
def test_feature_matching_of_one_image_is_refused_in_training_only(method):
    learner, teacher = assemble("MLP<-CNN", method)
    batch = batch_of(1)
    said = teacher.outputs(batch, learner.teacher_needs)
    assert learner.eval()(batch, said)[f"{method}.features"].isfinite()
    with pytest.raises(ValueError, match="needs at least 2 images in training, got 1"):
        learner.train()(batch, said)


# Words.


def test_words_are_sorted_by_method_and_turned_into_values():
    plan = parse_methods(
        "uhkd + kd",
        {"uhkd.radius": "2", "temperature": 3, "kd.temperature": "5.5", "level_weights": ["1", 2]},
        {"kl": 0.5, "uhkd.features": 4.0, "ce": 0.0},
    )
    uhkd = {"radius": 2, "temperature": 3.0, "level_weights": (1.0, 2.0)}
    weights = {"kl": 0.5, "features": 4.0, "inter": 0.0, "intra": 0.0}  # kd was asked for, so the others yield
    assert plan == {"uhkd": MethodSpec(uhkd, weights), "kd": MethodSpec({"temperature": 5.5}, {"kl": 0.5})}
    distillers = build_losses("uhkd+kd", SMALL, {"uhkd.radius": 2, "form": "pairs", "kd.temperature": 7})
    assert distillers["uhkd"].needs.target.levels[0].size == (5, 3)
    assert (distillers["uhkd"].temperature, distillers["kd"].temperature) == (4.0, 7.0)


def test_every_problem_is_told_at_once_with_the_nearest_word():
    settings = {"radus": 2, "form": "amplitud", "temperature": "warm", "level_weights": 3, "kd.radius": 1}
    with pytest.raises(ValueError) as caught:
        parse_methods("uhkd+kd", settings, {"featurs": 1.0, "kl": -1.0, "uhkd.features": float("nan")})
    lines = str(caught.value).splitlines()
    expected = [
        ("no setting 'radus'; did you mean 'radius'?", "known: channels, fam, form"),
        ("form='amplitud' of uhkd", "'pairs', 'amplitude', 'log-amplitude'"),
        ("temperature='warm' of uhkd", "valid number"),
        ("temperature='warm' of kd", "valid number"),
        ("level_weights=3 of uhkd", "valid tuple"),
        ("no setting 'kd.radius'", "known"),
        ("no weight 'featurs'; did you mean 'features'?", "known: ce, features, inter, intra, kl"),
        ("weight uhkd.features=nan of uhkd", "finite number"),
        ("weights of loss terms must be numbers >= 0", ""),
    ]
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert all(word in line for word in words), line


def test_unknown_methods_are_all_named():
    with pytest.raises(ValueError) as caught:
        parse_methods("uhdk+twin_c")
    first, second = str(caught.value).splitlines()
    assert "unknown method 'uhdk'; did you mean 'uhkd'? (known: scratch, kd, dkd, " in first
    assert "unknown method 'twin_c'; did you mean 'twin_" in second
    with pytest.raises(ValueError, match="contains a name twice"):
        parse_methods("kd+kd")


def test_scratch_has_no_settings():
    with pytest.raises(ValueError, match=r"scratch has no setting 'radius' \(known: none\)"):
        parse_methods("scratch", {"radius": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0}, "radius must be at least 1, got 0"),
        ({"radius": 1.5}, "radius=1.5 of uhkd: input should be a valid integer"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("inf")}, "temperature=inf of uhkd: input should be a finite number"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": 4, "form": "amplitude"}, "channels=4 mixes channels linearly and fits form 'pairs'"),
        ({"level_weights": [1.0]}, "level_weights needs 2 factors >= 0, one per matched level, got \\[1.0\\]"),
        ({"level_weights": [1.0, -1.0]}, "level_weights needs 2 factors >= 0"),
        ({"form": "area"}, "form 'area' is spatial; use method 'twin_a'"),
        ({"fam": "lin"}, "fam='lin' of uhkd: input should be 'linear', 'bands'"),
        (
            {"fam": "offset", "form": "log-amplitude"},
            "rotates phases, and the form 'log-amplitude' has none; use form 'pairs'",
        ),
        ({"fam": "mlp", "hidden": 0}, "hidden must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_losses("uhkd", SMALL, settings)


@pytest.mark.parametrize("method", ["kd", "twin_a", "twin_b"])
def test_temperature_must_be_positive_everywhere(method):
    with pytest.raises(ValueError, match="temperature must be above 0, got -1"):
        build_losses(method, SMALL, {"temperature": -1})


def test_methods_that_want_different_spectra_of_one_teacher_are_refused():
    with pytest.raises(ValueError, match="'uhkd\\+twin_a' need different spectral targets of one teacher"):
        build_losses("uhkd+twin_a", SMALL)


# Levels.


def test_levels_of_real_pairs_are_matched_by_depth_and_grid():
    vit, resnet = original(*VIT, 1), original(*RESNET, 0)
    found = match_levels(resnet.shapes.maps, vit.shapes.maps, 3, "pairs")
    sizes = [(3, 3), (3, 3), (3, 3), (1, 1)]  # of the coarser grid; the teacher's own is 4 x 4 at every level
    assert found == tuple(LevelPair(i, i, size, "pairs", (3, 3)) for i, size in enumerate(sizes))
    matching = SpectralMatchingLoss(resnet.shapes.maps, vit.shapes.maps, SpectralTarget(found))
    maps = tuple(torch.randn(3, *shape) for shape in resnet.shapes.maps)
    assert [tuple(x.shape) for x in matching.predict(maps)] == [(3, 96, 9)] * 3 + [(3, 96, 1)]


def test_twin_a_holds_as_many_numbers_as_uhkd_and_twin_b_the_smaller_grid():
    sizes = {m: [v.size for v in build_losses(m, SMALL)[m].needs.target.levels] for m in ("uhkd", "twin_a", "twin_b")}
    assert sizes == {"uhkd": [(3, 3), (3, 3)], "twin_a": [(3, 3), (3, 3)], "twin_b": [(5, 4), (3, 3)]}


def test_pairs_too_small_for_spectra_are_refused_with_the_reason():
    torch.manual_seed(0)
    coarse = create("uhkd/vit_micro", num_classes=CLASSES, image_size=16, options={"patch_size": 8})
    shapes = PairShapes(coarse.shapes, original(*RESNET, 0).shapes, CLASSES, 10)
    for method in ("uhkd", "twin_a"):
        with pytest.raises(ValueError, match=r"too small for spectra.*\(2, 2\) with \(16, 16\).*smaller patch size"):
            build_losses(method, shapes)
    build_losses("kd", shapes)


def test_networks_without_taps_are_refused():
    bare = OutputShapes((), 4, CLASSES)
    with pytest.raises(ValueError, match="spectra are of feature maps, and the student has none"):
        build_losses("uhkd", PairShapes(bare, SMALL.teacher, CLASSES, 10))


def test_matching_of_finds_the_level_matching():
    distillers = build_losses("kd+uhkd", SMALL)
    assert find_matching_loss(distillers) is distillers["uhkd"].match
    assert all(isinstance(part, FAM) for part in distillers["uhkd"].match.fams)
