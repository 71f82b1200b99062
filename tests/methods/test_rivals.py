"""The rival methods: values and gradients against literal references, and what their formulas promise."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from references import rivals
from references.methods import soft_targets
from uhkd.data import Batch
from uhkd.features import NetworkOutput, OutputShapes, PairShapes
from uhkd.methods import DistillationLoss, build_losses, method_class, method_names, parse_methods, settings_of
from uhkd.methods.at import attention
from uhkd.methods.base import z_scores
from uhkd.methods.cc import neighbour_correlation
from uhkd.methods.correlation import correlation_distance, redundancy
from uhkd.methods.crd import exponents
from uhkd.methods.dkd import decoupled_losses
from uhkd.methods.feature_pairs import pool_to_common_grid
from uhkd.methods.kd import soft_target_loss
from uhkd.methods.ofa import _PatchMerging, enhanced_loss
from uhkd.methods.rkd import angles, relative_distances
from uhkd.methods.spectralkd import spectral_error
from uhkd.training.learner import weighted_sum

F64 = torch.float64
CLASSES, IMAGES = 5, 12
STUDENT, TEACHER = ((3, 5, 4), (4, 3, 3)), ((4, 3, 6), (3, 2, 3))
SHAPES = PairShapes(OutputShapes(STUDENT, 4, CLASSES), OutputShapes(TEACHER, 6, CLASSES), CLASSES, IMAGES)
BATCH = 4


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def make(method: str, settings: dict[str, Any] | None = None, shapes: PairShapes = SHAPES, seed: int = 0) -> Any:
    """One distiller in float64, its parameters away from their first values."""
    torch.manual_seed(seed)
    distiller = build_losses(method, shapes, settings)[method].double()
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return distiller


def said(seed: int = 0, batch: int = BATCH, learns: bool = True) -> tuple[NetworkOutput, NetworkOutput, Batch]:
    """Random signals of both sides; the student's take gradients."""
    sides = []
    for i, (maps, width) in enumerate(((STUDENT, 4), (TEACHER, 6))):
        s = seed + 10 * i
        logits, embedding = random(batch, CLASSES, seed=s).mul(2), random(batch, width, seed=s + 1)
        found = tuple(random(batch, *shape, seed=s + 2 + k) + 0.4 for k, shape in enumerate(maps))
        if i == 0 and learns:
            logits, embedding, *found = (x.requires_grad_() for x in (logits, embedding, *found))
        sides.append(NetworkOutput(logits, tuple(found), None, embedding))
    target = random(batch, CLASSES, seed=seed + 30).mul(3).softmax(1)
    index = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(seed))[:batch]
    return sides[0], sides[1], Batch(torch.rand(batch, 3, 8, 8), target, target.argmax(1), index)


def check_gradient(loss: Tensor, value: Callable[[], float], leaves: Sequence[Tensor]) -> None:
    """The gradient at every leaf, along two random directions, is the central difference of the literal reference."""
    assert loss.dtype == F64 and loss.item() == pytest.approx(value(), rel=1e-9)
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        for seed in (77, 78):
            along, start, step = random(*leaf.shape, seed=seed), leaf.detach().clone(), 1e-5
            found = []
            for sign in (1, -1):
                leaf.data = start + sign * step * along
                found.append(value())
            leaf.data = start
            slope = (found[0] - found[1]) / (2 * step)
            assert (gradient * along).sum().item() == pytest.approx(slope, rel=2e-5, abs=1e-8)


# On logits.


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dkd_equals_the_reference(temperature: float):
    student, teacher, batch = said()
    terms = make("dkd", {"temperature": temperature})(student, teacher, batch)
    for i, term in enumerate(("tckd", "nckd")):
        check_gradient(
            terms[term],
            lambda i=i: rivals.dkd(student.logits, teacher.logits, batch.label.tolist(), temperature)[i],
            [student.logits],
        )


def test_kd_is_tckd_plus_nckd_weighted_by_what_the_teacher_leaves_to_the_others():
    """Eq. 6 of the paper; it also needs both terms to be right."""
    student, teacher, batch = said(batch=1)
    tckd, nckd = decoupled_losses(student.logits, teacher.logits, batch.label, 2.0)
    left = 1 - F.softmax(teacher.logits / 2, 1)[0, batch.label[0]]
    torch.testing.assert_close(tckd + left * nckd, soft_target_loss(student.logits, teacher.logits, 2.0))


