"""Metrics against literal loops and formulas."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from uhkd.data import Batch
from uhkd.evaluation.metrics import (
    Evaluation,
    cka_matrix,
    evaluate,
    latency,
    linear_cka,
    predict_logits,
    radial_spectrum,
    score,
)
from uhkd.features import FeatureExtractor
from uhkd.models import wrap_module

CPU = torch.device("cpu")


class Net(nn.Module):
    """A network whose modes differ: batch statistics and dropout."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def network(classes: int = 4) -> FeatureExtractor:
    torch.manual_seed(0)
    return wrap_module(Net(classes), num_classes=classes, image_size=8, levels=["conv"])


def batches(sizes: tuple[int, ...], classes: int | None = 4) -> list[Batch]:
    torch.manual_seed(1)
    made = []
    for size in sizes:
        label = None if classes is None else torch.randint(classes, (size,))
        made.append(Batch(torch.rand(size, 3, 8, 8), None, label, torch.arange(size)))
    return made


def literal_score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    n, k = logits.shape
    right = top5 = 0
    nll = 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        order = sorted(range(k), key=lambda j: -row[j])
        right += order[0] == label
        top5 += label in order[:5]
        normaliser = math.log(sum(math.exp(v) for v in row))
        nll += normaliser - row[label]
        confidence = math.exp(row[order[0]] - normaliser)
        bins[min(14, int(confidence * 15))].append((confidence, order[0] == label))
    ece = sum(abs(sum(c for c, _ in b) - sum(hit for _, hit in b)) for b in bins) / n
    return {"accuracy": right / n, "top5": top5 / n, "nll": nll / n, "ece": ece}


@pytest.mark.parametrize(("n", "k"), [(1, 6), (7, 10), (200, 8)])
def test_metrics_equal_a_literal_loop(n: int, k: int):
    generator = torch.Generator().manual_seed(n)
    logits = 3 * torch.randn(n, k, generator=generator)
    labels = torch.randint(k, (n,), generator=generator)
    assert score(logits, labels) == pytest.approx(literal_score(logits, labels), abs=1e-5)


def test_top5_is_said_only_where_it_means_something():
    logits, labels = torch.randn(20, 5), torch.randint(5, (20,))
    assert set(score(logits, labels)) == {"accuracy", "nll", "ece"}


def test_a_perfect_and_a_hopeless_network():
    labels = torch.arange(6)
    logits = 100 * torch.eye(6)
    assert score(logits, labels) == pytest.approx({"accuracy": 1, "top5": 1, "nll": 0, "ece": 0}, abs=1e-6)
    wrong = score(logits, (labels + 1) % 6)
    assert wrong["accuracy"] == 0 and wrong["nll"] == pytest.approx(100) and wrong["ece"] == pytest.approx(1)


