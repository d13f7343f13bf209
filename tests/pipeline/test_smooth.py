from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from fold_cases import arrays_of, assert_same_bits, carried_over, pieces, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naive_smooth import median_mad, naive_smooth
from score_cases import calibration_of, scores_of

from pipeline.bundle import SmootherSpec
from pipeline.errors import BundleError, ConfigError, ShapeError
from pipeline.smooth import _bucket, _median_mad, smooth, smoother_columns
from pipeline.values import Continuity

FEW = settings(deadline=None, max_examples=60)
FRESH = int(Continuity.FRESH)
SPEC = SmootherSpec(memory=16, span_ns=160, ewma_span=3)


def part(scores, piece):
    arrays = {name: array[piece] for name, array in arrays_of(scores).items()}
    others = {f.name: getattr(scores, f.name) for f in fields(scores) if f.name not in arrays}
    return type(scores)(**others, **arrays)


def run(scores, calibration, spec, rows=None, cuts=(), carry=False):
    """Smooth in pieces; return ({smoothed, own}, the table)."""
    rows = np.zeros(len(scores), np.int32) if rows is None else rows
    columns = smoother_columns(spec)
    table = table_of(columns, 3)
    out = []
    for piece in pieces(len(scores), cuts):
        if carry:
            table = carried_over(table, columns)
        out.append(smooth(part(scores, piece), rows[piece], calibration, table, spec))
    smoothed, own = (np.concatenate(column) for column in zip(*out, strict=True))
    return {"smoothed": smoothed, "own": own}, table


def series(errors, spec=SPEC, start=None, step=10):
    """Smooth one asset's errors, one a bucket; return (smoothed, own, admitted values in order of age)."""
    start = np.linspace(-1, 1, spec.memory) if start is None else start
    scores = scores_of(0, np.arange(len(errors)) * step, errors)
    out, table = run(scores, calibration_of([start]), spec)
    at = int(table["smoother_oldest"][0])
    return out["smoothed"], out["own"], np.roll(table["smoother_order"][0], -at)


@st.composite
def logs(draw):
    """Scores of 3 assets over 2 calibration rows, with ties, NaN, restarts and buckets hit more than once."""
    n = draw(st.integers(0, 60))
    each = {"min_size": n, "max_size": n}
    score = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.0, 2.0, 3.5, 40.0, np.nan, np.inf]), **each))
    asset = draw(st.lists(st.integers(0, 2), **each))
    ts = draw(st.integers(-500, 500)) + np.cumsum(draw(st.lists(st.integers(1, 30), **each)), dtype=np.int64)
    continuity = draw(st.lists(st.sampled_from([0] * 15 + [1, 2]), **each))
    rows = np.array(draw(st.lists(st.integers(0, 1), min_size=3, max_size=3)), np.int32)
    scores = scores_of(asset, ts, score, continuity)
    return scores, rows[scores.asset]


@st.composite
def set_ups(draw):
    m = draw(st.sampled_from([8, 9, 13, 16]))
    have = draw(st.integers(0, m))
    values = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 0.5, 4.0])
    start = np.full((2, m), np.nan)
    start[0, :have] = draw(st.lists(values, min_size=have, max_size=have))
    start[1] = draw(st.lists(values, min_size=m, max_size=m))
    spec = SmootherSpec(
        yardstick=draw(st.sampled_from([True, True, True, False])),
        memory=m,
        span_ns=draw(st.sampled_from([m, 7 * m + 3, 200])),
        admit_z=draw(st.sampled_from([2.0, 5.0])),
        mad_floor=draw(st.sampled_from([0.1, 1.0])),
        ewma_span=draw(st.sampled_from([1, 3, 15])),
    )
    return calibration_of(start, (1.0, 0.5), (0.5, 2.0), (1.0, 1.0)), spec


@FEW
@given(logs(), set_ups())
def test_the_smoother_equals_its_equation(log, set_up):
    (scores, rows), (calibration, spec) = log, set_up
    out, _ = run(scores, calibration, spec, rows)
    smoothed, own = naive_smooth(scores, rows, calibration, spec)
    assert_same_bits({"smoothed": smoothed, "own": own}, out)