def test_dkd_is_zero_at_equal_logits_and_finite_for_extreme_ones():
    logits = random(6, CLASSES).mul(4).requires_grad_()
    for term in decoupled_losses(logits, logits.detach() + 3.0, logits.argmax(1)):
        assert term.abs() < 1e-12 and torch.autograd.grad(term, logits, retain_graph=True)[0].abs().max() < 1e-12
    sure = torch.tensor([[200.0, -200.0, 0.0], [-300.0, 100.0, 100.0]], requires_grad=True)
    total = torch.stack(decoupled_losses(sure, -sure.detach(), torch.tensor([0, 1]))).sum()
    total.backward()
    assert total.isfinite() and sure.grad.isfinite().all()


def test_dkd_without_tckd_adds_half_the_kl_among_the_other_classes():
    """How TPKD is read: `--method dkd --weights tckd=0 nckd=0.5`, T = 1 by default."""
    student, teacher, batch = said()
    distiller = build_losses("dkd", SHAPES, weights={"tckd": 0, "nckd": 0.5})["dkd"]
    terms = {f"dkd.{name}": term for name, term in distiller(student, teacher, batch).items()}
    assert set(terms) == {"dkd.nckd"}
    ce = F.cross_entropy(student.logits, batch.target)
    loss = weighted_sum({"ce": ce, **terms}, {"ce": 1.0, "dkd.nckd": distiller.weights["nckd"]})
    check_gradient(
        loss - ce,
        lambda: 0.5 * rivals.others_kl(student.logits, teacher.logits, batch.label.tolist()),
        [student.logits],
    )


# Standardised logits, of kd and dkd.


def standardised(
    method: str, student: NetworkOutput, teacher: NetworkOutput, batch: Batch, **settings: Any
) -> dict[str, Tensor]:
    """The terms of kd or dkd on standardised logits."""
    return make(method, {"standardise_logits": True, **settings})(student, teacher, batch)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_standardised_logits_equal_the_reference(temperature: float):
    student, teacher, batch = said()

    def expected() -> dict[str, float]:
        both, labels = [rivals.z_scores(side.logits) for side in (student, teacher)], batch.label.tolist()
        tckd, nckd = rivals.dkd(*both, labels, temperature)
        return {"kl": soft_targets(*both, temperature), "tckd": tckd, "nckd": nckd}

    terms = {}
    for method in ("kd", "dkd"):
        terms |= standardised(method, student, teacher, batch, temperature=temperature)
    assert terms.keys() == expected().keys()
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected()[name], rel=1e-12, abs=0)
        check_gradient(term, lambda name=name: expected()[name], [student.logits])


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_a_shift_or_positive_factor_of_an_images_logits_changes_nothing_once_standardised(method: str):
    student, teacher, batch = said(learns=False)
    terms = standardised(method, student, teacher, batch)
    shift, factor = 30 * random(BATCH, 1, seed=5), random(BATCH, 1, seed=6).exp()
    for moved in (0, 1):
        sides = [student, teacher]
        sides[moved] = sides[moved]._replace(logits=factor * sides[moved].logits + shift)
        # the authors' 1e-7 beside the deviation is what is left of the scale
        torch.testing.assert_close(standardised(method, *sides, batch), terms, rtol=1e-5, atol=1e-9)
        plain = [make(method)(*pair, batch) for pair in (sides, (student, teacher))]
        assert all((plain[0][name] - plain[1][name]).abs() > 0.01 for name in terms)


