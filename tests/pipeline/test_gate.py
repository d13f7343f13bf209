import numpy as np
import pytest
from fold_cases import arrays_of, assert_same_bits, carried_over, joined, pieces, rows_of, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_gate import naive_gate

from pipeline.errors import ConfigError, ShapeError
from pipeline.gate import GateSpec, gate, gate_columns
from pipeline.values import Continuity, Quality

INF = float("inf")
OK, ABSENT, NON_FINITE, OUT_OF_RANGE, STUCK, JUMP, MISSING, GAP = (int(q) for q in Quality)
FEW = settings(deadline=None, max_examples=60)


def run(rows, spec, cuts=(), carry=False):
    columns = gate_columns(rows.channels)
    table = table_of(columns, 3)
    out = []
    for piece in pieces(len(rows), cuts):
        if carry:
            table = carried_over(table, columns)
        out.append(gate(rows.take(piece), table, spec))
    return joined(out)


def verdict(x, quality=None, continuity=None, stuck=0, step=INF, missing=0):
    """Quality codes of one channel of one asset after the gate."""
    rows = rows_of(0, np.arange(len(x)), x, quality=quality, continuity=continuity)
    return run(rows, GateSpec((stuck,), (step,), missing))["quality"][:, 0].tolist()


@st.composite
def logs(draw):
    n = draw(st.integers(0, 40))
    each = {"min_size": n, "max_size": n}
    x = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 5.0]), min_size=2 * n, max_size=2 * n))
    quality = draw(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 3, 7]), min_size=2 * n, max_size=2 * n))
    continuity = draw(st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 2]), **each))
    asset = draw(st.lists(st.integers(0, 2), **each))
    return rows_of(
        asset, np.arange(n), np.reshape(x, (n, 2)), quality=np.reshape(quality, (n, 2)), continuity=continuity
    )


@st.composite
def specs(draw):
    stuck = draw(st.tuples(*[st.sampled_from([0, 2, 3, 4])] * 2))
    step = draw(st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, INF])] * 2))
    return GateSpec(stuck, step, draw(st.integers(0, 3)))


@FEW
@given(logs(), specs())
def test_the_gate_equals_the_obvious_way(rows, spec):
    before = {name: array.copy() for name, array in arrays_of(rows).items()}
    out = run(rows, spec)
    x, observed, quality = naive_gate(rows, spec)
    assert out["x"].tolist() == x
    assert out["observed"].tolist() == observed
    assert out["quality"].tolist() == quality
    assert_same_bits(before, arrays_of(rows))


@FEW
@given(logs(), specs(), st.lists(st.integers(0, 40), max_size=5), st.booleans())
def test_cutting_the_input_or_moving_the_state_changes_nothing(rows, spec, cuts, carry):
    assert_same_bits(run(rows, spec), run(rows, spec, cuts=cuts, carry=carry))


@FEW
@given(logs(), specs())
def test_the_gate_never_unmasks(rows, spec):
    out = run(rows, spec)
    assert not (out["observed"] & ~rows.observed).any()
    assert ((out["quality"] == 0) == out["observed"]).all()
    assert not out["x"][~out["observed"]].any()
    left_out = ("x", "observed", "quality")
    assert_same_bits(arrays_of(rows), out, leave_out=left_out)


def test_a_channel_is_stuck_from_the_row_that_completes_the_run_until_it_changes():
    assert verdict([1, 1, 1, 1, 2, 2], stuck=3) == [OK, OK, STUCK, STUCK, OK, OK]


def test_unobserved_rows_neither_break_nor_extend_a_run():
    quality = [0, ABSENT, GAP, 0, OUT_OF_RANGE, 0]
    assert verdict([1, 0, 0, 1, 0, 1], quality, stuck=3)[5] == STUCK
    assert verdict([1, 0, 0, 1, 0, 1], quality, stuck=4)[5] == OK


@pytest.mark.parametrize("continuity", [Continuity.NEW_WINDOW, Continuity.FRESH])
def test_a_new_window_starts_runs_and_references_again(continuity):
    restart = [0, 0, int(continuity), 0]
    assert verdict([1, 1, 1, 1], continuity=restart, stuck=3) == [OK] * 4
    assert verdict([1, 1, 9, 9], continuity=restart, step=2) == [OK] * 4
    assert verdict([0] * 4, [ABSENT] * 4, continuity=restart, missing=2) == [ABSENT] * 4


