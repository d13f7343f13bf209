import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from models.scaling import (
    check_soft_clip,
    fit_scale,
    fleet_spread,
    scale,
    scale_scalar,
    soft_clip_scalar,
    soft_unclip_scalar,
    unscale_scalar,
)
from pipeline.errors import ConfigError, ShapeError

RNG = np.random.default_rng(5)
soft_clip, soft_unclip, unscale = (
    np.vectorize(one, otypes=[np.float32]) for one in (soft_clip_scalar, soft_unclip_scalar, unscale_scalar)
)


def all_seen(x):
    return np.ones(x.shape, np.bool_)


def column(*values):
    return np.array(values, np.float32)[:, None]


def test_standard_scaling_takes_mean_and_deviation_of_what_was_observed():
    x = RNG.normal(7, 3, (500, 2)).astype(np.float32)
    observed = RNG.random(x.shape) > 0.3
    loc, spread = fit_scale(np.where(observed, x, np.float32(0)), observed)
    for c in range(2):
        seen = x[observed[:, c], c].astype(np.float64)
        assert loc[c] == np.float32(seen.mean())
        assert spread[c] == np.float32(seen.std())


def test_robust_scaling_takes_median_and_mad():
    x = column(1, 2, 3, 4, 100)
    loc, spread = fit_scale(x, all_seen(x), "robust")
    assert loc[0] == 3
    assert spread[0] == np.float32(1.4826)


def test_robust_scaling_of_a_channel_with_no_mad_takes_its_deviation():
    x = column(*[0] * 9, 1)
    _, spread = fit_scale(x, all_seen(x), "robust")
    assert spread[0] == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["standard", "robust"])
@pytest.mark.parametrize(
    ("level", "spread", "step"),
    [
        (101_325, 50, 0.0),  # a barometer in Pa
        (101_325, 50, 10.0),
        (300, 0.2, 0.0),  # a tank in K
        (300, 0.2, 0.1),
        (1e6, 2, 0.0),  # 32 steps of float32
        (0, 2e-6, 0.0),  # vibration in m
        (-4e-4, 1e-5, 1e-6),
        (50, 0.04, 0.0),  # mains, in Hz
    ],
)
def test_a_channel_that_moves_is_scaled_by_how_it_moves_whatever_its_level(kind, level, spread, step):
    x = np.random.default_rng(8).normal(level, spread, (4000, 1))
    x = (np.round(x / step) * step if step else x).astype(np.float32)
    loc, scale = fit_scale(x, all_seen(x), kind)
    assert loc[0] == pytest.approx(level, abs=0.1 * spread + step / 2)
    assert scale[0] == pytest.approx(spread, rel=0.6 if step else 0.1)


@settings(deadline=None, max_examples=50)
@given(
    exponent=st.integers(-30, 30),
    kind=st.sampled_from(["standard", "robust"]),
    rare=st.floats(0, 0.6),
    level=st.sampled_from([0, 1, -300, 101_325]),
)
def test_the_unit_of_a_channel_makes_no_difference(exponent, kind, rare, level):
    g = np.random.default_rng(4)
    x = (level + np.where(g.random((300, 1)) < rare, g.integers(1, 9, (300, 1)), 0)).astype(np.float32)
    if x.std() == 0:
        x[0] += 1
    loc, scale = fit_scale(x, all_seen(x), kind)
    other_loc, other_scale = fit_scale(np.ldexp(x, exponent), all_seen(x), kind)
    assert (other_loc[0], other_scale[0]) == (np.ldexp(loc[0], exponent), np.ldexp(scale[0], exponent))


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_a_channel_at_rest_takes_the_scale_of_the_fleet(kind):
    moves = np.random.default_rng(3).normal(101_325, 50, (2000, 3))
    x = (101_325 + (moves - 101_325) * [1, 0.5, 0.001]).astype(np.float32)
    _, alone = fit_scale(x, all_seen(x), kind)
    _, spread = fit_scale(x, all_seen(x), kind, np.full(3, 50, np.float32))
    np.testing.assert_array_equal(spread[:2], alone[:2])
    assert alone[2] == pytest.approx(0.05, rel=0.2)
    assert spread[2] == 50


def test_how_the_fleet_moves_is_what_most_assets_do_where_they_move_at_all():
    spreads = np.array([[1, 0, 0], [2, 0, 0], [3, 0, 0.5], [1e6, 4, 0]], np.float32)
    np.testing.assert_array_equal(fleet_spread(list(spreads)), np.array([2.5, 4, 0.5], np.float32))
    assert (fleet_spread([np.zeros(2, np.float32)] * 3) == 0).all()


def test_a_channel_that_never_moved_on_an_asset_is_judged_by_how_it_moves_on_others():
    x = column(5, 5, 5)
    loc, spread = fit_scale(x, all_seen(x), fleet=np.array([0.3], np.float32))
    assert (loc[0], spread[0]) == (5, np.float32(0.3))