@pytest.mark.parametrize("method", ["kd", "dkd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -300.7])
def test_standardised_logits_that_are_all_equal_have_a_finite_gradient(value: float, dtype: torch.dtype, method: str):
    """As of a head that starts at zero; an image beside it keeps the gradient that it has alone."""
    student, teacher, batch = said()
    logits = student.logits.detach().to(dtype)
    logits[0] = value
    logits.requires_grad_()
    for theirs in (teacher.logits, torch.full_like(teacher.logits, value)):
        sides = student._replace(logits=logits), teacher._replace(logits=theirs.to(dtype))
        total = torch.stack(list(standardised(method, *sides, batch).values())).sum()
        (gradient,) = torch.autograd.grad(total, logits)
        assert total.isfinite() and total.dtype == (F64 if dtype == F64 else torch.float32)
        assert gradient.isfinite().all() and gradient.abs().max() < 1e7


def test_equal_logits_become_zeros_also_of_a_single_class():
    x = torch.zeros(2, CLASSES, requires_grad=True)
    assert torch.equal(z_scores(x), torch.zeros(2, CLASSES))
    with torch.no_grad():
        x[1] = random(CLASSES).float()
    first, second = z_scores(x)
    assert torch.equal(first, torch.zeros(CLASSES)) and second.std().item() == pytest.approx(1)
    one = torch.ones(3, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(z_scores(one).sum(), one)
    assert torch.equal(z_scores(one), torch.zeros(3, 1)) and torch.equal(gradient, torch.zeros(3, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_standardised_logits_nothing_changes_by_a_bit(dtype: torch.dtype):
    student, teacher, batch = said()
    ours, theirs = student.logits.detach().to(dtype), teacher.logits.to(dtype)
    sides = NetworkOutput(ours), NetworkOutput(theirs)
    for settings in ({}, {"standardise_logits": False}):
        assert torch.equal(make("kd", settings)(*sides, batch)["kl"], soft_target_loss(ours, theirs, 4.0))
        found = make("dkd", settings)(*sides, batch)
        expected = decoupled_losses(ours, theirs, batch.label, 1.0)
        assert all(torch.equal(found[name], term) for name, term in zip(("tckd", "nckd"), expected, strict=True))


def test_a_setting_of_uhkds_features_is_not_one_of_the_logits():
    plan = parse_methods("uhkd+kd", {"standardise": "channel", "standardise_logits": "true"})
    assert plan["uhkd"].kwargs == {"standardise": "channel"} and plan["kd"].kwargs == {"standardise_logits": True}
    with pytest.raises(ValueError, match="uhkd has no setting 'standardise_logits'; did you mean 'standardise'"):
        parse_methods("uhkd", {"standardise_logits": True})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dist_equals_the_reference(temperature: float):
    student, teacher, batch = said()
    terms = make("dist", {"temperature": temperature})(student, teacher, batch)
    for i, term in enumerate(("inter", "intra")):
        check_gradient(
            terms[term], lambda i=i: rivals.dist(student.logits, teacher.logits, temperature)[i], [student.logits]
        )


def test_dist_is_zero_for_linear_images_and_2_for_opposites():
    a = random(5, 7)
    assert correlation_distance(3 * a + 2, a).abs() < 1e-8
    assert correlation_distance(-a, a).item() == pytest.approx(2)
    student, teacher, batch = said()
    equal = student._replace(logits=teacher.logits)
    assert max(term.abs().item() for term in make("dist")(equal, teacher, batch).values()) < 1e-6


@pytest.mark.parametrize(("eps", "temperature"), [(1.0, 1.0), (1.4, 1.0), (2.0, 3.0)])
def test_ofas_loss_equals_the_reference(eps: float, temperature: float):
    student, teacher, batch = said()
    distiller = make("ofa", {"eps": eps, "temperature": temperature}).eval()
    terms = distiller(student, teacher, batch)
    labels = batch.label.tolist()

    def exits() -> float:
        with torch.no_grad():
            logits = [exit_(x) for exit_, x in zip(distiller.exits, student.maps, strict=True)]
        return sum(rivals.ofa(x, teacher.logits, labels, eps, temperature) for x in logits)

    check_gradient(
        terms["logits"], lambda: rivals.ofa(student.logits, teacher.logits, labels, eps, temperature), [student.logits]
    )
    check_gradient(terms["stages"], exits, [*student.maps, *distiller.exits.parameters()])


def test_ofas_exponents_are_one_an_exit_and_the_last_for_the_logits():
    student, teacher, batch = said()
    one, many = (make("ofa", {"eps": eps}).eval() for eps in (1.0, (1.0, 1.5, 2.0)))
    with torch.no_grad():
        logits = [exit_(x) for exit_, x in zip(many.exits, student.maps, strict=True)]
    expected = sum(
        enhanced_loss(x, teacher.logits, batch.label, eps) for x, eps in zip(logits, (1.0, 1.5), strict=True)
    )
    terms = many(student, teacher, batch)
    torch.testing.assert_close(terms["stages"], expected)
    torch.testing.assert_close(terms["logits"], enhanced_loss(student.logits, teacher.logits, batch.label, 2.0))
    assert one.eps == (1.0, 1.0, 1.0)


def test_ofa_with_exponent_1_is_at_its_minimum_where_both_agree():
    student, teacher, batch = said()
    logits = teacher.logits.clone().requires_grad_()
    loss = enhanced_loss(logits, teacher.logits, batch.label)
    loss.backward()
    assert logits.grad.abs().max() < 1e-12
    entropy = -(F.softmax(teacher.logits, 1) * F.log_softmax(teacher.logits, 1)).sum(1).mean()
    torch.testing.assert_close(loss.detach(), entropy)
    assert enhanced_loss(student.logits, teacher.logits, batch.label) > loss


@pytest.mark.parametrize(("grid", "first"), [((4, 6), True), ((5, 3), False)])
def test_patch_merging_equals_the_reference_also_on_odd_grids(grid: tuple[int, int], first: bool):
    layer = _PatchMerging(3, 5, nn.GELU() if first else nn.Identity()).double()
    x = random(2, 3, *grid).requires_grad_()
    found = layer(x)
    for image, out in zip(x.detach(), found, strict=True):
        expected = rivals.merge_patches(image, layer.mix.weight.detach(), rivals.gelu if first else lambda v: v)
        torch.testing.assert_close(out.detach(), expected)
    assert torch.autograd.gradcheck(layer, x)


def exits_of(
    maps: tuple[tuple[int, int, int], ...], embedding: int | None, head: str = "auto", *, tokens: bool = False
) -> Any:
    sides = OutputShapes(maps, embedding, CLASSES, tokens), OutputShapes(TEACHER, 6, CLASSES)
    return build_losses("ofa", PairShapes(*sides, CLASSES, IMAGES), {"head": head})["ofa"]


def test_ofas_exits_of_a_pyramid_halve_the_grid_once_a_following_stage():
    distiller = exits_of(((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)), 64)
    assert distiller.head == "conv"
    depths = [sum(isinstance(m, nn.BatchNorm2d) for m in exit_.modules()) // 2 for exit_ in distiller.exits]
    assert depths == [3, 2, 1, 0]
    for exit_, shape in zip(distiller.exits, ((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)), strict=True):
        convolutions = [m for m in exit_.modules() if isinstance(m, nn.Conv2d)]
        assert convolutions[0].in_channels == shape[0] and convolutions[-1].out_channels == 64
        assert [m.stride[0] for m in convolutions if m.stride[0] == 2] == [2] * ((len(convolutions)) // 4)
        assert exit_(torch.randn(2, *shape)).shape == (2, CLASSES)
    widths = [
        m.out_channels for m in distiller.exits[0].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert widths == [8, 16, 16, 32, 32, 64]


@pytest.mark.parametrize(
    ("grid", "merged"), [((7, 7), 0), ((8, 8), 0), ((14, 14), 1), ((28, 28), 2), ((15, 31), 1), ((1, 9), 0)]
)
def test_ofas_exits_of_tokens_merge_to_a_grid_near_7(grid: tuple[int, int], merged: int):
    distiller = exits_of(((12, *grid), (12, *grid), (12, *grid), (12, *grid)), 12, tokens=True)
    assert distiller.head == "tokens"
    for i, exit_ in enumerate(distiller.exits):
        assert sum(isinstance(m, _PatchMerging) for m in exit_.modules()) == merged
        assert sum(type(m).__name__ == "Block" for m in exit_.modules()) == max(3 - i, 1)
        assert exit_(torch.randn(2, 12, *grid)).shape == (2, CLASSES)


def test_ofas_exits_take_any_widths_and_an_embedding_that_is_not_there():
    for head in ("conv", "tokens"):
        for embedding in (None, 10, 9):
            distiller = exits_of(((6, 9, 5), (7, 4, 4)), embedding, head)
            for exit_, shape in zip(distiller.exits, ((6, 9, 5), (7, 4, 4)), strict=True):
                assert exit_(torch.randn(3, *shape)).shape == (3, CLASSES)


# On maps.


@pytest.mark.parametrize("power", [1, 2, 3])
def test_at_equals_the_reference(power: int):
    student, teacher, batch = said()
    loss = make("at", {"power": power})(student, teacher, batch)["attention"]
    check_gradient(loss, lambda: rivals.at(student.maps, teacher.maps, power), list(student.maps))


def test_at_is_zero_for_maps_that_differ_by_scale_and_refuses_single_cells_alone():
    x = random(3, 4, 5, 5)
    torch.testing.assert_close(attention(7 * x), attention(x))
    torch.testing.assert_close(attention(x).square().sum(1), torch.ones(3, dtype=F64))
    single = OutputShapes(((4, 1, 1), (8, 1, 1)), 8, CLASSES)
    with pytest.raises(ValueError, match="every matched level has one cell; use larger images"):
        build_losses("at", PairShapes(single, single, CLASSES, IMAGES))


def test_fitnet_equals_the_reference():
    student, teacher, batch = said()
    distiller = make("fitnet")
    loss = distiller(student, teacher, batch)["features"]
    mixes = [mix.weight for mix in distiller.mixes]
    check_gradient(
        loss,
        lambda: rivals.fitnet(student.maps, teacher.maps, [mix.detach()[:, :, 0, 0] for mix in mixes]),
        [*student.maps, *mixes],
    )


def test_fitnet_is_zero_when_the_mix_gives_the_teachers_maps():
    maps = ((4, 3, 3), (3, 2, 3))
    same = PairShapes(OutputShapes(maps, 6, CLASSES), OutputShapes(maps, 6, CLASSES), CLASSES, IMAGES)
    distiller = make("fitnet", shapes=same)
    for mix in distiller.mixes:
        mix.weight.data = torch.eye(len(mix.weight), dtype=F64)[:, :, None, None]
    _, teacher, batch = said()
    teacher = teacher._replace(maps=tuple(random(BATCH, *shape) for shape in maps))
    assert distiller(teacher, teacher, batch)["features"] == 0


def test_spectralkd_equals_the_reference():
    student, teacher, batch = said()
    loss = make("spectralkd")(student, teacher, batch)["fft"]
    check_gradient(loss, lambda: rivals.spectralkd(student.maps, teacher.maps), list(student.maps))


def test_spectralkd_is_zero_for_equal_maps_and_by_parseval_near_the_spatial_error():
    x, y = random(2, 3, 5, 5), random(2, 3, 5, 5, seed=1)
    assert spectral_error(x, x) == 0
    # rfft2 keeps each conjugate pair once: twice its half, less the column that has no partner, is the whole
    full = torch.view_as_real(torch.fft.fft2(x - y, norm="ortho")).square().sum()
    torch.testing.assert_close(full, (x - y).square().sum())
    column = torch.view_as_real(torch.fft.fft2(x - y, norm="ortho"))[..., 0, :].square().sum()
    count = 2 * 3 * 5 * 3 * 2
    torch.testing.assert_close(2 * spectral_error(x, y) * count - column, (x - y).square().sum())


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_two_maps_meet_on_the_smaller_grid(a: int, b: int, c: int, d: int):
    x, y = random(1, 2, a, b), random(1, 3, c, d, seed=1)
    found = pool_to_common_grid(x, y)
    for out, expected in zip(found, rivals.common_grid(x[0], y[0]), strict=True):
        torch.testing.assert_close(out[0], expected)
    assert found[0].shape[2:] == found[1].shape[2:] == (min(a, c), min(b, d))


# On embeddings and relations.


def test_cc_equals_the_reference():
    student, teacher, batch = said()
    distiller = make("cc", {"dim": 3})
    own = [distiller.embed_student, distiller.embed_teacher]

    def value() -> float:
        ours, theirs = (
            [rivals.linear(row, m.weight.detach(), m.bias.detach()) for row in x.tolist()]
            for x, m in zip((student.embedding, teacher.embedding), own, strict=True)
        )
        return rivals.cc(ours, theirs)

    loss = distiller(student, teacher, batch)["correlation"]
    check_gradient(loss, value, [student.embedding, *own[0].parameters(), *own[1].parameters()])
    assert neighbour_correlation(teacher.embedding, teacher.embedding) == 0


def test_rkd_equals_the_reference():
    student, teacher, batch = said()
    terms = make("rkd")(student, teacher, batch)
    for i, term in enumerate(("distance", "angle")):
        check_gradient(
            terms[term], lambda i=i: rivals.rkd(student.embedding, teacher.embedding)[i], [student.embedding]
        )


def test_rkd_is_zero_for_a_moved_turned_and_scaled_embedding():
    x = random(5, 4)
    turn = torch.linalg.qr(random(4, 4, seed=3)).Q
    moved = 2.5 * x @ turn + random(1, 4, seed=4)
    torch.testing.assert_close(relative_distances(moved), relative_distances(x))
    torch.testing.assert_close(angles(moved), angles(x))
    assert relative_distances(x).sum().item() == pytest.approx(5 * 4)


def test_rkd_is_finite_where_embeddings_coincide():
    same = torch.ones(3, 4, requires_grad=True)
    terms = build_losses("rkd", SHAPES)["rkd"](
        NetworkOutput(embedding=same), NetworkOutput(embedding=torch.ones(3, 6)), said(batch=3)[2]
    )
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values()) and same.grad.isfinite().all()


@pytest.mark.parametrize("negatives", [1, 9])
def test_crd_equals_the_reference_over_two_steps(negatives: int):
    """9 draws from 12 images take the whole bank at once, 1 gathers its rows."""
    settings = {"dim": 3, "negatives": negatives, "temperature": 0.5, "momentum": 0.3}
    distiller = make("crd", settings)
    banks = [distiller.student_bank.tolist(), distiller.teacher_bank.tolist()]
    z: list[float | None] = [None, None]
    own = [distiller.embed_student, distiller.embed_teacher]
    for step in (0, 1):
        student, teacher, batch = said(seed=step)
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randint(IMAGES, (BATCH, negatives), generator=generator)
        assert (len(distiller.student_bank) <= 4 * (negatives + 1)) == (negatives == 9)

        def anchors(student: NetworkOutput = student, teacher: NetworkOutput = teacher) -> list[list[list[float]]]:
            return [
                [rivals.unit(rivals.linear(row, m.weight.detach(), m.bias.detach())) for row in x.tolist()]
                for x, m in zip((student.embedding, teacher.embedding), own, strict=True)
            ]

        index, found = batch.index.tolist(), anchors()
        sides = [(0, banks[1]), (1, banks[0])]
        if step == 0:  # the constants are set by the first batch and learn nothing
            z = [rivals.crd_side(found[i], bank, index, drawn.tolist(), 0.5, None)[1] for i, bank in sides]

        def value(sides: Any = sides, drawn: Tensor = drawn, index: list[int] = index, z: Any = z) -> float:
            now = anchors()
            return sum(rivals.crd_side(now[i], bank, index, drawn.tolist(), 0.5, z[i])[0] for i, bank in sides)

        loss = distiller.loss(student, teacher, batch.index, drawn)
        check_gradient(loss, value, [student.embedding, *own[0].parameters(), *own[1].parameters()])
        torch.testing.assert_close(distiller.log_normalisers.exp(), torch.tensor(z, dtype=F64))
        given = copy.deepcopy(distiller).loss(student, teacher, batch.index, drawn, z=(2.0, 3.0))
        assert given != loss
        banks = [copy.deepcopy(bank) for bank in banks]
        for bank, new in zip(banks, found, strict=True):
            for i, row in zip(index, new, strict=True):
                bank[i] = rivals.moved(bank[i], row, 0.3)
        torch.testing.assert_close(distiller.student_bank, torch.tensor(banks[0], dtype=F64))
        torch.testing.assert_close(distiller.teacher_bank, torch.tensor(banks[1], dtype=F64))


def test_crd_meets_its_bank_the_same_by_either_way():
    anchor, bank, drawn = random(2, 3), random(40, 3, seed=1), torch.tensor([[0, 39, 7], [7, 7, 1]])
    gathered, whole = exponents(anchor, bank, drawn, 0.7), exponents(anchor, bank, drawn.repeat(1, 4), 0.7)
    torch.testing.assert_close(whole, gathered.repeat(1, 4))


def test_crd_draws_over_all_images_anew_each_step_and_from_the_steps_seed():
    distiller = make("crd", {"negatives": 500})
    student, teacher, batch = said()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(copy.deepcopy(distiller)(student, teacher, batch)["contrast"].item())
    assert values[0] == values[1] != values[2]


def test_crds_banks_hold_a_row_an_image_and_rest_outside_training():
    distiller = make("crd").eval()
    before = copy.deepcopy(distiller.state_dict())
    assert distiller.student_bank.shape == distiller.teacher_bank.shape == (IMAGES, 128)
    student, teacher, batch = said()
    distiller(student, teacher, batch)
    assert all(torch.equal(before[k], v) for k, v in distiller.state_dict().items())
    distiller.train()(student, teacher, batch)
    changed = (before["student_bank"] != distiller.student_bank).any(1).nonzero().flatten()
    assert changed.tolist() == sorted(batch.index.tolist())


def test_crd_takes_given_constants_and_stays_finite_at_any_temperature():
    student, teacher, batch = said()
    drawn = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 6]])
    distiller = make("crd", {"dim": 3, "negatives": 2, "temperature": 0.5})
    banks, own = (distiller.teacher_bank, distiller.student_bank), (distiller.embed_student, distiller.embed_teacher)
    expected = 0.0
    for embedding, bank, layer, z in zip((student.embedding, teacher.embedding), banks, own, (2.0, 3.0), strict=True):
        anchors = F.normalize(layer(embedding)).tolist()
        expected += rivals.crd_side(anchors, bank.tolist(), batch.index.tolist(), drawn.tolist(), 0.5, z)[0]
    assert distiller.loss(student, teacher, batch.index, drawn, z=(2.0, 3.0)).item() == pytest.approx(
        expected, rel=1e-12
    )
    cold = build_losses("crd", SHAPES, {"dim": 3, "temperature": 0.001})["crd"]
    sides = [NetworkOutput(embedding=x.embedding.detach().float()) for x in (student, teacher)]
    for _ in range(3):
        assert cold(*sides, batch)["contrast"].isfinite()


def test_rsd_equals_the_reference():
    student, teacher, batch = said(batch=6)
    distiller = make("rsd", {"kappa": 0.2})
    first, norm, _, last = distiller.project

    def value() -> float:
        hidden = rivals.batch_norm([rivals.linear(row, first.weight.detach()) for row in student.embedding.tolist()])
        gain, bias = norm.weight.tolist(), norm.bias.tolist()
        active = [[rivals.gelu(g * x + b) for x, g, b in zip(row, gain, bias, strict=True)] for row in hidden]
        projected = [rivals.linear(row, last.weight.detach()) for row in active]
        return rivals.rsd(projected, teacher.embedding.tolist(), 0.2)

    loss = distiller(student, teacher, batch)["redundancy"]
    check_gradient(loss, value, [student.embedding, *distiller.parameters()])
    assert first.weight.shape == (8, 4) and last.weight.shape == (6, 8) and first.bias is last.bias is None


def test_rsd_is_zero_exactly_for_the_teachers_own_decorrelated_embedding():
    basis = torch.linalg.qr(random(8, 8) + 1).Q[:, 1:4]
    centred = basis - basis.mean(0)
    white = torch.linalg.qr(centred).Q * 8**0.5
    assert redundancy(white, white).item() == pytest.approx(0, abs=1e-8)
    assert redundancy(-white, white) > 1
    twice = torch.cat((white[:, :1], white[:, :1]), 1)
    assert redundancy(twice, twice, 0.5).item() == pytest.approx(2 * 0.5, rel=1e-3)  # what is there twice is redundant


def test_rsd_is_finite_for_dead_features():
    student = torch.randn(4, 3)
    student[:, 1] = 2.0
    student.requires_grad_()
    loss = redundancy(student, torch.zeros(4, 3))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


# What all rivals share.

RIVALS = ("dkd", "dist", "fitnet", "at", "cc", "rkd", "crd", "ofa", "rsd", "spectralkd")
PAPER = {  # weights as the authors, or the field's tables, run them
    "dkd": {"tckd": 1.0, "nckd": 2.0},
    "dist": {"inter": 1.0, "intra": 1.0},
    "fitnet": {"features": 1.0},
    "at": {"attention": 1000.0},
    "cc": {"correlation": 0.02},
    "rkd": {"distance": 25.0, "angle": 50.0},
    "crd": {"contrast": 1.0},
    "ofa": {"stages": 1.0, "logits": 1.0},
    "rsd": {"redundancy": 0.1},
    "spectralkd": {"kl": 1.0, "fft": 0.2},
}
DEFAULTS = {
    "dkd": {"temperature": 1.0, "standardise_logits": False},
    "dist": {"temperature": 1.0},
    "fitnet": {},
    "at": {"power": 2},
    "cc": {"dim": 128},
    "rkd": {},
    "crd": {"dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5},
    "ofa": {"eps": 1.0, "temperature": 1.0, "head": "auto"},
    "rsd": {"kappa": 0.01, "expansion": 2},
    "spectralkd": {"temperature": 1.0},
}


@pytest.mark.parametrize("method", RIVALS)
def test_defaults_are_those_of_the_papers_and_tables(method: str):
    assert method_class(method).default_weights == PAPER[method]
    assert {k: p.default for k, p in settings_of(method).items()} == DEFAULTS[method]


@pytest.mark.parametrize("method", [name for name in method_names() if name != "scratch"])
def test_every_method_names_what_is_tuned_and_its_source(method: str):
    kind = method_class(method)
    assert kind.main_term in kind.default_weights
    if kind.tunable is not None:
        name, values = kind.tunable
        for value in values:
            assert value != settings_of(method)[name].default
            parse_methods(method, {name: value})
    module = __import__(kind.__module__, fromlist=["_"]).__doc__ or ""
    assert "arXiv" in module or method.startswith("twin")
    assert kind.__doc__


@pytest.mark.parametrize("method", RIVALS)
def test_a_weight_of_0_skips_the_work_and_the_layers(method: str):
    distiller = build_losses(method, SHAPES, weights=dict.fromkeys(PAPER[method], 0.0))[method]
    assert isinstance(distiller, DistillationLoss)
    assert not distiller.needs.student and not distiller.needs.teacher and not list(distiller.parameters())
    assert distiller(NetworkOutput(), NetworkOutput(), said()[2]) == {}


@pytest.mark.parametrize(("method", "term"), [(m, t) for m in RIVALS for t in PAPER[m] if len(PAPER[m]) > 1])
def test_each_term_can_be_had_alone_with_what_it_needs(method: str, term: str):
    weights = {name: float(name == term) for name in PAPER[method]}
    distiller = build_losses(method, SHAPES, weights=weights)[method].double()
    sides = [
        NetworkOutput(**{k: v for k, v in side._asdict().items() if k in needs})
        for side, needs in zip(said()[:2], (distiller.needs.student, distiller.needs.teacher), strict=True)
    ]
    assert set(distiller(*sides, said()[2])) == {term}


@pytest.mark.parametrize("method", RIVALS)
def test_a_teacher_is_needed(method: str):
    with pytest.raises(ValueError, match=f"method '{method}' needs a teacher"):
        build_losses(method, PairShapes(SHAPES.student, None, CLASSES, IMAGES))


@pytest.mark.parametrize("method", ["cc", "rkd", "crd", "rsd"])
def test_embeddings_are_needed_on_both_sides(method: str):
    bare = OutputShapes(STUDENT, None, CLASSES)
    for sides, which in (((bare, SHAPES.teacher), "student"), ((SHAPES.student, bare), "teacher")):
        with pytest.raises(ValueError, match=f"{method} needs {which} embedding, and the {which} has none"):
            build_losses(method, PairShapes(*sides, CLASSES, IMAGES))


@pytest.mark.parametrize("method", ["fitnet", "at", "spectralkd", "ofa"])
def test_taps_are_needed(method: str):
    with pytest.raises(ValueError, match=f"{method} .*feature maps, and the student has none"):
        build_losses(method, PairShapes(OutputShapes((), 4, CLASSES), SHAPES.teacher, CLASSES, IMAGES))


SINGLE = {
    "dist": "correlates images",
    "cc": "relates neighbours",
    "rkd": "relates the images",
    "rsd": "correlates over",
}


@pytest.mark.parametrize("method", RIVALS)
def test_a_batch_of_one_image_works_or_is_refused_with_the_reason(method: str):
    student, teacher, batch = said(batch=1)
    distiller = make(method)
    why = SINGLE.get(method, "has batch norm in its exits" if method == "ofa" else None)
    if why is None:
        terms = distiller(student, teacher, batch)
        assert set(terms) == set(PAPER[method]) and all(term.isfinite() for term in terms.values())
    else:
        with pytest.raises(
            ValueError, match=f"{method} {why}.* needs at least 2 images a step, got 1; use a larger batch"
        ):
            distiller(student, teacher, batch)


@pytest.mark.parametrize("method", ["dkd", "ofa"])
def test_of_a_mixed_image_the_larger_share_is_the_target(method: str):
    student, teacher, batch = said()
    hard = batch._replace(target=F.one_hot(batch.label, CLASSES).double())
    distiller = make(method, {"eps": 1.5} if method == "ofa" else {}).eval()  # with eps 1 no class is apart
    mixed, plain = (distiller(student, teacher, b) for b in (batch, hard))
    assert {k: v.item() for k, v in mixed.items()} == {k: v.item() for k, v in plain.items()}
    other = batch._replace(target=batch.target.roll(1, 1))
    assert any(distiller(student, teacher, other)[k] != v for k, v in mixed.items())


BAD = [
    ("dkd", {"temperature": 0}, "temperature must be above 0, got 0"),
    ("dist", {"temperature": -1}, "temperature must be above 0, got -1"),
    ("spectralkd", {"temperature": 0}, "temperature must be above 0"),
    ("at", {"power": 0}, "power must be above 0, got 0"),
    ("cc", {"dim": 0}, "dim must be above 0, got 0"),
    ("crd", {"negatives": 0}, "negatives must be above 0, got 0"),
    ("crd", {"temperature": 0}, "temperature must be above 0, got 0"),
    ("crd", {"momentum": 1.0}, "momentum must be from 0 to below 1, got 1.0"),
    ("ofa", {"eps": 0.5}, "eps must be >= 1: one number, or 2 for the exits and one for the logits; got 0.5"),
    ("ofa", {"eps": (1.0, 1.0)}, "eps must be >= 1: one number, or 2 for the exits"),
    ("ofa", {"head": "cnn"}, "head='cnn' of ofa: input should be 'auto', 'conv' or 'tokens'"),
    ("rsd", {"kappa": -0.1}, "kappa must be at least 0, got -0.1"),
    ("rsd", {"expansion": 0}, "expansion must be above 0, got 0"),
]


@pytest.mark.parametrize(("method", "settings", "message"), BAD)
def test_settings_out_of_range_are_refused(method: str, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_losses(method, SHAPES, settings)


# In a list.

UHKDS = {"uhkd.kl", "uhkd.inter", "uhkd.intra"}


@pytest.mark.parametrize(
    ("method", "silent"),
    [
        ("uhkd+dkd", UHKDS),
        ("dkd+uhkd", UHKDS),
        ("uhkd+rsd", set()),
        ("uhkd+spectralkd", {"spectralkd.kl"}),
        ("spectralkd+dist+uhkd", {"spectralkd.kl"} | UHKDS),
        ("fitnet+kd", set()),
        ("ofa+uhkd", UHKDS),
        ("rsd+kd", set()),
    ],
)
def test_one_imitation_of_the_logits_counts(method: str, silent: set[str]):
    found = {
        f"{name}.{term}" for name, spec in parse_methods(method).items() for term, w in spec.weights.items() if w == 0
    }
    assert found == silent
    asked = dict.fromkeys(silent, 1.0)
    assert all(w == 1.0 for spec in parse_methods(method, weights=asked).values() for w in spec.weights.values())


def test_a_list_is_the_sum_of_its_methods():
    student, teacher, batch = said(batch=6)
    torch.manual_seed(0)
    both = build_losses("rsd+dist", SHAPES).double()
    alone = {name: both[name](student, teacher, batch) for name in ("rsd", "dist")}
    assert {k: set(v) for k, v in alone.items()} == {"rsd": {"redundancy"}, "dist": {"inter", "intra"}}
    assert math.isfinite(sum(v.item() for terms in alone.values() for v in terms.values()))
