import numpy as np
import pytest
from score_cases import calibration_of, scores_of

from pipeline.errors import BundleError, ConfigError, ShapeError, TrainingError
from pipeline.threshold import hold, percentile_threshold

F32 = np.float32


def held(smoothed, own, rows, threshold=(2.0, 4.0)):
    n = len(smoothed)
    k = len(threshold)
    calibration = calibration_of(np.zeros((k, 8)), (0.0,) * k, (1.0,) * k, threshold)
    scores = scores_of(0, np.arange(n), np.ones(n))
    return hold(scores, np.array(smoothed, F32), np.array(own, F32), np.array(rows, np.int32), calibration)


def test_each_score_is_held_against_the_threshold_of_its_own_row():
    got = held([3, 3], [8, 8], [0, 1])
    assert got.threshold.tolist() == [2, 4]
    assert got.ratio.tolist() == [1.5, 0.75]
    assert got.own_ratio.tolist() == [4, 2]
    assert got.breached.tolist() == [True, False]


def test_exactly_the_threshold_is_no_breach_and_the_next_number_is():
    assert held([2, np.nextafter(F32(2), F32(3))], [0, 0], [0, 0]).breached.tolist() == [False, True]


def test_a_frame_without_a_score_has_no_ratio_and_no_breach():
    got = held([np.nan], [np.nan], [0])
    assert np.isnan(got.ratio[0])
    assert np.isnan(got.own_ratio[0])
    assert not got.breached[0]


def test_ratios_are_float32_and_no_scores_give_no_verdicts():
    got = held([], [], [])
    assert len(got) == 0
    assert {got.ratio.dtype, got.own_ratio.dtype, got.threshold.dtype} == {np.dtype(F32)}
    assert got.breached.dtype == np.bool_


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan, np.inf])
def test_a_threshold_that_cannot_be_held_against_is_refused(threshold):
    with pytest.raises(BundleError, match="not a number above 0"):
        held([1], [1], [0], (threshold,))


def test_arrays_that_do_not_go_together_are_refused():
    with pytest.raises(ShapeError, match="1 scores, 1 smoothed, 2 own, 1 calibration rows"):
        held([1], [1, 2], [0])
    with pytest.raises(ShapeError, match="calibration rows must be 0 to 1, found 2"):
        held([1], [1], [2])


def test_the_threshold_is_the_percentile_of_the_finite_scores():
    smoothed = np.array([np.nan, *range(1, 102), np.inf], F32)
    assert percentile_threshold(smoothed, 99) == 100
    assert percentile_threshold(smoothed, 99.5) == 100.5
    assert percentile_threshold(smoothed, 100) == 101


def test_the_threshold_is_never_below_the_floor():
    assert percentile_threshold(np.array([-3, -2, 0.5], F32), 99.5) == 1.0
    assert percentile_threshold(np.array([-3, -2, 0.5], F32), 100, floor=0.25) == 0.5


def test_scores_without_a_number_among_them_give_no_threshold():
    with pytest.raises(TrainingError, match="none of 2 calibration scores"):
        percentile_threshold(np.array([np.nan, np.nan], F32), 99.5)


@pytest.mark.parametrize(("percentile", "floor"), [(0, 1), (101, 1), (np.nan, 1), (99, 0), (99, np.nan)])
def test_settings_that_make_no_sense_are_refused(percentile, floor):
    with pytest.raises(ConfigError):
        percentile_threshold(np.ones(3, F32), percentile, floor)
