from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_engine import NaiveEngine, make_bundle
from naive_smooth import naive_smooth
from score_cases import scores_of

from models.calibration import KEPT_SHARE, CalibrationSpec, calibrate, recalibrate
from models.series import Series
from pipeline.bundle import POOLED, MemberSpec, SmootherSpec
from pipeline.errors import ConfigError, InputError, TooLittleHistory
from pipeline.values import Status

torch.set_num_threads(1)

SECOND = 1_000_000_000
SMOOTHER = SmootherSpec(memory=16, span_ns=400 * SECOND, ewma_span=5)
BUNDLE = make_bundle([MemberSpec("pca", 4)], smoother=SMOOTHER)
MIXING = np.random.default_rng(99).normal(size=(2, 5))


def series_of(asset, n=1200, seed=0, level=1.0, normal=None):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 2)) @ MIXING + 0.3 * level * random.normal(size=(n, 5))
    return Series(
        asset=asset,
        ts_ns=np.arange(n, dtype=np.int64) * SECOND,
        x=x.astype(np.float32),
        observed=np.ones((n, 5), np.bool_),
        continuity=np.zeros(n, np.uint8),
        normal=np.ones(n, np.bool_) if normal is None else normal,
    )


def of(bundle):
    return bundle.calibrations["cpu-float32"]


def errors_of(series, first):
    """Errors by the slow engine; NaN where a row does not count."""
    engine = NaiveEngine(BUNDLE)
    engine.allocate([series.asset])
    out = np.full(len(series), np.nan)
    for i in range(first - 3, len(series)):
        status, score, *_ = engine._push(0, series.x[i].astype(float), series.observed[i], series.continuity[i])
        if status == Status.CALIBRATED and series.normal[i - 3 : i + 1].all():
            out[i] = score
    return out[first:]


def test_an_assets_figures_are_those_of_its_held_out_errors_through_the_smoother():
    fleet = [series_of("a0"), series_of("a1", seed=1, level=3)]
    got = of(calibrate(BUNDLE, fleet, {"a0": 400, "a1": slice(300, 1100)}, CalibrationSpec(percentile=99)))
    assert got.assets == ("a0", "a1")
    assert (got.percentile, got.rows) == (99, 800 + 800)
    for k, (series, first, last) in enumerate([(fleet[0], 400, 1200), (fleet[1], 300, 1100)], start=1):
        errors = errors_of(series, first)[: last - first]
        median = np.median(errors)
        mad = 1.4826 * np.median(np.abs(errors - median))
        np.testing.assert_allclose((got.median[k], got.mad[k]), (median, mad), rtol=1e-4)
        recent = ((errors - median) / mad)[-400:]
        np.testing.assert_allclose(got.start[k], usual_of(recent), rtol=1e-3, atol=1e-3)
        scores = scores_of(0, series.ts_ns[first:last], errors, channels=5)
        smoothed, _ = naive_smooth(scores, np.full(len(errors), k), got, SMOOTHER)
        np.testing.assert_allclose(got.threshold[k], np.percentile(smoothed, 99), rtol=1e-3)


