from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_engine import make_bundle

from models import missing_channels as measured
from models.calibration import calibrate, recalibrate
from models.engine import open_engine
from models.held_out import held_out
from models.series import Series
from pipeline.bundle import POOLED, MemberSpec, SmootherSpec

torch.set_num_threads(1)

SECOND = 1_000_000_000
CHANNELS = 5
SMOOTHER = SmootherSpec(memory=16, span_ns=400 * SECOND, ewma_span=5)
BUNDLE = make_bundle([MemberSpec("pca", 4)], smoother=SMOOTHER)
MIXING = np.random.default_rng(99).normal(size=(2, CHANNELS))


def series_of(asset, n=1060, seed=0, lacks=()):
    random = np.random.default_rng(seed)
    x = (random.normal(size=(n, 2)) @ MIXING + 0.3 * random.normal(size=(n, CHANNELS))).astype(np.float32)
    observed = np.ones((n, CHANNELS), np.bool_)
    observed[:, list(lacks)] = False
    return Series(
        asset=asset,
        ts_ns=np.arange(n, dtype=np.int64) * SECOND,
        x=np.where(observed, x, np.float32(0)),
        observed=observed,
        continuity=np.zeros(n, np.uint8),
        normal=np.ones(n, np.bool_),
    )


def of(bundle):
    return bundle.calibrations["cpu-float32"]


def sample_of(fleet, most, bundle=BUNDLE):
    made = calibrate(bundle, fleet, {s.asset: 100 for s in fleet})
    engine = open_engine(made, "cpu")
    held = held_out(engine, fleet, {s.asset: 100 for s in fleet})
    rows = [of(made).row_of()[h.asset] for h in held]
    return engine, held, measured._sampled(held, rows, of(made), made, most)


def test_a_hidden_channel_gives_the_errors_that_its_loss_would_have_given():
    fleet = [series_of("a0"), series_of("a1", seed=1)]
    engine, held, sample = sample_of(fleet, 640)
    hidden = measured._hidden_errors(engine, {s.asset: s for s in fleet}, sample, CHANNELS)
    for c in range(CHANNELS):
        lost = [replace(s, x=np.where(np.arange(CHANNELS) == c, np.float32(0), s.x)) for s in fleet]
        for s in lost:
            s.observed[:, c] = False
        want = held_out(engine, lost, {s.asset: 100 for s in fleet})
        picked = [np.isin(h.row, part.row) for h, part in zip(held, sample.held, strict=True)]
        np.testing.assert_array_equal(
            hidden[c], np.concatenate([h.error[p] for h, p in zip(want, picked, strict=True)])
        )
        for s in fleet:
            s.observed[:, c] = True


def test_a_sample_stands_for_all_rows_and_has_the_highest():
    fleet = [series_of("a0"), series_of("a1", seed=1)]
    fleet[1].x[500:520, 2] += 9  # an outlier that no even sample of so few rows need hit
    *_, everything = sample_of(fleet, 10_000)
    assert (everything.weight == 1).all()
    assert len(everything.weight) == 1920
    *_, some = sample_of(fleet, 640)
    assert len(some.weight) <= 640
    np.testing.assert_allclose(some.weight.sum(), 1920, rtol=1e-9)
    assert set(range(500, 520)) <= set(some.held[1].row.tolist())


def test_the_same_rows_are_measured_every_time():
    fleet = [series_of("a0"), series_of("a1", seed=1)]
    held = {s.asset: 100 for s in fleet}
    one, other = (of(calibrate(BUNDLE, order, held)) for order in (fleet, fleet[::-1]))
    np.testing.assert_array_equal(one.missing_shift, other.missing_shift)
    np.testing.assert_array_equal(one.missing_gain, other.missing_gain)


@pytest.mark.parametrize(("scale", "power"), [(3.0, 1.0), (0.5, 1.25), (1.0, 0.8)])
def test_errors_that_hiding_scales_and_stretches_are_put_back(scale, power):
    fleet = [series_of("a0"), series_of("a1", seed=1)]
    made = calibrate(BUNDLE, fleet, {s.asset: 100 for s in fleet})
    bare = replace(of(made), missing_shift=np.empty((0, 0), np.float32), missing_gain=np.empty((0, 0), np.float32))
    *_, sample = sample_of(fleet, 10_000)
    usual = np.repeat(bare.median[list(sample.cal_row)], [len(h.error) for h in sample.held])
    hidden = (usual * scale * (sample.joined("error") / usual) ** power)[None].astype(np.float32)
    shift, gain = measured._measured(sample, hidden, bare, SMOOTHER)
    # usual is each asset's median, the sample's median of (error / usual) is near 1 and not 1
    np.testing.assert_allclose(shift, np.log(scale), atol=0.02)
    np.testing.assert_allclose(gain, 1 / power, rtol=0.02)


