from dataclasses import replace

import fold_fleet as fleet
import numpy as np
import pytest

from models.calibration import CalibrationSpec, calibrate
from models.judging import FAULT_ROWS, Stretch, flips, loses_to_pca, outcome, pca_alone, trial
from models.profiles import FALLBACK, Profile
from models.promotion import GateLimits, Outcome, Suite
from models.series import Series
from pipeline.errors import InputError
from pipeline.values import NS_PER_S


def series(asset, rows=1500, seed=2, **changes):
    made = Series(
        asset=asset,
        ts_ns=(fleet.START_S + np.arange(rows)) * NS_PER_S,
        x=fleet.readings(asset, rows, seed=seed),
        observed=np.ones((rows, 4), np.bool_),
        continuity=np.array([2] + [0] * (rows - 1), np.uint8),
        normal=np.ones(rows, np.bool_),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def on():
    return trial([series("p0"), series("p1")], {"p0": slice(300, 1500), "p1": slice(300, 1500)}, 8, seed=3)


def test_only_held_out_rows_with_a_normal_window_count():
    normal = np.ones(1500, np.bool_)
    normal[700] = False
    made = trial([series("p0", normal=normal)], {"p0": slice(300, 1500)}, 8, seed=3)
    counted = made.held[0].ts_ns[made.counts[0]] // NS_PER_S - fleet.START_S
    assert set(counted.tolist()) == {t for t in range(300, 1500) if not 700 <= t < 708}


def test_faults_lie_in_held_out_rows_and_touch_nothing_else(on):
    for one, x, at, counts in zip(on.held, on.faulted, on.intervals, on.counts, strict=True):
        inside = np.zeros(len(one), np.bool_)
        for start, stop in at:
            assert stop - start == FAULT_ROWS
            inside[start:stop] = True
        assert counts[inside].all()
        assert np.array_equal(x[~inside], one.x[~inside])
        assert (x[inside] != one.x[inside]).any()
    assert on.faults == 2 * 5 * 2  # 1,200 rows hold ten of 60 rows with 60 before each: two of each kind


def test_the_same_seed_gives_every_contestant_the_same_faults(on):
    again = trial([series("p1"), series("p0")], {"p0": slice(300, 1500), "p1": slice(300, 1500)}, 8, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(on.faulted, again.faulted, strict=True))
    other = trial([series("p0"), series("p1")], {"p0": slice(300, 1500), "p1": slice(300, 1500)}, 8, seed=4)
    assert not np.array_equal(on.faulted[0], other.faulted[0])


def test_assets_with_little_room_share_the_kinds_of_faults():
    held = {f"p{i}": slice(300, 430) for i in range(3)}
    made = trial([series(name) for name in held], held, 8, seed=3)
    assert [len(at) for at in made.intervals] == [1, 1, 1]


def test_a_channel_that_never_moves_is_not_hurt():
    x = fleet.readings("p0", 1500, seed=2)
    x[:, :3] = 1.0
    made = trial([series("p0", x=x)], {"p0": slice(300, 1500)}, 8, seed=3)
    assert np.array_equal(made.faulted[0][:, :3], made.held[0].x[:, :3])
    assert made.faults > 0


def test_an_outcome_has_ratios_of_the_same_rows_for_every_bundle(on):
    ensemble, pca = outcome(fleet.bundle("ensemble"), on, name="A"), outcome(fleet.bundle("pca"), on)
    assert ensemble.model_id == "A"
    assert ensemble.normal.shape == pca.normal.shape
    assert ensemble.scored == sum(int(c.sum()) for c in on.counts)
    assert ensemble.far < 0.2
    assert ensemble.injected.recall > 0.5
    assert set(ensemble.thresholds) == {"p0", "p1"}
    assert ensemble.confirmed is None


def test_confirmed_faults_are_scored_where_they_are():
    hurt = fleet.readings("p0", 1500, seed=2)
    hurt[600:640, 1] += 3
    at = fleet.START_S * NS_PER_S
    stretches = [
        Stretch("p0", at + 600 * NS_PER_S, at + 640 * NS_PER_S),
        Stretch("p0", at + 900 * NS_PER_S, at + 905 * NS_PER_S),
        Stretch("p0", at + 9000 * NS_PER_S, None),  # after the last row
        Stretch("nobody", at, None),
    ]
    made = trial([series("p0", x=hurt)], {"p0": slice(1000, 1500)}, 8, seed=3, confirmed=stretches)
    suite = outcome(fleet.bundle("pca"), made).confirmed
    assert [stop - start for start, stop in suite.intervals.tolist()] == [40, 5]
    fault, quiet = (suite.ratio[start:stop] for start, stop in suite.intervals)
    assert np.nanmax(fault) > 3 > np.nanmax(quiet)
    assert suite.recall >= 0.5


def test_nothing_held_out_is_an_error():
    with pytest.raises(InputError, match="held-out"):
        outcome(fleet.bundle("pca"), trial([series("p0")], {}, 8, seed=3))


def test_pca_alone_scores_as_a_bundle_fitted_with_pca_only():
    alone = pca_alone(fleet.bundle("ensemble"))
    assert [m.kind for m in alone.members] == ["pca"]
    only = fleet.bundle("pca")
    assert alone.tensors.keys() == only.tensors.keys()
    assert all(np.array_equal(alone.tensors[k], only.tensors[k]) for k in alone.tensors)
    assert alone.calibrations == {}
    again = calibrate(alone, [series("p0")], {"p0": 300}, CalibrationSpec(min_rows=100))
    assert outcome(again, trial([series("p0")], {"p0": slice(300, 1500)}, 8, seed=3)).scored > 0


def test_a_bundle_without_pca_has_no_pca_alone():
    assert pca_alone(fleet.bundle("dense")) is None


def made(far, recall, name):
    normal = np.zeros(1000, np.float32)
    normal[: round(1000 * far)] = 2
    ratio = np.zeros(20, np.float32)
    ratio[: round(20 * recall)] = 2
    at = np.arange(20)
    return Outcome(name, normal, Suite(ratio, np.stack([at, at + 1], 1)), {"p0": 1.0})


def test_an_ensemble_without_more_false_alarms_is_served():
    assert loses_to_pca(made(0.02, 0.9, "e"), made(0.02, 0.9, "p"), GateLimits()) == ""
    assert loses_to_pca(made(0.008, 0.7, "e"), made(0.001, 0.9, "p"), GateLimits()) == ""  # within the budget


def test_an_ensemble_with_more_false_alarms_gives_way_to_pca():
    assert "5.00%" in loses_to_pca(made(0.05, 0.9, "e"), made(0.01, 0.9, "p"), GateLimits())


def test_faults_may_begin_before_the_rows_whose_false_alarms_count():
    made = trial([series("p0")], {"p0": slice(1000, 1500)}, 8, seed=3, faults_from={"p0": 300})
    counted = made.held[0].ts_ns[made.counts[0]] // NS_PER_S - fleet.START_S
    assert (counted.min(), counted.max()) == (1000, 1499)
    assert made.faults == 10
    assert made.intervals[0].min() >= np.searchsorted(made.held[0].ts_ns, (fleet.START_S + 300) * NS_PER_S)


def test_flips_count_the_windows_that_are_on_another_side_of_the_threshold_than_in_float32(on):
    int8 = Profile("cpu", "int8")
    held = {"p0": slice(300, 1500), "p1": slice(300, 1500)}
    bundle = fleet.bundle("dense")
    for profile in (FALLBACK, int8):
        bundle = calibrate(bundle, [series("p0"), series("p1")], held, CalibrationSpec(min_rows=100), profile)
    assert flips(bundle, on, [FALLBACK]) == {}
    usual = flips(bundle, on, [FALLBACK, int8])["cpu-int8"]
    assert 0 <= usual < 0.02
    own = bundle.calibrations["cpu-int8"]
    high = replace(own, threshold=np.full_like(own.threshold, 1e9))
    normal = outcome(bundle, on).normal
    turned = flips(replace(bundle, calibrations={**bundle.calibrations, "cpu-int8": high}), on, [FALLBACK, int8])
    assert turned["cpu-int8"] == pytest.approx((normal > 1).sum() / np.isfinite(normal).sum())
    assert turned["cpu-int8"] > usual