def usual_of(calibrated):
    admitted = calibrated[calibrated <= SMOOTHER.admit_z]
    return admitted[np.arange(SMOOTHER.memory) * len(admitted) // SMOOTHER.memory]


def test_row_zero_pools_all_errors_and_adds_a_margin():
    fleet = [series_of("a0"), series_of("a1", seed=1, level=3)]
    got = of(calibrate(BUNDLE, fleet, {"a0": 400, "a1": 400}))
    errors = np.concatenate([errors_of(series, 400) for series in fleet])
    median = np.median(errors)
    np.testing.assert_allclose(got.median[POOLED], median, rtol=1e-4)
    np.testing.assert_allclose(got.mad[POOLED], 1.4826 * np.median(np.abs(errors - median)), rtol=1e-4)
    smoothed = []
    for k, series in enumerate(fleet, start=1):
        scores = scores_of(0, series.ts_ns[400:], errors_of(series, 400), channels=5)
        smoothed.append(naive_smooth(scores, np.full(800, k), got, SMOOTHER)[0])
    np.testing.assert_allclose(got.threshold[POOLED], 4 / 3 * np.percentile(np.concatenate(smoothed), 99.5), rtol=1e-3)
    assert np.isfinite(got.start[POOLED]).all()
    assert set(got.start[POOLED]) <= set(got.start[1]) | set(got.start[2])


def test_the_order_of_series_and_the_other_assets_change_nothing():
    fleet = [series_of(f"a{i}", seed=i) for i in range(4)]
    held = {series.asset: 400 for series in fleet}
    want = of(calibrate(BUNDLE, fleet, held))
    again = of(calibrate(BUNDLE, fleet[::-1], held))
    fewer = of(calibrate(BUNDLE, fleet, {"a2": 400}))
    for name in ("median", "mad", "start", "threshold"):
        np.testing.assert_array_equal(getattr(again, name), getattr(want, name))
        np.testing.assert_array_equal(getattr(fewer, name)[1], getattr(want, name)[3])
    assert again.assets == want.assets
    assert fewer.assets == ("a2",)


def test_a_fault_that_is_not_marked_normal_moves_no_threshold():
    def with_fault(marked):
        series = series_of("a0", normal=np.arange(1200) // 100 != 7 if marked else None)
        series.x[700:800] *= 20
        return of(calibrate(BUNDLE, [series], {"a0": 400}))

    clean = of(calibrate(BUNDLE, [series_of("a0")], {"a0": 400}))
    assert with_fault(marked=False).threshold[1] > 10 * clean.threshold[1]
    assert with_fault(marked=True).rows == 800 - 103  # windows that reach into the fault do not count either
    np.testing.assert_allclose(with_fault(marked=True).threshold[1], clean.threshold[1], rtol=0.2)


def test_about_the_percentile_of_new_normal_frames_breach():
    fleet = [series_of(f"a{i}", n=3000, seed=i) for i in range(3)]
    got = of(calibrate(BUNDLE, fleet, {series.asset: 1000 for series in fleet}, CalibrationSpec(percentile=99)))
    breached = []
    for k in (1, 2, 3):
        new = series_of(f"a{k - 1}", n=1000, seed=100 + k)
        scores = scores_of(0, new.ts_ns[100:], errors_of(new, 100), channels=5)
        smoothed, _ = naive_smooth(scores, np.full(900, k), got, SMOOTHER)
        breached.append((smoothed > got.threshold[k]).mean())
    assert 0.001 < np.mean(breached) < 0.03


def test_an_asset_with_few_rows_has_its_own_median_and_the_larger_threshold():
    fleet = [series_of("a0"), series_of("a1", seed=1), series_of("a2", seed=2)]
    held = {"a0": 400, "a1": 1000, "a2": 1150}
    got = of(calibrate(BUNDLE, fleet, held))
    assert got.assets == ("a0", "a1")  # 50 rows are too few for a row of one's own
    own = of(calibrate(BUNDLE, fleet, held, CalibrationSpec(min_rows=200)))
    assert got.median[2] == own.median[2]
    assert got.threshold[2] == max(own.threshold[2], got.threshold[POOLED])
    assert got.rows == 800 + 200 + 50


def test_an_asset_with_fewer_errors_than_the_smoother_remembers_starts_with_those():
    bundle = replace(BUNDLE, smoother=replace(SMOOTHER, memory=256))
    got = of(calibrate(bundle, [series_of("a0")], {"a0": 1080}))
    assert np.isfinite(got.start[1]).sum() <= 120
    assert np.isfinite(got.start[1]).sum() >= 100
    assert np.isnan(got.start[1][120:]).all()


def test_an_asset_that_never_errs_still_has_a_spread():
    still = series_of("a0")
    still.x[:] = np.float32(1.5)
    got = of(calibrate(BUNDLE, [still], {"a0": 400}))
    assert (got.mad > 0).all()
    assert got.threshold[1] == 1.0
    beside = of(calibrate(BUNDLE, [still, series_of("a1")], {"a0": 400, "a1": 400}))
    np.testing.assert_allclose(beside.mad[1], 0.01 * beside.mad[POOLED], rtol=1e-6)


def test_other_profiles_and_everything_else_stay():
    first = calibrate(BUNDLE, [series_of("a0")], {"a0": 400})
    marked = replace(first, calibrations={"other": of(first)})
    again = calibrate(marked, [series_of("a0", seed=5)], {"a0": 400})
    assert again.calibrations["other"] is of(first)
    assert replace(again, calibrations={}) == replace(BUNDLE, calibrations={})


def test_recalibration_follows_new_rows_but_keeps_half_of_the_last_threshold():
    first = calibrate(BUNDLE, [series_of("a0"), series_of("a1", seed=1)], {"a0": 400, "a1": 400})
    high = replace(of(first), threshold=of(first).threshold * np.float32(10))
    bundle = replace(first, calibrations={"cpu-float32": high})
    got = of(recalibrate(bundle, [series_of("a0", seed=8), series_of("a1", seed=9)]))
    np.testing.assert_array_equal(got.threshold, KEPT_SHARE * high.threshold)
    got = of(recalibrate(first, [series_of("a0", seed=8, level=8), series_of("a1", seed=9, level=8)]))
    assert (got.median > 1.5 * of(first).median).all()


def test_recalibration_keeps_the_row_of_an_asset_without_new_rows():
    first = calibrate(BUNDLE, [series_of("a0"), series_of("a1", seed=1)], {"a0": 400, "a1": 400})
    got = of(recalibrate(first, [series_of("a1", seed=9), series_of("a2", seed=3)]))
    assert got.assets == ("a1", "a2", "a0")
    for name in ("median", "mad", "start", "threshold"):
        np.testing.assert_array_equal(getattr(got, name)[3], getattr(of(first), name)[1])


def test_recalibration_adds_a_profile_that_was_not_there():
    got = of(recalibrate(BUNDLE, [series_of("a0")]))
    assert got.assets == ("a0",)
    assert got.rows == 1197


def test_too_little_history_says_how_much_is_needed():
    with pytest.raises(TooLittleHistory, match="60 held-out normal windows of 4 rows, 100 needed"):
        calibrate(BUNDLE, [series_of("a0")], {"a0": slice(400, 460)})


def test_an_asset_that_comes_twice_is_refused():
    with pytest.raises(InputError, match="'a0' comes in two series"):
        calibrate(BUNDLE, [series_of("a0"), series_of("a0", seed=1)], {"a0": 400})


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="least_rows"):
        CalibrationSpec(least_rows=700)
    with pytest.raises(ConfigError, match="provisional_margin"):
        CalibrationSpec(provisional_margin=0.5)
