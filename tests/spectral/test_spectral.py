"""FTM's mathematics: the properties that docs/method.md promises, against literal references in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from references.spectral import band_limited, coefficient, real_spectrum
from uhkd.spectral import (
    FTM,
    LevelPair,
    SpectralTarget,
    SpectralTransform,
    area_basis,
    complex_halfplane,
    crop_indices,
    fourier_basis,
    ftm_shapes,
    halfplane_frequencies,
    match_by_depth,
    match_levels,
    max_radius,
    project,
    radial_frequencies,
    rotate,
    spectrum,
    teacher_levels,
)

F64 = torch.float64
GRIDS = [(7, 7), (14, 14), (3, 3), (4, 4), (5, 9), (8, 3), (13, 6)]


def maps(b=2, c=3, h=7, w=7, seed=0, dtype=F64):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_equals_the_double_loop(h, w):
    x = maps(1, 2, h, w)
    r = (max_radius(h), max_radius(w))
    found = spectrum(x, r)
    for c in range(2):
        torch.testing.assert_close(found[0, c], real_spectrum(x[0, c], *r), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_halfplane_equals_the_definition_and_fft2_with_phase_correction(h, w):
    x = maps(1, 1, h, w)
    r = (max_radius(h), max_radius(w))
    real, imaginary = complex_halfplane(spectrum(x, r))
    plain = torch.fft.fft2(x[0, 0]) / (h * w)
    for k, (u, v) in enumerate(halfplane_frequencies((2 * r[0] + 1, 2 * r[1] + 1))):
        found = complex(real[0, 0, k].item(), imaginary[0, 0, k].item())
        assert abs(found - coefficient(x[0, 0], u, v)) < 1e-13
        # fft2 samples at the cells' corners: half a cell is a phase of pi u / H + pi v / W with *signed* u and v
        shifted = plain[u % h, v % w].item() * complex(math.cos(p := math.pi * (u / h + v / w)), -math.sin(p))
        assert abs(found - shifted) < 1e-13


def test_halfplane_holds_each_frequency_of_the_plane_once():
    size = (5, 7)
    half = halfplane_frequencies(size)
    assert len(half) == (size[0] * size[1] + 1) // 2
    plane = {(u, v) for u in range(-2, 3) for v in range(-3, 4)}
    assert {*half, *((-u, -v) for u, v in half)} == plane
    assert len(set(half)) == len(half)


def test_constant_map_has_only_dc():
    found = spectrum(torch.full((1, 1, 9, 6), 2.5, dtype=F64), (4, 2))
    assert found[0, 0, 0, 0].item() == pytest.approx(2.5)
    found[..., 0, 0] = 0
    assert found.abs().max() < 1e-14


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, -1)])
def test_circular_shift_by_whole_cells_changes_phase_only(shift):
    x = maps(1, 4, 9, 10)
    form = SpectralTransform((9, 10), (9, 9), "amplitude").double()
    torch.testing.assert_close(form(x.roll(shift, (2, 3))), form(x), rtol=1e-6, atol=1e-7)  # float32 bases
    assert not torch.allclose(spectrum(x.roll(shift, (2, 3)), 4), spectrum(x, 4))


@pytest.mark.parametrize(("one", "other"), [((7, 7), (14, 14)), ((7, 9), (28, 12)), ((8, 8), (7, 11))])
def test_grids_of_different_size_that_sample_one_scene_agree(one, other):
    waves = [(0, 0, 0.7, 0.0), (1, 0, 1.0, 0.3), (2, -1, 0.5, 1.1), (3, 3, 0.8, -0.4), (0, 2, 0.2, 2.0)]
    found = [spectrum(band_limited(*grid, waves)[None, None], 3) for grid in (one, other)]
    assert (found[0] - found[1]).abs().max() < 1e-14


def test_corner_sampling_would_not_agree():
    """The trap the cell centres avoid: plain fft2 of the same scene differs between grids."""
    waves = [(1, 1, 1.0, 0.3)]
    plain = [(torch.fft.fft2(band_limited(n, n, waves)) / n**2)[1, 1] for n in (7, 14)]
    assert (plain[0] - plain[1]).abs() > 0.1


@pytest.mark.parametrize(("h", "w"), [(7, 7), (5, 9), (3, 3)])
def test_full_band_loss_equals_spatial_mse_on_odd_grids(h, w):
    x, y = maps(2, 3, h, w, 1), maps(2, 3, h, w, 2)
    r = (max_radius(h), max_radius(w))
    spectral = (spectrum(x, r) - spectrum(y, r)).square().sum((2, 3)).mean()
    assert spectral.item() == pytest.approx(F.mse_loss(x, y).item(), rel=1e-12)


def test_even_grids_leave_the_nyquist_row_out():
    x = torch.tensor([1.0, -1.0], dtype=F64).repeat(4)[None, None, :, None].expand(1, 1, 8, 8)
    assert spectrum(x, 3).abs().max() < 1e-14
    assert x.square().mean() == 1


def test_lower_radius_is_a_prefix_of_a_higher_one():
    x = maps(1, 2, 9, 9)
    torch.testing.assert_close(spectrum(x, 4)[..., :3, :5], spectrum(x, (1, 2)), rtol=0, atol=1e-15)


def test_transform_commutes_with_channel_mixing_up_to_the_bias_in_dc():
    x, mix = maps(2, 6, 8, 7), nn.Conv2d(6, 4, 1).double()
    before = spectrum(mix(x), 3)
    after = torch.einsum("oc,bcuv->bouv", mix.weight[..., 0, 0], spectrum(x, 3))
    difference = before - after
    torch.testing.assert_close(difference[..., 0, 0], mix.bias.expand(2, 4), rtol=0, atol=1e-12)
    difference[..., 0, 0] = 0
    assert difference.abs().max() < 1e-12


@pytest.mark.parametrize("form", ["pairs", "amplitude", "log-amplitude", "area"])
def test_gradcheck(form):
    represent = SpectralTransform((5, 6), (3, 5), form).double()
    x = maps(2, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(represent, (x,))


@pytest.mark.parametrize("form", ["amplitude", "log-amplitude"])
def test_gradient_is_finite_where_the_spectrum_is_zero(form):
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    SpectralTransform((5, 5), (3, 3), form)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_amplitudes_are_those_of_the_definition():
    x = maps(1, 1, 6, 7)
    found = SpectralTransform((6, 7), (5, 7), "amplitude").double()(x)[0, 0]
    for k, (u, v) in enumerate(halfplane_frequencies((5, 7))):
        expected = coefficient(x[0, 0], u, v)
        assert found[k].item() == pytest.approx(expected.real if k == 0 else abs(expected), abs=1e-4)


def test_rotation_moves_the_sampling_points():
    waves = [(0, 0, 0.7, 0.0), (1, 0, 1.0, 0.3), (2, -1, 0.5, 1.1), (0, 2, 0.2, 2.0)]
    x = band_limited(9, 9, waves)
    d_y, d_x = 0.031, -0.077
    moved = band_limited(9, 9, [(u, v, a, p - 2 * math.pi * (u * d_y + v * d_x)) for u, v, a, p in waves])
    orders = 2 * math.pi * torch.arange(1.0, 5.0, dtype=F64)
    found = rotate(spectrum(x[None, None], 4), orders * d_y, orders * d_x)
    torch.testing.assert_close(found, spectrum(moved[None, None], 4), rtol=0, atol=1e-13)


def test_float32_inside_autocast_and_from_bf16():
    x = maps(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = spectrum(x, 2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, spectrum(x, 2))
    assert spectrum(x.bfloat16(), 2).dtype == torch.float32


def test_no_complex_or_trainable_parameter():
    ftm = FTM(SpectralTarget(match_levels(MAPS, MAPS, 1, "pairs"), channels=2), MAPS)
    assert not list(ftm.parameters())
    assert not any(b.is_complex() for b in ftm.buffers())


def test_radius_beyond_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.3 for an axis of 8 cells, got 4"):
        fourier_basis(8, 4)


@pytest.mark.parametrize(("n", "cells"), [(14, 7), (28, 4), (9, 3)])
def test_area_basis_is_average_pooling_where_that_divides(n, cells):
    x, rows = maps(1, 2, n, n), area_basis(n, cells, F64)
    torch.testing.assert_close(project(x, rows, rows), F.adaptive_avg_pool2d(x, cells), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("n", "cells"), [(7, 3), (4, 3), (2, 3), (5, 5)])
def test_area_basis_averages_by_overlap(n, cells):
    rows = area_basis(n, cells, F64)
    torch.testing.assert_close(rows.sum(1), torch.ones(cells, dtype=F64))
    torch.testing.assert_close(rows.sum(0), torch.full((n,), cells / n, dtype=F64))  # no cell counts more than another


def test_radial_frequencies_follow_each_layout():
    assert radial_frequencies((3, 3), "pairs").tolist() == pytest.approx(
        [0, 1, 1, 1, 2**0.5, 2**0.5, 1, 2**0.5, 2**0.5]
    )
    assert radial_frequencies((3, 3), "amplitude").tolist() == pytest.approx([0, 1, 1, 2**0.5, 2**0.5])
    x = band_limited(9, 9, [(2, 1, 1.0, 0.4)])[None, None]
    energy = spectrum(x, 4).square().flatten()
    found = radial_frequencies((9, 9), "pairs")[energy > 1e-9]
    assert len(found) == 4 and found.sub(5**0.5).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("students", "teachers", "expected"),
    [
        (4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (3, 4, [(0, 1), (1, 2), (2, 3)]),
        (12, 4, [(2, 0), (5, 1), (8, 2), (11, 3)]),
    ],
)
def test_levels_are_matched_by_relative_depth(students, teachers, expected):
    assert match_by_depth(students, teachers) == expected


MAPS = ((4, 8, 8), (6, 4, 4), (8, 2, 2))


def test_levels_keep_the_radius_that_both_grids_have():
    levels = match_levels(MAPS, ((5, 14, 14), (5, 7, 7), (5, 7, 7)), 2, "pairs")
    assert [level.size for level in levels] == [(5, 5), (3, 3), (1, 1)]


def test_pairs_too_small_for_spectra_are_refused_with_the_grids():
    with pytest.raises(ValueError, match=r"at least two matched levels need grids of 3x3.*\(2, 2\) with \(7, 7\)"):
        match_levels(((4, 8, 8), (4, 2, 2), (4, 1, 1)), ((4, 28, 28), (4, 7, 7), (4, 7, 7)), 1, "pairs")


def test_radius_zero_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        match_levels(MAPS, MAPS, 0, "pairs")


def calibrated(standardise="coefficient", channels=None, form="pairs", images=64, whiten=0.0):
    ftm = FTM(SpectralTarget(match_levels(MAPS, MAPS, 1, form), standardise, channels, whiten), MAPS)
    scale = torch.tensor([1.0, 4.0, 0.5, 3.0, 2.0, 50.0, 1.0, 1.0])
    batch = [
        maps(images, *shape, seed=i, dtype=torch.float32) * scale[: shape[0], None, None] + i
        for i, shape in enumerate(MAPS)
    ]
    ftm.calibrate(ftm.raw(batch))
    return ftm, batch


@pytest.mark.parametrize("form", ["pairs", "amplitude", "log-amplitude", "area"])
def test_coefficient_standardisation_gives_mean_0_and_sd_1(form):
    ftm, batch = calibrated(form=form)
    for x in ftm(batch):
        assert x.mean(0).abs().max() < 1e-4
        torch.testing.assert_close(x.std(0, correction=0), torch.ones_like(x[0]), rtol=1e-3, atol=1e-3)


def test_channel_standardisation_keeps_the_ratio_of_a_channels_coefficients():
    ftm, batch = calibrated("channel")
    for x, raw in zip(ftm(batch), ftm.raw(batch), strict=True):
        spread, before = x.std(0, correction=0), raw.std(0, correction=0)
        torch.testing.assert_close(spread.square().mean(1), torch.ones(len(spread)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(spread / spread[:, :1], before / before[:, :1], rtol=1e-3, atol=1e-4)


def test_no_standardisation_leaves_the_coefficients_alone():
    ftm, batch = calibrated("none")
    for x, raw in zip(ftm(batch), ftm.raw(batch), strict=True):
        assert torch.equal(x, raw)


def test_a_dead_coefficient_stays_at_zero():
    ftm, batch = calibrated()
    batch[0][:, 1] = 7.0
    ftm.calibrate(ftm.raw(batch))
    assert ftm(batch)[0][:, 1].abs().max() < 0.1
    batch[0][:3, 1] = 8.0  # it wakes up: a large target, not one of thousands
    assert 1 < ftm(batch)[0][:, 1].abs().max() < 100


def test_pca_keeps_the_components_of_largest_variance():
    ftm, batch = calibrated(channels=2)
    whole = calibrated()[0](batch)
    for kept, x in zip(ftm(batch), whole, strict=True):
        rows = x.mT.flatten(0, 1).double()
        variances = torch.linalg.eigvalsh(rows.T @ rows / len(rows)).flip(0)[:2]
        found = kept.mT.flatten(0, 1).double()
        expected = variances / variances.mean()  # one number a level brings the mean square back to 1
        torch.testing.assert_close(found.square().mean(0), expected, rtol=1e-4, atol=1e-5)
    assert [tuple(x.shape[1:]) for x in ftm(batch)] == list(ftm_shapes(ftm.target, MAPS))


@pytest.mark.parametrize("channels", [None, 3])
def test_whitened_channels_have_one_spread_and_no_correlation(channels):
    ftm, batch = calibrated(channels=channels, whiten=1.0)
    for x in ftm(batch):
        rows = x.mT.flatten(0, 1).double()
        torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(x.shape[1]).double(), rtol=0, atol=1e-4)


def test_half_whitened_spreads_are_the_roots_of_those_that_are_not():
    (kept, *_), (half, *_) = (ftm(batch) for ftm, batch in (calibrated(channels=3, whiten=w) for w in (0.0, 0.5)))
    first, second = (x.square().mean((0, 2)) for x in (kept, half))
    torch.testing.assert_close(second / second[0], (first / first[0]).sqrt(), rtol=1e-4, atol=0)


def test_whitening_is_from_0_to_1():
    with pytest.raises(ValueError, match=r"whiten must be from 0 .* to 1 .*, got 1.5"):
        calibrated(whiten=1.5)


def test_ftm_survives_a_state_round_trip():
    ftm, batch = calibrated(channels=3)
    other = FTM(ftm.target, MAPS)
    other.load_state_dict(ftm.state_dict())
    assert other.calibrated
    for a, b in zip(ftm(batch), other(batch), strict=True):
        assert torch.equal(a, b)


def test_calibration_refuses_what_it_cannot_use():
    ftm = FTM(SpectralTarget((LevelPair(0, 0, (3, 3), "pairs"),)), MAPS)
    with pytest.raises(ValueError, match="at least 2 images"):
        ftm.calibrate(ftm.raw([maps(1, *MAPS[0], dtype=torch.float32)]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        ftm.calibrate(ftm.raw([maps(4, *MAPS[0], dtype=torch.float32) * float("nan")]))


@pytest.mark.parametrize("form", ["pairs", "amplitude", "log-amplitude"])
@pytest.mark.parametrize("standardise", ["none", "channel", "coefficient"])
def test_a_target_is_the_teachers_own_whatever_the_student(form, standardise):
    """What a coarse student is given is part of what a fine one is given, statistics and PCA included: it can be stored."""
    teacher = ((5, 9, 7), (6, 7, 9), (8, 5, 5))
    channels = 4 if form == "pairs" else None
    own = FTM(SpectralTarget(teacher_levels(teacher, 3, form), standardise, channels), teacher)
    batch = [maps(40, *shape, seed=i, dtype=torch.float32) + i for i, shape in enumerate(teacher)]
    own.calibrate(own.raw(batch))
    students = ((4, 7, 3), (4, 3, 5), (4, 1, 2))
    ftm = FTM(SpectralTarget(match_levels(students, teacher, 3, form), standardise, channels), teacher)
    ftm.calibrate(ftm.raw(batch))
    assert [level.size for level in ftm.target.levels] == [(7, 3), (3, 5), (1, 1)]
    for level, found, whole in zip(ftm.target.levels, ftm(batch), own(batch), strict=True):
        index = crop_indices(level.full_size, level.size, form)
        assert index is not None
        assert torch.equal(found, whole[..., index])
        # and they are the frequencies that the student's own representation will have
        frequencies = radial_frequencies(level.full_size, form)[index]
        assert torch.equal(frequencies, radial_frequencies(level.size, form))


def test_levels_with_few_channels_are_not_rotated():
    ftm, batch = calibrated(channels=6)
    whole = calibrated()[0](batch)
    assert ftm.reduced == [False, False, True]
    for found, expected in zip(ftm(batch)[:2], whole[:2], strict=True):
        assert torch.equal(found, expected)