@FEW
@given(logs(), set_ups(), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_cutting_the_input_or_moving_the_state_changes_nothing(log, set_up, cuts, carry):
    (scores, rows), (calibration, spec) = log, set_up
    one, _ = run(scores, calibration, spec, rows)
    other, _ = run(scores, calibration, spec, rows, cuts=cuts, carry=carry)
    assert_same_bits(one, other)


@FEW
@given(logs(), set_ups(), st.integers(0, 60))
def test_no_row_touches_an_earlier_value(log, set_up, cut):
    (scores, rows), (calibration, spec) = log, set_up
    future = scores.score.copy()
    future[cut:] = np.random.default_rng(cut).permutation(future[cut:]) + 1
    one, _ = run(scores, calibration, spec, rows)
    other, _ = run(replace(scores, score=future), calibration, spec, rows)
    assert_same_bits({k: v[:cut] for k, v in one.items()}, {k: v[:cut] for k, v in other.items()})


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=16)))
def test_median_and_mad_of_a_sorted_window_are_numpys(values):
    assert _median_mad(np.sort(values), len(values)) == median_mad(values)


@settings(deadline=None, max_examples=200)
@given(st.integers(-(2**62), 2**62), st.integers(8, 4096), st.data())
def test_buckets_of_event_time_are_exact_at_any_date(ts, m, data):
    span = data.draw(st.integers(m, 2**62 // m - 1))
    assert _bucket(ts, span, m) == Fraction(ts) // Fraction(span, m)


def test_a_long_run_of_a_full_window_stays_exact():
    rng = np.random.default_rng(5)
    spec = SmootherSpec(memory=128, span_ns=1280)
    errors = rng.gamma(2.0, size=2000).astype(np.float32)
    scores = scores_of(0, np.arange(2000) * 10 - 10_000, errors)
    calibration = calibration_of([rng.normal(size=128)])
    out, table = run(scores, calibration, spec)
    smoothed, own = naive_smooth(scores, np.zeros(2000, np.int32), calibration, spec)
    assert_same_bits({"smoothed": smoothed, "own": own}, out)
    assert (table["smoother_sorted"][0] == np.sort(table["smoother_order"][0])).all()


def test_the_oldest_admitted_error_leaves_first():
    _, _, admitted = series([0.5, 0.25, 0.75])
    assert admitted.tolist() == [*np.linspace(-1, 1, 16).astype(np.float32)[3:], 0.5, 0.25, 0.75]


def test_a_spike_does_not_enter_the_window():
    _, own, admitted = series([0.5, 60.0, 0.25])
    assert own[1] > 50
    assert admitted[-3:].tolist() == [1.0, 0.5, 0.25]


def test_a_permanent_shift_of_level_never_becomes_its_own_yardstick():
    smoothed, own, admitted = series([0.5] * 20 + [12.0] * 500)
    assert 12.0 not in admitted
    assert own[20] == own[-1] > SPEC.admit_z
    assert smoothed[-1] == own[-1]


def test_a_shift_of_less_than_admit_z_is_followed_within_the_span():
    _, own, admitted = series([0.0] * 20 + [4.0] * SPEC.memory)
    assert own[20] == 4.0
    assert own[-1] == 0.0
    assert set(admitted) == {4.0}


def test_a_slow_rise_is_followed_and_explained_away():
    rise = np.linspace(0, 40, 400)
    _, own, _ = series(rise)
    assert own.max() < SPEC.admit_z
    _, own, _ = series(rise, replace(SPEC, yardstick=False))
    assert own[-1] == 40


def test_the_window_never_raises_a_score():
    _, own, _ = series([0.0] * 5, start=np.full(16, -30.0))
    assert own.max() <= 0.0


def test_one_error_is_admitted_per_bucket_of_event_time():
    _, _, admitted = series([0.1, 0.2, 0.3, 0.4, 0.5], step=5)
    assert admitted[-4:].tolist() == np.array([1.0, 0.1, 0.3, 0.5], np.float32).tolist()


def test_when_a_bucket_opens_with_a_spike_the_next_error_in_it_is_admitted():
    _, _, admitted = series([70.0, 0.2, 0.3, 0.4], step=5)
    assert admitted[-3:].tolist() == np.array([1.0, 0.2, 0.3], np.float32).tolist()


def test_today_s_time_stamps_and_a_day_s_span_do_not_overflow():
    spec = SmootherSpec()
    day = 86_400_000_000_000
    now = 1_790_000_000_000_000_000 // day * day
    scores = scores_of(0, [now + k * day // 128 + d for k in range(3) for d in (0, 1)], [0.1, 9, 0.2, 9, 0.3, 9])
    _, table = run(scores, calibration_of([np.linspace(-1, 1, 128)]), spec)
    assert table["smoother_order"][0, :3].tolist() == np.array([0.1, 0.2, 0.3], np.float32).tolist()


def test_fewer_than_eight_errors_are_no_yardstick():
    start = np.full(16, np.nan)
    start[:6] = -3.0
    _, own, _ = series([0.0, 1.0, 2.0], start=start)
    assert own.tolist() == [0.0, 1.0, 2.0]  # the third sees eight, whose median lies below the calibration's
    _, own, _ = series([4.0, 4.0, 4.0], start=np.where(np.isnan(start), np.nan, 4.0))
    assert own.tolist() == [4.0, 4.0, 0.0]


def test_a_fresh_asset_starts_from_the_calibration_again_even_if_its_first_frames_have_no_score():
    errors = [0.5, 9.0, 0.5, np.nan, 0.5]
    again = scores_of(0, np.arange(5) * 10, errors, [FRESH, 0, 0, FRESH, 0])
    out, table = run(again, calibration_of([np.linspace(-1, 1, 16)]), SPEC)
    assert out["smoothed"][4] == out["smoothed"][0]
    assert table["smoother_oldest"][0] == 1


def test_a_fresh_asset_may_admit_in_the_bucket_it_left_off_in():
    scores = scores_of(0, [0, 1], [0.25, 0.5], [FRESH, FRESH])
    _, table = run(scores, calibration_of([np.linspace(-1, 1, 16)]), SPEC)
    assert table["smoother_order"][0, 0] == 0.5


def test_a_new_window_goes_on_with_the_same_yardstick():
    errors = [0.5, 2.0, 0.5, 1.0]
    new_window = scores_of(0, np.arange(4) * 10, errors, [FRESH, 0, int(Continuity.NEW_WINDOW), 0])
    out, _ = run(new_window, calibration_of([np.linspace(-1, 1, 16)]), SPEC)
    plain, _ = run(
        replace(new_window, continuity=np.zeros(4, np.uint8)), calibration_of([np.linspace(-1, 1, 16)]), SPEC
    )
    assert_same_bits(out, plain)


def test_a_frame_without_a_score_gives_nan_and_leaves_the_state_alone():
    scores = scores_of(0, np.arange(4) * 10, [0.5, np.nan, np.inf, 0.25])
    out, _ = run(scores, calibration_of([np.linspace(-1, 1, 16)]), SPEC)
    assert np.isnan(out["smoothed"]).tolist() == np.isnan(out["own"]).tolist() == [False, True, True, False]
    kept = part(scores, np.array([0, 3]))
    without, _ = run(kept, calibration_of([np.linspace(-1, 1, 16)]), SPEC)
    assert_same_bits({k: v[[0, 3]] for k, v in out.items()}, without)


def test_an_ewma_span_of_one_switches_it_off():
    smoothed, own, _ = series([0.5, 3.0, 0.1], replace(SPEC, ewma_span=1))
    assert smoothed.tolist() == own.tolist()


def test_the_ewma_starts_at_zero_and_weighs_the_last_frame_by_two_over_span_plus_one():
    smoothed, own, _ = series([0.5, 1.0], replace(SPEC, yardstick=False))
    assert own.tolist() == [0.5, 1.0]
    assert smoothed.tolist() == [0.25, 0.625]


def test_a_calibration_that_does_not_fit_is_refused():
    scores = scores_of(0, [0], [1.0])
    with pytest.raises(BundleError, match="calibration has 12 start values, the smoother remembers 16"):
        run(scores, calibration_of([np.zeros(12)]), SPEC)
    with pytest.raises(BundleError, match="MAD that is not above 0"):
        run(scores, calibration_of([np.zeros(16)], mad=(0.0,)), SPEC)
    with pytest.raises(ShapeError, match="calibration rows must be 0 to 0, found 1"):
        run(scores, calibration_of([np.zeros(16)]), SPEC, np.array([1], np.int32))
    with pytest.raises(ShapeError, match="asset codes must be 0 to 2"):
        run(scores_of(3, [0], [1.0]), calibration_of([np.zeros(16)]), SPEC)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("smoother.memory", {"memory": 7}),
        ("smoother.span_s", {"span_ns": 15}),
        ("smoother.span_s", {"span_ns": 2**60}),
        ("smoother.mad_floor", {"mad_floor": 0.0}),
        ("smoother.ewma_span", {"ewma_span": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(key, changes):
    with pytest.raises(ConfigError) as error:
        smoother_columns(replace(SPEC, **changes))
    assert error.value.key == key