@pytest.mark.parametrize("kind", ["standard", "robust"])
@pytest.mark.parametrize("level", [0.0, 5.0, -300.0, 101_325.0, 1e9, 1e30])
def test_a_channel_that_moves_by_its_last_digit_only_is_not_stretched(level, kind):
    x = np.full((1000, 1), level, np.float32)
    moving = np.random.default_rng(5).random(1000) < 0.5
    x[moving] = np.nextafter(x[moving], np.float32(np.inf))
    loc, spread = fit_scale(x, all_seen(x), kind)
    assert spread[0] >= 1
    assert np.abs(scale(x, all_seen(x), loc, spread, 3.0)).max() <= 0.1


def test_a_channel_that_never_moves_anywhere_keeps_unit_scale():
    x = column(5, 5, 5)
    loc, spread = fit_scale(x, all_seen(x))
    assert (loc[0], spread[0]) == (5, 1)


def test_a_channel_that_was_never_observed_is_left_where_it_is():
    loc, spread = fit_scale(np.zeros((9, 1), np.float32), np.zeros((9, 1), np.bool_))
    assert (loc[0], spread[0]) == (0, 1)


def test_what_is_not_observed_does_not_move_the_fit():
    x = RNG.normal(size=(50, 1)).astype(np.float32)
    observed = all_seen(x)
    observed[10:20] = False
    other = x.copy()
    other[10:20] = 1e9
    np.testing.assert_array_equal(fit_scale(x, observed), fit_scale(other, observed))


def test_the_clip_is_linear_to_the_limit_and_logarithmic_beyond():
    z = np.array([-300, -3, -1.5, 0, 3, 3 * math.e, 30], np.float32)
    expected = [-3 * (1 + math.log(100)), -3, -1.5, 0, 3, 6, 3 * (1 + math.log(10))]
    np.testing.assert_allclose(soft_clip(z, 3.0), expected, rtol=1e-6)


@settings(deadline=None, max_examples=200)
@given(z=st.floats(-1e6, 1e6, width=32), limit=st.sampled_from([0.5, 1.0, 3.0, 10.0]))
def test_clipping_can_be_undone(z, limit):
    there = soft_clip(np.array([z], np.float32), limit)
    back = soft_unclip(there, limit)
    # one float32 rounding of v moves exp(v / limit) by |v| / limit roundings
    assert back[0] == pytest.approx(z, rel=6e-8 * (2 + abs(float(there[0])) / limit), abs=1e-37)


def test_clipping_keeps_the_order_of_values():
    z = np.sort(np.concatenate([np.linspace(-50, 50, 5001), np.float32(3) + np.arange(9) * 2.4e-7])).astype(np.float32)
    assert np.all(np.diff(soft_clip(z, 3.0)) >= 0)


def test_scaled_readings_come_back_in_input_units():
    x = (RNG.normal(size=(200, 3)) * [1e-3, 1, 1e5] + [0, -50, 1e6]).astype(np.float32)
    x[7] *= 100
    loc, spread = fit_scale(x, all_seen(x))
    np.testing.assert_allclose(unscale(scale(x, all_seen(x), loc, spread, 3.0), loc, spread, 3.0), x, rtol=1e-5)


def test_a_reading_that_was_not_observed_scales_to_zero():
    x = np.full((2, 2), 9, np.float32)
    observed = np.array([[True, False], [False, True]])
    scaled = scale(x, observed, np.zeros(2, np.float32), np.ones(2, np.float32), 100.0)
    np.testing.assert_array_equal(scaled, [[9, 0], [0, 9]])


def test_the_largest_reading_that_fits_does_not_overflow():
    largest = np.finfo(np.float32).max
    x = column(largest, -largest)
    loc, spread = np.array([-largest], np.float32), np.array([1e-3], np.float32)
    scaled = scale(x, all_seen(x), loc, spread, 3.0)
    assert np.isfinite(scaled).all()
    assert np.isfinite(unscale(np.float32(2) * scaled, loc, spread, 3.0)).all()


def test_a_kernel_that_scales_reading_by_reading_gets_the_same_bits():
    @njit
    def one_by_one(x, loc, spread, limit, out):
        for i in range(x.shape[0]):
            for c in range(x.shape[1]):
                out[i, c] = scale_scalar(x[i, c], loc[c], spread[c], limit)

    x = (RNG.standard_cauchy(size=(4000, 5)) * 10).astype(np.float32)
    loc, spread = fit_scale(x, all_seen(x), "robust")
    out = np.empty_like(x)
    one_by_one(x, loc, spread, 3.0, out)
    np.testing.assert_array_equal(out, scale(x, all_seen(x), loc, spread, 3.0))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_a_limit_that_is_no_positive_number_is_refused(limit):
    with pytest.raises(ConfigError, match="soft_clip"):
        check_soft_clip(limit)


def test_an_unknown_kind_of_scaler_is_refused():
    with pytest.raises(ConfigError, match="'standard' or 'robust'"):
        fit_scale(np.zeros((1, 1), np.float32), np.ones((1, 1), np.bool_), "minmax")


def test_shapes_that_do_not_belong_together_are_refused():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ShapeError):
        fit_scale(x, np.ones((4, 2), np.bool_))
    with pytest.raises(ShapeError):
        scale(x, all_seen(x), np.zeros(2, np.float32), np.ones(2, np.float32), 3.0)
    with pytest.raises(ShapeError):
        scale(x, all_seen(x), np.zeros(3, np.float32), np.ones(2, np.float32), 3.0)
