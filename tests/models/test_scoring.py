from dataclasses import replace

import fold_fleet as fleet
import numpy as np
import pytest

from models.scoring import ratios
from models.series import Series
from pipeline.errors import BundleError, ShapeError
from pipeline.values import NS_PER_S, Status


def series(asset, rows=160, seed=2):
    return Series(
        asset=asset,
        ts_ns=(fleet.START_S + np.arange(rows)) * NS_PER_S,
        x=fleet.readings(asset, rows, seed=seed),
        observed=np.ones((rows, 4), np.bool_),
        continuity=np.array([2] + [0] * (rows - 1), np.uint8),
        normal=np.ones(rows, np.bool_),
    )


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in ("score", "ratio", "own_ratio"))


def test_ratios_are_those_of_the_live_chain():
    chain = fleet.chain("ensemble", mode="none")
    chain.spec = replace(chain.spec, gate=replace(chain.spec.gate, stuck_frames=(0,) * 4, missing_frames=0))
    chain._front = chain.spec
    messages = [line for asset, t, line in fleet.lines() if asset == "p0" and t != 50]
    output = chain.push([fleet.polled(messages)])
    rows = output.rows[0]
    live = output.verdicts[0]
    own = Series("p0", rows.ts_ns, rows.x, rows.observed, live.scores.continuity, np.ones(len(rows), np.bool_))

    (scored,) = ratios(fleet.bundle("ensemble"), [own])

    assert np.array_equal(scored.ratio, live.ratio, equal_nan=True)
    assert np.array_equal(scored.own_ratio, live.own_ratio, equal_nan=True)
    assert np.isfinite(live.ratio).sum() > 100


def test_company_and_slices_change_no_bit(monkeypatch):
    bundle, all_of_them = fleet.bundle("ensemble"), [series(a) for a in fleet.ASSETS]
    alone = [ratios(bundle, [one])[0] for one in all_of_them]
    monkeypatch.setattr("models.scoring._PUSHED", 21)
    assert all(same(a, b) for a, b in zip(alone, ratios(bundle, all_of_them), strict=True))


def test_series_of_other_lengths_come_back_in_their_own_lengths():
    short, long = series("p0", 30), series("p1", 90)
    scored = ratios(fleet.bundle("pca"), [short, long])
    assert [len(s.ratio) for s in scored] == [30, 90]
    assert np.isfinite(scored[0].ratio).sum() == 30 - 7


def test_one_asset_may_come_twice_and_each_series_remembers_for_itself():
    first, second = series("p0", seed=2), series("p0", seed=3)
    together = ratios(fleet.bundle("pca"), [first, second])
    assert same(together[0], ratios(fleet.bundle("pca"), [first])[0])
    assert same(together[1], ratios(fleet.bundle("pca"), [second])[0])


def test_an_asset_without_a_calibration_of_its_own_is_provisional():
    known, unknown = ratios(fleet.bundle("pca"), [series("p0"), series("p2")])
    assert known.status[-1] == Status.CALIBRATED
    assert unknown.status[-1] == Status.PROVISIONAL
    assert unknown.status[0] == Status.WARMING


def test_other_readings_are_scored_in_place_of_the_own():
    one = series("p0")
    hurt = one.x.copy()
    hurt[100:120, 1] += 3
    (scored,) = ratios(fleet.bundle("pca"), [one], x=[hurt])
    (clean,) = ratios(fleet.bundle("pca"), [one])
    assert np.nanmax(scored.ratio[100:120]) > 1 > np.nanmax(clean.ratio[:100])
    assert np.array_equal(scored.ratio[:100], clean.ratio[:100], equal_nan=True)


def test_readings_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="p0"):
        ratios(fleet.bundle("pca"), [series("p0")], x=[np.zeros((5, 4), np.float32)])


def test_a_bundle_without_calibration_is_refused():
    with pytest.raises(BundleError, match="no calibration"):
        ratios(replace(fleet.bundle("pca"), calibrations={}), [series("p0")])
