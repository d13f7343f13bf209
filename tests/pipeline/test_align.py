from dataclasses import replace

import numpy as np
import pytest
from fold_cases import arrays_of, assert_same_bits, carried_over, joined, pieces, rows_of, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_align import naive_align

from pipeline.align import AlignSpec, align, align_columns
from pipeline.errors import ConfigError, ShapeError
from pipeline.values import Continuity, Quality, Rows

CONTINUES, NEW_WINDOW, FRESH = (int(c) for c in Continuity)
GAP = int(Quality.GAP)
FEW = settings(deadline=None, max_examples=60)


def grid(period=10, **changes):
    options = {"mode": "grid", "period_ns": period, "max_gap_ns": 5 * period, "retire_after_ns": 20 * period}
    return AlignSpec(**(options | changes))


def as_they_come(**changes):
    options = {"mode": "none", "period_ns": 1, "max_gap_ns": 50, "retire_after_ns": 200}
    return AlignSpec(**(options | changes))


def run(rows, spec, assets=4, cuts=(), carry=False):
    """Align `rows` in pieces; return (frames, late rows, counts)."""
    columns = align_columns(spec, rows.channels)
    table = table_of(columns, assets)
    frames, late, counts = [], [], {}
    for piece in pieces(len(rows), cuts):
        if carry:
            table = carried_over(table, columns)
        aligned = align(rows.take(piece), table, spec)
        frames.append(aligned.rows)
        late.append(aligned.late)
        counts = {name: counts.get(name, 0) + n for name, n in aligned.counts.items()}
    return joined(frames), joined(late), counts


def aligned(rows, spec, assets=4):
    return align(rows, table_of(align_columns(spec, rows.channels), assets), spec)


@st.composite
def specs(draw):
    period = draw(st.integers(1, 12))
    mode = draw(st.sampled_from(["grid", "none"]))
    gap = draw(st.integers(period, 6 * period))
    return AlignSpec(
        mode=mode,
        period_ns=period,
        rounding=draw(st.sampled_from(["nearest", "floor"])),
        lateness_ns=draw(st.integers(0, 60)),
        max_gap_ns=gap,
        retire_after_ns=draw(st.integers(gap, 12 * period)),
    )


@st.composite
def logs(draw, most=40):
    """Rows of up to 3 assets, disordered, with equal and negative times, ties of value, and every quality."""
    n = draw(st.integers(0, most))
    steps = draw(st.lists(st.integers(-30, 40), min_size=n, max_size=n))
    asset = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    x = draw(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.5]), min_size=2 * n, max_size=2 * n))
    quality = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=2 * n, max_size=2 * n))
    ts = draw(st.integers(-200, 100)) + np.cumsum(steps, dtype=np.int64)
    return rows_of(asset, ts, np.reshape(x, (n, 2)), quality=np.reshape(quality, (n, 2)))


@FEW
@given(logs(), specs())
def test_alignment_equals_the_obvious_way(rows, spec):
    got = aligned(rows, spec)
    frames, late, counts = naive_align(rows, spec)
    r = got.rows
    columns = (r.asset, r.ts_ns, r.x, r.observed, r.quality, r.offset, r.row, r.continuity)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == frames
    assert_same_bits(arrays_of(got.late), arrays_of(rows.take(np.array(late, np.int64))))
    assert got.counts == counts
    assert not np.signbit(r.x[r.x == 0]).any()


@FEW
@given(logs(), specs(), st.lists(st.integers(0, 60), max_size=5))
def test_cutting_the_input_changes_nothing(rows, spec, cuts):
    whole, whole_late, whole_counts = run(rows, spec)
    frames, late, counts = run(rows, spec, cuts=cuts)
    assert_same_bits(whole, frames)
    assert_same_bits(whole_late, late)
    assert whole_counts == counts


@FEW
@given(logs(), specs(), st.lists(st.integers(0, 60), max_size=5))
def test_moving_all_assets_to_a_fresh_table_at_any_cut_changes_nothing(rows, spec, cuts):
    whole, whole_late, whole_counts = run(rows, spec)
    frames, late, counts = run(rows, spec, cuts=cuts, carry=True)
    assert_same_bits(whole, frames)
    assert_same_bits(whole_late, late)
    assert whole_counts == counts


@FEW
@given(logs(), specs(), st.data())
def test_a_shuffle_within_the_lateness_gives_the_same_frames(rows, spec, data):
    spec = replace(spec, lateness_ns=max(spec.lateness_ns, 1))
    ordered = rows.take(np.argsort(rows.ts_ns, kind="stable"))
    delays = st.lists(st.integers(0, spec.lateness_ns - 1), min_size=len(rows), max_size=len(rows))
    arrival = ordered.ts_ns + np.array(data.draw(delays), np.int64)
    shuffled = ordered.take(np.argsort(arrival, kind="stable"))
    one, late_one, counts_one = run(ordered, spec)
    other, late_other, counts_other = run(shuffled, spec)
    assert len(late_one["ts_ns"]) == len(late_other["ts_ns"]) == 0
    assert counts_one["merged"] == counts_other["merged"]
    for asset in range(3):
        mine, theirs = one["asset"] == asset, other["asset"] == asset
        cut = ({k: v[mine] for k, v in one.items()}, {k: v[theirs] for k, v in other.items()})
        assert_same_bits(*cut, leave_out=("offset", "row"))


