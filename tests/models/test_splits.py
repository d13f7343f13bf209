from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.series import Series, window_ends
from models.splits import Split, fit_part, holdout, split, to_judge
from pipeline.errors import ConfigError, LeakageError, TooLittleHistory


def series_of(n: int, asset: str = "m01", normal=None, continuity=None) -> Series:
    return Series(
        asset=asset,
        ts_ns=np.arange(n, dtype=np.int64) * 60_000_000_000,
        x=np.arange(n, dtype=np.float32)[:, None],
        observed=np.ones((n, 1), np.bool_),
        continuity=np.zeros(n, np.uint8) if continuity is None else np.asarray(continuity, np.uint8),
        normal=np.ones(n, np.bool_) if normal is None else np.asarray(normal, np.bool_),
    )


def rows_in_windows(series: Series, rows: slice, window: int) -> set[int]:
    """Every row that any normal window which ends in `rows` looks at, one window after the other."""
    ends = [e for e in window_ends(series, window).tolist() if rows.start <= e < rows.stop]
    return {row for end in ends for row in range(end - window + 1, end + 1)}


@given(
    normal=st.lists(st.sampled_from([True] * 9 + [False]), min_size=60, max_size=200),
    breaks=st.lists(st.integers(0, 199), max_size=3),
    window=st.integers(1, 9),
    holdout_share=st.sampled_from([0.1, 0.2, 0.5]),
    test_share=st.sampled_from([0.0, 0.2]),
)
@settings(deadline=None, max_examples=80)
def test_no_row_is_in_windows_of_two_parts_and_parts_follow_in_time(normal, breaks, window, holdout_share, test_share):
    continuity = np.zeros(len(normal), np.uint8)
    continuity[[b for b in breaks if b < len(normal)]] = 1
    series = series_of(len(normal), normal=normal, continuity=continuity)
    (one,) = split([series], window, holdout_share, test_share, min_windows=0)
    fit, calibration, test = (rows_in_windows(series, p, window) for p in (one.fit, one.calibration, one.test))
    assert not fit & calibration
    assert not calibration & test
    assert not fit & test
    assert max(fit, default=-1) < min(calibration, default=10**9)
    assert max(calibration, default=-1) < min(test, default=10**9)
    ends = window_ends(series, window)
    for part, count in ((one.fit, one.fit_windows), (one.calibration, one.calibration_windows)):
        assert count == np.count_nonzero((ends >= part.start) & (ends < part.stop))


def test_the_first_eighty_percent_fit_and_the_rest_calibrates_after_an_embargo_of_one_window():
    (one,) = split([series_of(1009)], window=10, min_windows=100)
    assert (one.fit, one.calibration, one.test) == (slice(0, 809), slice(819, 1009), slice(1009, 1009))
    assert (one.fit_windows, one.calibration_windows, one.test_windows) == (800, 190, 0)
    assert one.calibration.start - one.fit.stop == 10
    assert holdout([one]) == {"m01": slice(819, 1009)}
    assert to_judge([one]) == {}


def test_a_test_part_is_the_newest_and_has_its_embargo_too():
    (one,) = split([series_of(1009)], window=10, holdout_share=0.2, test_share=0.2, min_windows=100)
    assert one.fit.stop == 609
    assert one.calibration == slice(619, 809)
    assert one.test == slice(819, 1009)
    assert to_judge([one]) == {"m01": slice(819, 1009)}


def test_the_share_is_of_normal_windows_and_not_of_rows():
    normal = np.ones(2000, np.bool_)
    normal[1000:] = False
    (one,) = split([series_of(2000, normal=normal)], window=1, min_windows=100)
    assert one.fit.stop == 800
    assert one.calibration == slice(801, 1000)


def test_the_fitted_rows_are_cut_before_the_held_out_ones():
    series = series_of(1009)
    (fitted,) = fit_part([series], split([series], window=10, min_windows=100))
    assert len(fitted) == 809
    assert fitted.asset == "m01"
    assert fitted.x[-1, 0] == 808


def test_an_asset_too_short_to_cut_is_fitted_on_and_never_held_out():
    splits = split([series_of(2000, "long"), series_of(12, "short")], window=10)
    assert splits[1].fit == slice(0, 12)
    assert splits[1].pooled
    assert holdout(splits).keys() == {"long"}


def test_an_asset_without_a_normal_window_is_left_out():
    series = [series_of(2000, "long"), series_of(9, "empty")]
    assert [s.asset for s in fit_part(series, split(series, window=10))] == ["long"]


def test_short_assets_are_cut_and_count_in_the_pooled_figures_only():
    series = [series_of(400, f"rig{i}") for i in range(10)] + [series_of(600, "rig10")]
    splits = split(series, window=16)
    assert [s.pooled for s in splits] == [True] * 10 + [False]
    assert all(s.calibration_windows > 0 for s in splits)


def test_too_little_history_says_what_there_is_and_what_is_needed():
    with pytest.raises(
        TooLittleHistory, match=r"28 normal windows of 32 rows in the calibration part, 200 needed"
    ) as e:
        split([series_of(331)], window=32)
    assert (e.value.have, e.value.need) == (28, 200)
    with pytest.raises(TooLittleHistory, match="0 normal windows of 32 rows in the fit part"):
        split([series_of(10)], window=32)
    with pytest.raises(TooLittleHistory, match="in the test part"):
        split([series_of(1200)], window=32, test_share=0.1)


def test_the_same_asset_twice_is_leakage():
    with pytest.raises(LeakageError, match="'m01' is there 2 times"):
        split([series_of(500), series_of(500)], window=4)


@pytest.mark.parametrize(("holdout_share", "test_share"), [(0.0, 0.2), (0.5, 0.5), (1.0, 0.0), (0.2, -0.1)])
def test_shares_that_leave_nothing_to_fit_on_are_refused(holdout_share, test_share):
    with pytest.raises(ConfigError, match="holdout_share"):
        split([series_of(1000)], 10, holdout_share, test_share)


def test_a_split_that_leaks_cannot_be_made():
    (sound,) = split([series_of(1009)], window=10, min_windows=100)
    replace(sound, calibration=slice(818, 1009))  # its first window starts at row 809, the first that was not fitted on
    with pytest.raises(
        LeakageError, match=r"first window of the calibration part is rows 808 to 817, but rows up to 808"
    ):
        replace(sound, calibration=slice(817, 1009))
    with pytest.raises(LeakageError, match="test part"):
        replace(sound, test=slice(100, 300))
    with pytest.raises(LeakageError, match="leave a whole window"):
        replace(sound, window=12)  # split for a shorter window than the model has


def test_a_split_is_the_same_every_time():
    series = [series_of(700, "a"), series_of(900, "b")]
    assert split(series, 8) == split(series, 8)
    assert isinstance(split(series, 8)[0], Split)