def test_a_spike_masks_itself_and_not_the_row_after_it():
    assert verdict([1, 1, 50, 1, 1], step=2) == [OK, OK, JUMP, OK, OK]


def test_a_shift_of_level_masks_one_row():
    assert verdict([1, 1, 50, 50, 51], step=2) == [OK, OK, JUMP, OK, OK]


def test_readings_all_over_the_place_stay_masked():
    assert verdict([1, 50, 90, 20, 70], step=2) == [OK, JUMP, JUMP, JUMP, JUMP]


def test_a_step_over_k_rows_may_be_k_times_as_large():
    assert verdict([1, 0, 0, 7], [0, ABSENT, GAP, 0], step=2)[3] == OK
    assert verdict([1, 0, 0, 7.5], [0, ABSENT, GAP, 0], step=2)[3] == JUMP
    after_a_jump = [0, 0, ABSENT, 0]
    assert verdict([1, 50, 0, 54], after_a_jump, step=2)[3] == OK
    assert verdict([1, 50, 0, 7], after_a_jump, step=2)[3] == OK
    assert verdict([1, 50, 0, 7.5], after_a_jump, step=2)[3] == JUMP


def test_a_step_of_exactly_max_step_is_no_jump():
    assert verdict([1, 3, 5.5], step=2) == [OK, OK, JUMP]


def test_a_channel_is_missing_after_so_many_absent_rows_and_back_with_the_first_reading():
    quality = [0, ABSENT, ABSENT, ABSENT, 0, ABSENT]
    assert verdict([1, 0, 0, 0, 1, 0], quality, missing=2) == [OK, ABSENT, ABSENT, MISSING, OK, ABSENT]


def test_gap_rows_neither_count_as_absent_nor_end_an_absence():
    quality = [ABSENT, ABSENT, GAP, GAP, ABSENT]
    assert verdict([0] * 5, quality, missing=2) == [ABSENT, ABSENT, GAP, GAP, MISSING]


def test_a_reading_that_was_refused_ends_an_absence():
    quality = [ABSENT, ABSENT, NON_FINITE, ABSENT]
    assert verdict([0] * 4, quality, missing=2) == quality


def test_with_everything_off_rows_pass_as_they_are():
    quality = [0, 0, ABSENT, ABSENT, GAP, 0]
    assert verdict([1, 1, 0, 0, 0, 900], quality) == quality


def test_rows_of_which_nothing_is_masked_are_not_copied():
    rows = rows_of(0, np.arange(3), [[1, 2], [1, 3], [2, 3]])
    assert gate(rows, table_of(gate_columns(2), 1), GateSpec((3, 3), (2, 2))) is rows


def test_runs_and_jumps_of_single_channels_in_rows_that_are_all_observed():
    x = [[1, 1], [1, 2], [1, 3], [1, 90], [2, 4], [2, 4]]
    out = run(rows_of(0, np.arange(6), x), GateSpec((3, 3), (5, 5)))
    assert out["quality"].tolist() == [[OK, OK], [OK, OK], [STUCK, OK], [STUCK, JUMP], [OK, OK], [OK, OK]]


def test_other_channels_or_codes_are_refused():
    spec = GateSpec((0, 0), (INF, INF))
    table = table_of(gate_columns(2), 1)
    with pytest.raises(ShapeError, match="rows have 3 channels, the table 2"):
        gate(rows_of(0, [0], [[1, 2, 3]]), table, spec)
    with pytest.raises(ShapeError, match="codes must be 0 to 0"):
        gate(rows_of(1, [0], [[1, 2]]), table, spec)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("gate.stuck", ((1,), (INF,))),
        ("gate.stuck", ((-2,), (INF,))),
        ("feed.channels.max_step", ((0,), (0.0,))),
        ("feed.channels.max_step", ((0,), (float("nan"),))),
        ("feed.channels.max_step", ((0, 0), (INF,))),
        ("gate.missing_after_s", ((0,), (INF,), -1)),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(key, values):
    with pytest.raises(ConfigError) as error:
        GateSpec(*values)
    assert error.value.key == key