def test_confusion_counts_by_true_then_named_class():
    labels, named = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0])
    evaluation = Evaluation({}, torch.nn.functional.one_hot(named, 3).float(), labels)
    assert evaluation.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    assert evaluation.correct == 2


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_uses_eval_mode_keeps_the_order_and_restores_the_mode(training: bool):
    model, data = network().train(training), batches((5, 3, 1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    evaluation = evaluate(model, data, CPU)
    assert model.training == model.module.training == training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        wanted = torch.cat([model.plain(b.image) for b in data])
    torch.testing.assert_close(evaluation.logits, wanted)
    labels = torch.cat([b.label for b in data if b.label is not None])
    assert torch.equal(evaluation.labels, labels)
    assert evaluation.metrics["accuracy"] == pytest.approx((wanted.argmax(1) == labels).float().mean().item())
    assert not evaluation.logits.requires_grad


def test_the_mode_is_restored_after_an_error_too():
    model = network().train()

    def broken():
        yield batches((2,))[0]
        raise ValueError("unreadable image")

    with pytest.raises(ValueError, match="unreadable image"):
        predict_logits(model, broken(), CPU)
    assert model.training


def test_images_without_labels_can_be_predicted_and_not_evaluated():
    logits, labels = predict_logits(network(), batches((4, 2), classes=None), CPU)
    assert logits.shape == (6, 4) and labels is None
    with pytest.raises(ValueError, match="no labels"):
        evaluate(network(), batches((4,), classes=None), CPU)


def test_a_label_beyond_the_network_is_refused():
    data = Batch(torch.rand(2, 3, 8, 8), None, torch.tensor([0, 7]), torch.arange(2))
    with pytest.raises(ValueError, match="label 7, the network only 4 classes"):
        evaluate(network(), [data], CPU)


def test_logits_are_float32_under_autocast():
    logits, _ = predict_logits(network(), batches((3,)), CPU, lambda: torch.autocast("cpu", torch.bfloat16))
    assert logits.dtype == torch.float32


def literal_cka(x: Tensor, y: Tensor) -> float:
    """HSIC as a U-statistic: the mean of k_ij (l_ij + l_qr - 2 l_iq) over all ordered tuples of distinct i, j, q, r."""

    def hsic(a: Tensor, b: Tensor) -> float:
        k, m = (a @ a.T).tolist(), (b @ b.T).tolist()
        tuples = list(itertools.permutations(range(len(a)), 4))
        return sum(k[i][j] * (m[i][j] + m[q][r] - 2 * m[i][q]) for i, j, q, r in tuples) / len(tuples)

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


@pytest.mark.parametrize(("n", "p", "q"), [(8, 3, 3), (9, 5, 2), (7, 40, 30)])
def test_linear_cka_equals_the_unbiased_hsic_formula(n: int, p: int, q: int):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, p, generator=generator).double() + 3
    y = x @ torch.randn(p, q, generator=generator).double() + torch.randn(n, q, generator=generator)
    assert linear_cka(x, y) == pytest.approx(min(max(literal_cka(x, y), 0), 1), abs=1e-9)


def test_linear_cka_of_unrelated_wide_features_is_near_zero():
    """The plain estimate gives 0.8 here."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(128, 512, generator=generator) for _ in range(2))
    assert linear_cka(x, y) < 0.05


def test_linear_cka_is_one_for_a_rotated_scaled_shifted_copy_and_zero_for_constants():
    torch.manual_seed(0)
    x = torch.randn(30, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(x, 2.5 * x @ rotation + 7) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, torch.ones(30, 4)) == 0


def test_cka_matrix_pools_over_space():
    torch.manual_seed(0)
    students = [torch.randn(12, c, 4, 4) for c in (3, 5)]
    teachers = [torch.randn(12, c, 6, 3) for c in (4, 2, 7)]
    matrix = cka_matrix(students, teachers)
    assert matrix.shape == (2, 3)
    wanted = linear_cka(students[1].mean((2, 3)), teachers[2].mean((2, 3)))
    assert matrix[1, 2].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("grid", [(5, 5), (7, 3), (1, 9), (1, 1)])
def test_radial_spectrum_adds_up_to_the_energy_on_odd_grids(grid: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *grid) + 0.5
    spectrum = radial_spectrum(x)
    assert spectrum.sum().item() == pytest.approx(x.square().mean().item(), rel=1e-5)
    assert spectrum[0].item() == pytest.approx(x.mean((2, 3)).square().mean().item(), rel=1e-4)


def test_radial_spectrum_on_even_grids_lacks_the_nyquist_row_alone():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([1.0, -1.0]).repeat(4)[:, None]  # alternating: the Nyquist frequency of 8 cells
    columns = torch.tensor([1.0, -1.0]).repeat(3)
    nyquist_free = x - rows * (x * rows).mean(-2, keepdim=True)
    nyquist_free = nyquist_free - columns * (nyquist_free * columns).mean(-1, keepdim=True)
    assert radial_spectrum(x).sum().item() == pytest.approx(nyquist_free.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("u", "v", "radius"), [(2, 0, 2), (0, 3, 3), (1, 1, 1), (2, 2, 3)])
def test_radial_spectrum_puts_a_wave_at_its_radius(u: int, v: int, radius: int):
    y, x = ((torch.arange(n) + 0.5) / n for n in (9, 11))
    wave = torch.cos(2 * math.pi * (u * y[:, None] + v * x[None]))[None, None]
    spectrum = radial_spectrum(wave)
    assert spectrum[radius].item() == pytest.approx(0.5, rel=1e-4)
    assert spectrum.sum().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_latency_is_positive_and_leaves_the_model_as_it_was(training: bool):
    model = network().train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert 0 < latency(model, batch=2, repeats=3) < 10_000
    assert model.training == training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