@FEW
@given(logs(), specs(), st.randoms(use_true_random=False))
def test_how_assets_are_interleaved_changes_nothing_for_any_of_them(rows, spec, random):
    turns = rows.asset.tolist()
    random.shuffle(turns)
    own = {a: iter(np.flatnonzero(rows.asset == a)) for a in set(turns)}
    other = rows.take(np.array([next(own[a]) for a in turns], np.int64))
    one, _, _ = run(rows, spec)
    two, _, _ = run(other, spec)
    for asset in range(3):
        mine, theirs = one["asset"] == asset, two["asset"] == asset
        assert_same_bits({k: v[mine] for k, v in one.items()}, {k: v[theirs] for k, v in two.items()})


@FEW
@given(logs())
def test_ordered_rows_without_lateness_pass_as_they_are(rows):
    for asset in range(3):
        own = rows.take(rows.asset == asset)
        _, first = np.unique(own.ts_ns, return_index=True)
        own = own.take(first)
        out = aligned(own, as_they_come()).rows
        assert_same_bits(
            {k: v + np.float32(0) if k == "x" else v for k, v in arrays_of(own).items() if k != "continuity"},
            {k: v for k, v in arrays_of(out).items() if k != "continuity"},
        )


def test_nearest_takes_half_a_period_on_both_sides_of_the_frame_time():
    rows = rows_of(0, [-16, -15, -6, -5, 4, 5, 14, 15, 100], np.arange(9))
    out = aligned(rows, grid(rounding="nearest")).rows
    assert out.ts_ns.tolist()[:5] == [-20, -10, 0, 10, 20]
    assert out.x[:4, 0].tolist() == [0, 2, 4, 6]


def test_nearest_with_an_odd_period_counts_half_nanoseconds():
    rows = rows_of(0, [0, 3, 4, 10, 11, 100], np.arange(6))
    spec = grid(7, max_gap_ns=70)
    out = aligned(rows, spec).rows
    assert out.ts_ns.tolist()[:3] == [0, 7, 14]
    assert out.x[:3, 0].tolist() == [1, 3, 4]


def test_floor_takes_a_period_from_the_frame_time_on_before_1970_too():
    out = aligned(rows_of(0, [-11, -10, -1, 0, 9, 10, 20], np.arange(7)), grid(rounding="floor")).rows
    assert out.ts_ns.tolist() == [-20, -10, 0, 10]
    assert out.x[:, 0].tolist() == [0, 2, 4, 5]


def test_a_frame_is_released_by_the_first_row_at_its_end_plus_the_lateness():
    spec = grid(rounding="floor", lateness_ns=3)
    table = table_of(align_columns(spec, 1), 1)
    assert len(align(rows_of(0, [0, 12], [1, 2]), table, spec).rows) == 0
    assert align(rows_of(0, [13], [3]), table, spec).rows.ts_ns.tolist() == [0]


def test_a_late_row_is_counted_handed_back_and_changes_nothing():
    spec = as_they_come(lateness_ns=10)
    rows = rows_of(0, [0, 20, 10, 11, 40], [1, 2, 99, 4, 5])
    got = aligned(rows, spec)
    assert got.counts["late"] == 1
    assert_same_bits(arrays_of(got.late), arrays_of(rows.take([2])))
    assert got.rows.ts_ns.tolist() == [0, 11, 20]
    assert got.rows.x[:, 0].tolist() == [1, 4, 2]


def test_one_asset_far_ahead_makes_no_other_asset_late():
    rows = rows_of([0, 1, 0, 1], [0, 10_000, 5, 10_001], [1, 2, 3, 4])
    assert aligned(rows, as_they_come()).counts["late"] == 0


def test_nothing_is_flushed_when_the_input_ends():
    assert len(aligned(rows_of(0, [0, 3, 9], [1, 2, 3]), grid()).rows) == 1  # the slot of 9 and 10 may go on
    assert len(aligned(rows_of(0, [0, 3], [1, 2]), as_they_come(lateness_ns=5)).rows) == 0


def test_sensors_of_one_slot_become_one_frame():
    rows = rows_of(0, [0, 2, 1, 20], np.diag([1, 2, 3, 4]), observed=np.eye(4))
    got = aligned(rows, grid(rounding="floor"))
    assert got.counts["merged"] == 2
    assert got.counts["duplicate"] == 0
    assert got.rows.x[0].tolist() == [1, 2, 3, 0]
    assert got.rows.quality[0].tolist() == [0, 0, 0, Quality.ABSENT]
    assert got.rows.offset[0] == 2


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_a_collision_is_settled_by_time_then_value_and_never_by_arrival(order):
    ts = np.array([1, 2, 2, 3])[order]
    x = np.array([9.0, 5.0, 7.0, 0.0])[order]
    quality = np.array([0, 0, 0, Quality.OUT_OF_RANGE])[order]
    rows = rows_of(0, [*ts, 50], [*x, 1.0], quality=[*quality, 0])
    out = aligned(rows, grid(rounding="floor")).rows
    assert out.x[0, 0] == 7.0
    assert out.observed[0, 0]


