import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.series import Series, longest_runs, thinned, window_ends, windows
from pipeline.errors import ConfigError, InputError, ShapeError
from pipeline.values import Continuity


def series_of(x, observed=None, continuity=None, normal=None):
    x = np.ascontiguousarray(x, np.float32)
    n = len(x)
    observed = np.ones(x.shape, np.bool_) if observed is None else observed
    return Series(
        asset="pump",
        ts_ns=np.arange(n, dtype=np.int64) * 1_000_000_000,
        x=np.where(observed, x, np.float32(0)),
        observed=observed,
        continuity=np.zeros(n, np.uint8) if continuity is None else np.asarray(continuity, np.uint8),
        normal=np.ones(n, np.bool_) if normal is None else np.asarray(normal, np.bool_),
    )


def ends_one_by_one(series, window):
    """The definition, spelt out: try every row."""
    found = []
    for end in range(len(series)):
        first = end - window + 1
        if first < 0:
            continue
        unbroken = all(series.continuity[i] == Continuity.CONTINUES for i in range(first + 1, end + 1))
        if unbroken and all(series.normal[i] for i in range(first, end + 1)):
            found.append(end)
    return found


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 0, 0, 0, 1, 2]), st.sampled_from([True, True, True, False])), max_size=40
    ),
    window=st.integers(1, 9),
)
def test_window_ends_are_those_that_trying_every_row_finds(rows, window):
    series = series_of(np.zeros((len(rows), 2)), continuity=[c for c, _ in rows], normal=[k for _, k in rows])
    assert window_ends(series, window).tolist() == ends_one_by_one(series, window)


def test_a_window_may_begin_at_a_break_but_not_hold_one():
    series = series_of(np.zeros((6, 1)), continuity=[2, 0, 0, 1, 0, 0])
    assert window_ends(series, 3).tolist() == [2, 5]


def test_a_window_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match="window = 0"):
        window_ends(series_of(np.zeros((3, 1))), 0)


def test_gathered_windows_are_the_rows_up_to_their_ends():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 3)).astype(np.float32)
    seen = rng.random((30, 3)) > 0.2
    ends = np.array([29, 4, 4, 17])
    got, mask = windows(x, seen, ends, 5)
    for i, end in enumerate(ends):
        np.testing.assert_array_equal(got[i], x[end - 4 : end + 1])
        np.testing.assert_array_equal(mask[i], seen[end - 4 : end + 1])
    assert got.flags.c_contiguous
    assert mask.flags.c_contiguous


def test_gathering_no_windows_gives_empty_arrays_of_the_right_shape():
    got, mask = windows(np.zeros((3, 2), np.float32), np.ones((3, 2), np.bool_), np.empty(0, np.int64), 7)
    assert got.shape == mask.shape == (0, 7, 2)


@pytest.mark.parametrize("end", [3, 10])
def test_an_end_without_a_full_window_is_refused(end):
    with pytest.raises(ShapeError, match=r"10 rows hold ends 4\.\.9 only"):
        windows(np.zeros((10, 1), np.float32), np.ones((10, 1), np.bool_), np.array([end]), 5)


def test_thinning_keeps_the_first_and_spreads_the_rest_evenly():
    kept = thinned(np.arange(1000), 300)
    assert len(kept) == 300
    assert kept[0] == 0
    assert set(np.diff(kept).tolist()) == {3, 4}
    assert thinned(np.arange(5), 300).tolist() == [0, 1, 2, 3, 4]


def test_the_longest_run_of_equal_values_is_found_per_channel():
    series = series_of([[1, 1], [1, 2], [1, 2], [2, 2], [2, 2], [3, 9]])
    assert longest_runs(series).tolist() == [3, 4]


def test_a_missing_reading_neither_ends_nor_lengthens_a_run():
    observed = np.array([[True], [False], [True], [True]])
    assert longest_runs(series_of([[5], [0], [5], [5]], observed=observed)).tolist() == [3]


@pytest.mark.parametrize("kind", ["break", "abnormal"])
def test_a_break_or_an_abnormal_row_ends_a_run(kind):
    continuity = [0, 0, 1, 0, 0] if kind == "break" else None
    normal = [True, True, False, True, True] if kind == "abnormal" else None
    longest = longest_runs(series_of(np.full((5, 1), 7.0), continuity=continuity, normal=normal)).tolist()
    assert longest == ([3] if kind == "break" else [2])


def test_a_channel_that_was_never_observed_has_no_run():
    assert longest_runs(series_of(np.zeros((4, 1)), observed=np.zeros((4, 1), np.bool_))).tolist() == [0]


def test_a_series_of_the_wrong_dtype_is_refused_by_name():
    good = series_of(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match=r"'pump': x is float64 \(3, 2\)"):
        Series(good.asset, good.ts_ns, good.x.astype(np.float64), good.observed, good.continuity, good.normal)


def test_a_series_whose_arrays_differ_in_length_is_refused():
    good = series_of(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match="normal"):
        Series(good.asset, good.ts_ns, good.x, good.observed, good.continuity, good.normal[:2])
    with pytest.raises(ShapeError, match=r"expected \(n,\) and \(n, C\)"):
        Series(good.asset, good.ts_ns[:2], good.x, good.observed, good.continuity[:2], good.normal[:2])


def test_a_series_that_steps_back_in_time_is_refused_at_its_row():
    good = series_of(np.zeros((3, 1)))
    with pytest.raises(InputError, match="row 2 is not later"):
        Series(good.asset, np.array([0, 5, 5]), good.x, good.observed, good.continuity, good.normal)
