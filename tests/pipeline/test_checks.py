import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.checks import check_readings, latest_ts_ns
from pipeline.values import Quality

OK, ABSENT, NON_FINITE, OUT_OF_RANGE = (int(q) for q in (Quality.OK, *list(Quality)[1:4]))
INF = float("inf")


def check(*values, low=(), high=()):
    """One row; None is absent."""
    given_here = np.array([[v is not None for v in values]])
    x = np.array([[99.0 if v is None else v for v in values]], np.float32)
    before = x.copy()
    checked, observed, quality = check_readings(x, given_here, low, high)
    np.testing.assert_array_equal(x, before)
    assert (checked.dtype, observed.dtype, quality.dtype) == (np.float32, np.bool_, np.uint8)
    np.testing.assert_array_equal(observed, quality == OK)
    return checked[0].tolist(), quality[0].tolist()


def test_every_reading_that_is_not_observed_is_zero_and_says_why():
    x, quality = check(1.5, None, float("nan"), INF, -INF, low=(0,) * 5, high=(2,) * 5)
    assert x == [1.5, 0, 0, 0, 0]
    assert quality == [OK, ABSENT, NON_FINITE, NON_FINITE, NON_FINITE]


def test_limits_are_inclusive_and_per_channel():
    _, quality = check(0, 1, -0.001, 1.001, low=(0, -INF, 0, 0), high=(1, 1, 1, 1))
    assert quality == [OK, OK, OUT_OF_RANGE, OUT_OF_RANGE]
    assert check(-1, 1, low=(0, 0))[1] == [OUT_OF_RANGE, OK]
    assert check(-1, 1, high=(0, 0))[1] == [OK, OUT_OF_RANGE]


@pytest.mark.parametrize("limit", [0.1, 0.3, 1 / 3, 1e-40, 3.4e38, 1e300])
def test_a_reading_on_its_limit_is_in_range_though_float32_has_no_such_number(limit):
    with np.errstate(over="ignore"):
        reading = float(np.float32(limit))
    if np.isfinite(reading):
        assert check(reading, -reading, low=(limit, -limit), high=(limit, -limit))[1] == [OK, OK]
    else:
        assert check(3e38, -3e38, low=(-limit,) * 2, high=(limit,) * 2)[1] == [OK, OK]


def test_equal_readings_have_equal_bits():
    x, given_here = np.array([[-0.0, 0.0]], np.float32), np.ones((1, 2), np.bool_)
    assert check_readings(x, given_here)[0].tobytes() == np.zeros((1, 2), np.float32).tobytes()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 5), st.integers(1, 4))
def test_the_checks_agree_with_numpy_on_whole_arrays(data, n, channels):
    x = data.draw(hnp.arrays(np.float32, (n, channels), elements=st.floats(width=32)))
    there = data.draw(hnp.arrays(np.bool_, (n, channels)))
    low = data.draw(hnp.arrays(np.float32, channels, elements=st.floats(-10, 0, width=32)))
    high = data.draw(hnp.arrays(np.float32, channels, elements=st.floats(0, 10, width=32)))
    finite = np.isfinite(x)
    in_range = (x >= low) & (x <= high)
    expected = np.select([~there, ~finite, ~in_range], [ABSENT, NON_FINITE, OUT_OF_RANGE], OK)
    checked, _, quality = check_readings(x, there, tuple(low.tolist()), tuple(high.tolist()))
    np.testing.assert_array_equal(quality, expected)
    np.testing.assert_array_equal(checked, np.where(expected == OK, x, 0))


def test_the_latest_time_of_a_row_hangs_on_the_time_the_log_took_it():
    log = np.array([0, 100, 1 << 62, (1 << 63) - 1], np.int64)
    end = 1 << 62
    assert latest_ts_ns(log, None).tolist() == [end] * 4
    assert latest_ts_ns(log, 5).tolist() == [end, 105, end, end]
    assert latest_ts_ns(log, 0).tolist() == [end, 100, end, end]
    assert latest_ts_ns(log, 1 << 70).tolist() == [end] * 4