def test_among_unobserved_readings_the_latest_reason_stays():
    rows = rows_of(0, [2, 1, 2, 50], [0, 0, 0, 1], quality=[1, 3, 2, 0])
    assert aligned(rows, grid(rounding="floor")).rows.quality[0, 0] == Quality.NON_FINITE


def test_a_row_sent_twice_counts_as_merged_and_duplicate():
    got = aligned(rows_of(0, [5, 5, 6, 90], [1, 1, 2, 3]), grid())
    assert got.counts == {"late": 0, "merged": 2, "duplicate": 1, "frames": 1, "bridged": 0}


def test_missing_slots_are_bridged_by_gap_rows_with_the_position_of_the_row_after_them():
    out = aligned(rows_of(0, [0, 10, 50, 60], [1, 2, 3, 4]), grid(rounding="floor")).rows
    assert out.ts_ns.tolist() == [0, 10, 20, 30, 40, 50]
    assert out.continuity.tolist() == [FRESH] + [CONTINUES] * 5
    assert out.offset.tolist() == [0, 1, 2, 2, 2, 2]
    assert (out.quality[2:5] == GAP).all()
    assert not out.observed[2:5].any()
    assert not out.x[2:5].any()


@pytest.mark.parametrize(
    ("gap", "continuity"),
    [(50, CONTINUES), (60, NEW_WINDOW), (200, NEW_WINDOW), (210, FRESH)],
)
@pytest.mark.parametrize("spec", [grid(rounding="floor"), as_they_come()], ids=["grid", "none"])
def test_a_longer_gap_starts_a_window_and_a_still_longer_one_starts_afresh(spec, gap, continuity):
    out = aligned(rows_of(0, [0, gap, gap + 10], [1, 2, 3]), spec).rows
    at = out.ts_ns.tolist().index(gap)
    assert out.continuity[at] == continuity
    assert (at > 1) == (spec.mode == "grid" and continuity == CONTINUES)


def test_a_gap_longer_than_the_first_output_buffer_is_bridged_all_the_way():
    spec = grid(rounding="floor", max_gap_ns=10**6, retire_after_ns=10**6)
    got = aligned(rows_of(0, [0, 50_000, 50_010], [1, 2, 3]), spec)
    assert got.rows.ts_ns.tolist() == list(range(0, 50_010, 10))
    assert got.counts == {"late": 0, "merged": 0, "duplicate": 0, "frames": 5001, "bridged": 4999}


def test_more_pending_rows_than_the_columns_hold_widen_them_and_nothing_else():
    spec = as_they_come(lateness_ns=1000, max_gap_ns=5000, retire_after_ns=5000)
    ts = np.random.default_rng(3).permutation(900)
    rows = rows_of(np.arange(901) % 2, [*ts, 2000], np.arange(901))
    got = aligned(rows, spec)
    assert len(got.rows) + (rows.asset[:-1] == 1).sum() == 900
    assert (np.diff(got.rows.ts_ns) > 0).all()


def test_no_rows_give_no_frames():
    got = aligned(Rows.empty(3, 2), grid())
    assert (len(got.rows), len(got.late), got.rows.partition) == (0, 0, 3)


def test_input_that_cannot_be_written_to_is_taken():
    rows = rows_of(0, [0, 10, 20], [1, 2, 3])
    for array in arrays_of(rows).values():
        array.setflags(write=False)
    assert len(aligned(rows, grid(rounding="floor")).rows) == 2


def test_other_channels_or_codes_than_the_table_has_are_refused():
    spec = grid()
    table = table_of(align_columns(spec, 2), 1)
    with pytest.raises(ShapeError, match="3 channels, the table was made for 2"):
        align(rows_of(0, [0], [[1, 2, 3]]), table, spec)
    with pytest.raises(ShapeError, match="codes must be 0 to 0, found 1 to 1"):
        align(rows_of(1, [0], [[1, 2]]), table, spec)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("align.mode", {"mode": "fixed"}),
        ("align.rounding", {"rounding": "up"}),
        ("feed.period_s", {"period_ns": 0}),
        ("feed.period_s", {"period_ns": 1 << 61}),
        ("align.lateness_s", {"lateness_ns": -1}),
        ("align.max_gap_s", {"max_gap_ns": 9}),
        ("align.retire_after_s", {"retire_after_ns": 49}),
        ("align.retire_after_s", {"retire_after_ns": 1 << 61}),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(key, changes):
    with pytest.raises(ConfigError) as error:
        grid(**changes)
    assert error.value.key == key