def test_a_channel_that_an_asset_never_had_is_not_corrected_for():
    fleet = [series_of("a0"), series_of("a1", seed=1, lacks=[2])]
    got = of(calibrate(BUNDLE, fleet, {s.asset: 100 for s in fleet}))
    assert (got.missing_shift[2, 2], got.missing_gain[2, 2]) == (0, 1)
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(got.missing_shift[2, others], got.missing_shift[1, others])
    np.testing.assert_array_equal(got.missing_shift[POOLED], got.missing_shift[1])
    assert got.missing_shift[1, 2] != 0


def test_models_have_figures_of_their_own_and_row_zero_those_of_unknown_assets():
    two = make_bundle([MemberSpec("pca", 4)], groups=2, smoother=SMOOTHER)
    fleet = [series_of("a0"), series_of("a1", seed=1), series_of("b0", seed=2)]
    groups = {"a0": 0, "a1": 0, "b0": 1}
    held = {s.asset: 100 for s in fleet}
    known = of(calibrate(replace(two, asset_group=groups, default_group=1), fleet, held))
    np.testing.assert_array_equal(known.missing_gain[1], known.missing_gain[2])
    assert (known.missing_gain[1] != known.missing_gain[3]).any()
    np.testing.assert_array_equal(known.missing_gain[POOLED], known.missing_gain[3])
    unknown = of(calibrate(replace(two, asset_group=groups, default_group=None), fleet, held))
    mean = (known.missing_shift[1] + known.missing_shift[3]) / 2
    np.testing.assert_allclose(unknown.missing_shift[POOLED], mean, rtol=1e-5)


def test_held_out_rows_with_a_lost_channel_do_not_move_the_threshold_much():
    whole, holed = series_of("a0", n=3000), series_of("a0", n=3000)
    holed.observed[1000:1800, 1] = False
    holed.x[1000:1800, 1] = 0
    want, got = (of(calibrate(BUNDLE, [s], {"a0": 100})) for s in (whole, holed))
    np.testing.assert_allclose(got.threshold[1], want.threshold[1], rtol=0.1)


def test_recalibration_measures_again_and_keeps_what_it_has_no_rows_for():
    first = calibrate(BUNDLE, [series_of("a0"), series_of("a1", seed=1)], {"a0": 100, "a1": 100})
    got = of(recalibrate(first, [series_of("a1", seed=9)]))
    assert got.assets == ("a1", "a0")
    assert (got.missing_shift[1] != of(first).missing_shift[2]).any()
    np.testing.assert_array_equal(got.missing_shift[2], of(first).missing_shift[1])
    np.testing.assert_array_equal(got.missing_gain[2], of(first).missing_gain[1])
    nothing = np.empty((0, 0), np.float32)
    old = replace(of(first), missing_shift=nothing, missing_gain=nothing)
    got = of(recalibrate(replace(first, calibrations={"cpu-float32": old}), [series_of("a1", seed=9)]))
    np.testing.assert_array_equal(got.missing_shift[2], got.missing_shift[POOLED])


def test_the_sample_grows_with_neither_fleet_nor_channels():
    assert measured._rows_for(1, 16) == measured._MOST_ROWS
    assert measured._rows_for(10, 16) * 10 * 16 <= measured._MOST_SCORES
    assert measured._rows_for(1000, 64) == measured._LEAST_ROWS


def test_a_weighted_quantile_is_that_of_repeated_values():
    random = np.random.default_rng(2)
    for _ in range(50):
        values, weight = random.normal(size=20), random.integers(0, 4, 20).astype(float)
        level = float(random.uniform(0.01, 0.99))
        want = np.quantile(np.repeat(values, weight.astype(int)), level, method="inverted_cdf")
        assert measured._quantile(values, weight, level) == want
