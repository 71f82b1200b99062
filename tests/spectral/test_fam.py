"""FAM: what each of its forms computes, what it learns, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhkd.spectral import SpectralTransform
from uhkd.spectral.fam import FAM

SHAPE, SIZE, OUT = (6, 8, 5), (5, 3), 4
NUMBERS = {"pairs": 15, "area": 15, "amplitude": 8, "log-amplitude": 8}
FORMS = [(form, represent) for form in ("linear", "mlp", "conv") for represent in NUMBERS]
FORMS += [("offset", "pairs"), ("rotation", "pairs")] + [("bands", form) for form in NUMBERS if form != "area"]
every_form = pytest.mark.parametrize(("form", "represent"), FORMS)


def make(form="linear", represent="pairs", seed=0, **settings) -> FAM:
    torch.manual_seed(seed)
    return FAM(SHAPE, (OUT, NUMBERS[represent]), size=SIZE, represent=represent, form=form, **settings)


def images(batch=7, seed=1) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


@every_form
def test_gives_the_targets_shape_standardised_over_the_batch(form, represent):
    found = make(form, represent)(images(200))
    assert found.shape == (200, OUT, NUMBERS[represent])
    assert found.dtype == torch.float32
    assert found.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(found.std(0, correction=0), torch.ones_like(found[0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("represent", NUMBERS)
def test_linear_is_a_1x1_convolution_before_the_transform(represent):
    fam = make("linear", represent)
    fam.norm = nn.Identity()
    x = images()
    assert isinstance(fam.mix, nn.Linear)
    before = SpectralTransform(SHAPE[1:], SIZE, represent)(F.conv2d(x, fam.mix.weight[..., None, None]))
    torch.testing.assert_close(fam(x), before, rtol=1e-4, atol=1e-5)


def test_bands_mix_the_channels_of_each_radial_frequency_by_themselves():
    fam, x = make("bands"), images()
    fam.norm = nn.Identity()
    coefficients = SpectralTransform(SHAPE[1:], SIZE, "pairs")(x)
    found, lengths = fam(x), sorted({math.hypot(u, v) for u in range(3) for v in range(2)})
    assert len(fam.mix) == len(lengths)
    for row in range(5):
        for col in range(3):
            mix = fam.mix[lengths.index(math.hypot((row + 1) // 2, (col + 1) // 2))].weight
            at = 3 * row + col
            torch.testing.assert_close(found[..., at], coefficients[..., at] @ mix.T, rtol=1e-4, atol=1e-5)


def test_bands_of_a_spatial_twin_are_refused():
    with pytest.raises(ValueError, match="'bands' mixes each frequency separately, and a spatial twin has none"):
        make("bands", "area")


def test_the_scale_of_the_student_does_not_matter_in_training():
    fam = make()
    torch.testing.assert_close(fam(images()), fam(50 * images() + 3), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["offset", "rotation"])
def test_turned_forms_start_as_the_linear_one(form):
    turned, linear = make(form), make("linear")
    turned.mix.load_state_dict(linear.mix.state_dict())
    torch.testing.assert_close(turned(images()), linear(images()))


def test_one_rotation_per_frequency_can_be_an_offset():
    offset, rotation = make("offset"), make("rotation")
    rotation.load_state_dict({**rotation.state_dict(), **offset.mix.state_dict(prefix="mix.")})
    with torch.no_grad():
        offset.row_angles.fill_(0.03)
        offset.col_angles.fill_(-0.05)
        rotation.row_angles.copy_(2 * math.pi * 0.03 * torch.arange(1.0, 3.0))
        rotation.col_angles.copy_(-2 * math.pi * 0.05 * torch.arange(1.0, 2.0))
    torch.testing.assert_close(offset(images()), rotation(images()))


def sampled(project: Tensor, grid: tuple[int, int], place: float) -> Tensor:
    """Band-limited scenes of radius 2 (N, C, 5, 5), sampled at (h + place) / H: 0.5 are the centres, 0 the corners."""
    bases = []
    for n in grid:
        angles = 2 * math.pi * (torch.arange(n) + place) / n
        waves = [f(u * angles) * math.sqrt(2) for u in (1, 2) for f in (torch.cos, torch.sin)]
        bases.append(torch.stack([torch.ones(n), *waves]))
    return bases[0].T @ project @ bases[1]


def toy(form: str) -> tuple[FAM, float]:
    """A FAM trained to predict centre-sampled scenes, mixed, from corner-sampled ones; and its last error."""
    generator = torch.Generator().manual_seed(3)
    scenes, mix = torch.randn(48, 3, 5, 5, generator=generator), torch.randn(4, 3, generator=generator)
    student = sampled(scenes, (8, 6), 0.0)
    teacher = torch.einsum("dc,nchw->ndhw", mix, sampled(scenes, (14, 14), 0.5))
    target = SpectralTransform((14, 14), (5, 5), "pairs")(teacher)
    target = (target - target.mean(0)) / target.std(0, correction=0)
    torch.manual_seed(0)
    fam = FAM((3, 8, 6), (4, 25), size=(5, 5), represent="pairs", form=form)
    optimizer = torch.optim.Adam(fam.parameters(), lr=0.04)
    error = torch.tensor(math.inf)
    for _ in range(150):
        optimizer.zero_grad()
        error = (fam(student) - target).square().mean()
        error.backward()
        optimizer.step()
    return fam, error.item()


def test_offset_recovers_the_sampling_offset():
    offset, error = toy("offset")
    # a map sampled at the corners is the scene moved by +half a cell; the offset that undoes it is minus that
    assert offset.row_angles.item() == pytest.approx(-0.5 / 8, abs=1e-3)
    assert offset.col_angles.item() == pytest.approx(-0.5 / 6, abs=1e-3)
    rotation, its_error = toy("rotation")
    expected = [-2 * math.pi * u * 0.5 / 8 for u in (1, 2)]
    assert rotation.row_angles.tolist() == pytest.approx(expected, abs=0.01)
    _, unturned = toy("linear")
    assert max(error, its_error) < 1e-3 < 0.1 < unturned


@every_form
def test_float32_inside_bf16_autocast(form, represent):
    fam = make(form, represent)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fam(images())
        from_bf16 = fam(images().bfloat16())
    assert inside.dtype == from_bf16.dtype == torch.float32
    assert from_bf16.isfinite().all()
    if form != "conv":  # which alone has a part before the transform, as the student's own layers are
        assert torch.equal(inside, fam(images()))


@every_form
def test_parameters_are_real_and_all_of_them_learn(form, represent):
    fam, x = make(form, represent), images().requires_grad_()
    target = torch.randn(7, OUT, NUMBERS[represent], generator=torch.Generator().manual_seed(5))
    for mode in (True, False):
        fam.train(mode).zero_grad()
        (fam(x) - target).square().mean().backward()
        for name, parameter in fam.named_parameters():
            assert not parameter.is_complex(), name
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # over the batch's own mean, constant shifts cancel: those learn nothing in training, and harm nothing
            assert parameter.grad.abs().max() > 0 or mode, name
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().amax((1, 2, 3)).min() > 0


@every_form
def test_state_survives_a_round_trip(form, represent):
    fam, other = make(form, represent), make(form, represent, seed=9)
    fam(images())  # moves the running statistics
    assert not torch.equal(fam.eval()(images()), other.eval()(images()))
    other.load_state_dict(fam.state_dict())
    assert torch.equal(fam(images()), other(images()))
    assert not [key for key in fam.state_dict() if "rows" in key or "cols" in key or "orders" in key]


@pytest.mark.parametrize("form", ["linear", "bands", "mlp", "offset", "rotation", "conv"])
def test_a_level_of_the_mean_alone_works(form):
    fam = FAM((6, 2, 2), (OUT, 1), size=(1, 1), represent="pairs", form=form)
    x = torch.randn(5, 6, 2, 2, requires_grad=True)
    found = fam(x)
    assert found.shape == (5, OUT, 1)
    found.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_hidden_sets_the_width_of_the_two_layers():
    fam = make("mlp", hidden=11)
    assert isinstance(fam.mix, nn.Sequential) and [p.shape[0] for p in fam.mix[0].parameters()] == [11, 11]


def test_one_image_is_enough_to_predict_and_refused_in_training():
    fam = make()
    with pytest.raises(ValueError, match="needs at least 2 images in training, got 1; use a larger batch"):
        fam(images(1))
    both = fam.eval()(images(2))
    torch.testing.assert_close(fam(images(2)[:1]), both[:1])


@pytest.mark.parametrize("represent", ["area", "amplitude", "log-amplitude"])
@pytest.mark.parametrize("form", ["offset", "rotation"])
def test_turning_phases_that_are_not_there_is_refused(form, represent):
    with pytest.raises(
        ValueError, match=f"'{form}' rotates phases, and the form '{represent}' has none; use form 'pairs'"
    ):
        make(form, represent)


def test_hidden_below_one_is_refused():
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        make("mlp", hidden=0)
