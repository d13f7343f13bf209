from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_smooth import naive_calibrated
from score_cases import calibration_of, scores_of

from pipeline.errors import BundleError, ShapeError
from pipeline.standardise import calibrated_errors

CHANNELS = 4
SHIFT = np.array([[0.0, 0.3, -0.5, 0.1], [0.2, -0.1, 0.0, 0.7]], np.float32)
GAIN = np.array([[1.0, 0.9, 1.3, 1.9], [1.1, 0.6, 1.0, 0.8]], np.float32)
KNOWING = replace(
    calibration_of(np.zeros((2, 8)), (1.0, 0.5), (0.5, 2.0), (1.0, 1.0)), missing_shift=SHIFT, missing_gain=GAIN
)


def scores(error, missing=()):
    """Scores of one asset; `missing` (n, C) says which channels are."""
    said = scores_of(0, np.arange(len(error)), error, channels=CHANNELS)
    hidden = (
        np.array(missing, np.bool_).reshape(-1, CHANNELS) if len(missing) else np.zeros((len(error), CHANNELS), bool)
    )
    return replace(said, actual=np.where(hidden, np.float32(np.nan), np.float32(1)))


ERRORS = st.sampled_from([0.0, 1e-20, 0.3, 1.0, 7.5, 1e20, np.nan, np.inf])
ROWS = st.lists(st.tuples(ERRORS, st.lists(st.booleans(), min_size=CHANNELS, max_size=CHANNELS), st.integers(0, 1)))


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_errors_are_calibrated_by_the_equation_and_each_row_by_itself(rows):
    said = scores([e for e, _, _ in rows], [m for _, m, _ in rows])
    k = np.array([k for _, _, k in rows], np.int32)
    got = calibrated_errors(said, k, KNOWING)
    want = [naive_calibrated(said.score[i], said.actual[i], k[i], KNOWING) for i in range(len(rows))]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for i, (e, m, _) in enumerate(rows):
        alone = calibrated_errors(scores([e], [m]), k[i : i + 1], KNOWING)
        np.testing.assert_array_equal(alone, got[i : i + 1])


def test_with_all_channels_nothing_is_corrected():
    said = scores([0.2, 1.7])
    rows = np.zeros(2, np.int32)
    bare = replace(KNOWING, missing_shift=np.empty((0, 0), np.float32), missing_gain=np.empty((0, 0), np.float32))
    np.testing.assert_array_equal(calibrated_errors(said, rows, KNOWING), calibrated_errors(said, rows, bare))


def test_a_usual_error_without_a_channel_is_a_usual_error():
    usual = np.exp(np.log(1.0) + SHIFT[0].astype(float))
    got = calibrated_errors(scores(usual, np.eye(CHANNELS)), np.zeros(CHANNELS, np.int32), KNOWING)
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_many_missing_channels_do_not_multiply_without_end():
    wide = replace(KNOWING, missing_gain=np.full((2, CHANNELS), 1.9, np.float32))
    got = calibrated_errors(scores([10.0], [[1, 1, 1, 0]]), np.zeros(1, np.int32), wide)
    away = float(SHIFT[0, :3].astype(float).sum())
    np.testing.assert_allclose(got, (np.exp(2.0 * (np.log(10.0) - away)) - 1.0) / 0.5, rtol=1e-6)


def test_an_unmeasured_calibration_takes_errors_as_they_are():
    bare = calibration_of(np.zeros((1, 8)), (1.0,), (0.5,), (1.0,))
    got = calibrated_errors(scores([2.0], [[1, 0, 0, 1]]), np.zeros(1, np.int32), bare)
    np.testing.assert_array_equal(got, [2.0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="calibration rows must be 0 to 1, found 2"):
        calibrated_errors(scores([1.0]), np.full(1, 2, np.int32), KNOWING)
    few = replace(scores([1.0]), actual=np.ones((1, 3), np.float32))
    with pytest.raises(ShapeError, match="scores have 3 channels, the calibration was made for 4"):
        calibrated_errors(few, np.zeros(1, np.int32), KNOWING)
    with pytest.raises(BundleError, match="MAD that is not above 0"):
        calibrated_errors(scores([1.0]), np.zeros(1, np.int32), replace(KNOWING, mad=np.zeros(2, np.float32)))
