from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_alert import NaiveLifeCycle

from pipeline.alert import KINDS, AlertSpec, LifeCycleSpec, alert_columns, alert_id, decide
from pipeline.errors import ConfigError
from pipeline.state import AssetTable
from pipeline.values import Continuity, Quality, Rows, Scores, Verdicts

C = 3
SPEC = AlertSpec("feed", "cfg", ("a", "b", "c"), LifeCycleSpec(merge_gap_ns=0, update_every_ns=0))


def frames(ratio, own=None, ts=None, asset=None, continuity=None, quality=None, by_channel=None):
    """Rows and verdicts of given ratios (None or NaN: no score), one ns apart unless said."""
    ratio = np.array([np.nan if r is None else r for r in ratio], np.float32)
    n = len(ratio)
    own = ratio if own is None else np.array([np.nan if r is None else r for r in own], np.float32)
    ts = np.arange(1, n + 1, dtype=np.int64) if ts is None else np.array(ts, np.int64)
    asset = np.zeros(n, np.int32) if asset is None else np.array(asset, np.int32)
    if continuity is None:
        continuity = np.zeros(n, np.uint8)
    quality = np.zeros((n, C), np.uint8) if quality is None else np.array(quality, np.uint8)
    share = np.tile(np.array([0.5, 0.3, 0.2], np.float32), (n, 1)) if by_channel is None else by_channel
    rows = Rows(
        0, asset, ts, np.zeros((n, C), np.float32), quality == 0, quality, np.arange(n, dtype=np.int64),
        np.zeros(n, np.int32), np.array(continuity, np.uint8),
    )  # fmt: skip
    seen = np.ones((n, C), np.float32) * ratio[:, None]
    scores = Scores(
        0, asset, ts, rows.offset, rows.row, rows.continuity, ratio, share.astype(np.float32), seen, 2 * seen,
        np.ones(n, np.float32), np.full(n, 2, np.uint8), "m1",
    )  # fmt: skip
    return rows, Verdicts(scores, ratio, ratio, own, ratio > 1, np.ones(n, np.float32))


def table(*names):
    out = AssetTable(alert_columns(C))
    for name in names or ("pump",):
        out.code(name)
    return out


def run(spec, *args, **kwargs):
    return decide(*frames(*args, **kwargs), "t", table(), spec)


def told(alerts):
    return [(a.kind, a.state, a.ts_ns) for a in alerts]


def test_the_onset_is_moved_back_by_what_a_score_lags_and_the_times_of_frames_are_not():
    rows, verdicts = frames([0.5, 1.2, 1.3, 0.9, 0.7], ts=[10, 20, 30, 40, 50])
    late = replace(verdicts, scores=replace(verdicts.scores, lag_ns=13))
    at_once, lagging = (decide(rows, v, "t", table(), SPEC)[0] for v in (verdicts, late))
    assert (at_once.onset_ns, lagging.onset_ns) == (20, 7)
    assert replace(lagging, onset_ns=20) == at_once


def test_an_alert_opens_when_enough_frames_are_over_by_themselves_and_resolves_below_the_closing_level():
    alerts = run(SPEC, [0.5, 1.2, 1.3, 0.9, 0.7])
    assert told(alerts) == [("anomaly", "open", 3), ("anomaly", "resolved", 5)]
    opened, resolved = alerts
    assert opened.id == resolved.id == alert_id("feed", "pump", "anomaly", 3)
    assert (opened.seq, resolved.seq) == (0, 1)
    assert (opened.start_ns, opened.onset_ns, opened.end_ns) == (2, 2, None)
    assert resolved.end_ns == 5
    assert resolved.peak_ratio == pytest.approx(1.3)


def test_a_lone_spike_never_opens_although_the_smoothed_ratio_stays_over():
    assert run(SPEC, [0.5, 1.5, 1.4, 1.2, 1.1], own=[0.1, 9, 0.1, 0.1, 0.1]) == []


def test_the_channels_are_named_with_share_expected_and_actual_at_the_peak():
    opened = run(SPEC, [1.5, 1.8])[0]
    assert [t.name for t in opened.top_channels] == ["a", "b", "c"]
    assert sum(t.share for t in opened.top_channels) == pytest.approx(1)
    assert opened.top_channels[0].share == pytest.approx(0.5)
    assert opened.top_channels[0].expected == pytest.approx(1.8)
    assert opened.top_channels[0].actual == pytest.approx(3.6)


def test_a_frame_without_a_score_holds_everything_where_it_is():
    spec = replace(SPEC, anomaly=replace(SPEC.anomaly, merge_gap_ns=3))
    assert told(run(spec, [1.5, 1.5, None, None, None, None, 1.5])) == [("anomaly", "open", 2)]


def test_an_alert_that_comes_back_within_the_merge_gap_never_went_away():
    spec = replace(SPEC, anomaly=replace(SPEC.anomaly, merge_gap_ns=3))
    alerts = run(spec, [1.5, 1.5, 0.1, 0.1, 1.5, 0.1, 0.1, 0.1, 0.1])
    assert told(alerts) == [("anomaly", "open", 2), ("anomaly", "resolved", 9)]
    assert alerts[1].end_ns == 6


def test_nothing_opens_within_the_cool_down():
    spec = replace(SPEC, anomaly=replace(SPEC.anomaly, cooldown_ns=4))
    assert told(run(spec, [1.5, 1.5, 0.1, 1.5, 1.5, 1.5, 1.5])) == [
        ("anomaly", "open", 2), ("anomaly", "resolved", 3), ("anomaly", "open", 7),
    ]  # fmt: skip


def test_a_breach_has_to_hold_for_the_minimum_duration():
    spec = replace(SPEC, anomaly=replace(SPEC.anomaly, min_duration_ns=3))
    assert told(run(spec, [1.5, 1.5, 0.9, 1.5, 1.5, 1.5, 1.5])) == [("anomaly", "open", 7)]


def test_updates_are_told_when_severity_rises_and_at_the_interval_of_event_time():
    spec = replace(SPEC, anomaly=replace(SPEC.anomaly, update_every_ns=10))
    alerts = run(spec, [1.5, 1.5, 2.5, 1.5, 1.5], ts=[1, 2, 3, 12, 13])
    assert [(a.state, a.reason, a.severity) for a in alerts] == [
        ("open", "over_threshold", "warning"), ("updated", "severity", "error"), ("updated", "still_open", "error"),
    ]  # fmt: skip
    assert [a.ts_ns for a in alerts] == [2, 3, 13]


def test_an_asset_that_starts_afresh_ends_what_was_open_where_it_was_last_seen():
    alerts = run(SPEC, [1.5, 1.5, 1.5, 0.2], ts=[1, 2, 3, 900], continuity=[2, 0, 0, 2])
    assert [(a.state, a.reason, a.ts_ns, a.end_ns) for a in alerts] == [
        ("open", "over_threshold", 2, None), ("resolved", "retired", 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "code"), [("stuck", Quality.STUCK), ("missing", Quality.MISSING)])
def test_a_quality_fault_is_an_alert_of_its_own_kind_that_names_the_channel(kind, code):
    quality = [[0, 0, 0], [0, code, 0], [0, code, 0], [0, 0, 0]]
    alerts = run(replace(SPEC, quality=replace(SPEC.quality, merge_gap_ns=0)), [None] * 4, quality=quality)
    assert told(alerts) == [(kind, "open", 2), (kind, "resolved", 4)]
    assert [t.name for t in alerts[0].top_channels] == ["b"]
    assert alerts[0].model_id == ""


def test_a_gap_row_neither_opens_nor_resolves_a_quality_alert():
    gap = [Quality.GAP] * 3
    quality = [[0, Quality.STUCK, 0], gap, gap, [0, Quality.STUCK, 0]]
    alerts = run(replace(SPEC, quality=replace(SPEC.quality, merge_gap_ns=0)), [None] * 4, quality=quality)
    assert told(alerts) == [("stuck", "open", 1)]


def test_more_events_than_the_kernels_buffer_holds_all_come_out():
    n = 3000
    alerts = run(replace(SPEC, anomaly=replace(SPEC.anomaly, frames=1, of=1)), [1.5, 0.1] * n)
    assert len(alerts) == 2 * n
    assert len({(a.id, a.seq) for a in alerts}) == 2 * n


@pytest.mark.parametrize(
    "wrong", [{"close_at": 1.2}, {"frames": 6}, {"of": 40}, {"merge_gap_ns": -1}, {"severities": ()}]
)
def test_rules_that_contradict_themselves_are_refused_with_the_key(wrong):
    with pytest.raises(ConfigError, match=r"alert\."):
        LifeCycleSpec(**wrong)


ratios = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 0.79, 0.8, 0.9, 1.0, 1.01, 1.5, 2.5, 5.0]))
steps = st.lists(
    st.tuples(ratios, st.sampled_from([0.2, 1.5]), st.integers(1, 4), st.sampled_from([0, 0, 0, 0, 0, 1, 2])),
    max_size=60,
)
cycles = st.builds(
    dict,
    min_duration=st.integers(0, 6), frames=st.integers(1, 3), of=st.integers(3, 6), merge_gap=st.integers(0, 5),
    cooldown=st.integers(0, 8), update_every=st.integers(0, 5),
)  # fmt: skip


def spec_of(cycle):
    times = {f"{k}_ns": v for k, v in cycle.items() if k not in ("frames", "of")}
    return replace(SPEC, anomaly=LifeCycleSpec(frames=cycle["frames"], of=cycle["of"], **times))


@settings(deadline=None, max_examples=300)
@given(steps, cycles)
def test_the_kernel_tells_what_the_plain_statement_of_the_life_cycle_tells(steps, cycle):
    ts = np.cumsum([s[2] for s in steps]).tolist()
    alerts = run(
        spec_of(cycle), [s[0] for s in steps], own=[None if s[0] is None else s[1] for s in steps], ts=ts,
        continuity=[s[3] for s in steps],
    )  # fmt: skip
    naive = NaiveLifeCycle(**cycle)
    levels = ["warning", "error", "critical"]
    expected = [e for (r, own, _, c), t in zip(steps, ts, strict=True) for e in naive.step(t, r, own, c == 2)]
    got = [
        (a.state, a.reason, a.seq, a.ts_ns, a.opened_ns, a.start_ns, a.end_ns, levels.index(a.severity), a.peak_ratio)
        for a in alerts
    ]
    assert [e[:-1] for e in got] == [e[:-1] for e in expected]
    assert [e[-1] for e in got] == pytest.approx([e[-1] for e in expected])


several = st.lists(st.tuples(st.integers(0, 2), ratios, st.sampled_from([0, 4, 6]), st.integers(0, 2)), max_size=50)


@settings(deadline=None, max_examples=150)
@given(several, st.data())
def test_any_cut_and_any_restart_tell_the_same(steps, data):
    n = len(steps)
    quality = np.zeros((n, C), np.uint8)
    for i, s in enumerate(steps):
        quality[i, s[3]] = s[2]
    rows, verdicts = frames([s[1] for s in steps], asset=[s[0] for s in steps], quality=quality)
    names = ("p0", "p1", "p2")
    whole = decide(rows, verdicts, "t", table(*names), SPEC)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts, state = [], table(*names)
    for lo, hi in zip([0, *cuts], [*cuts, n], strict=True):
        moved = table()
        moved.names.clear(), moved.index.clear()
        for name in names:
            moved.unpack(name, state.pack(state.index[name]))
        state = moved
        parts += decide(rows.take(slice(lo, hi)), _cut(verdicts, lo, hi), "t", state, SPEC)
    assert parts == whole


def _cut(v, lo, hi):
    s = v.scores
    names = [f for f in Scores.__slots__ if f not in ("partition", "model_id", "lag_ns")]
    scores = replace(s, **{f: getattr(s, f)[lo:hi] for f in names})
    return Verdicts(
        scores, v.smoothed[lo:hi], v.ratio[lo:hi], v.own_ratio[lo:hi], v.breached[lo:hi], v.threshold[lo:hi]
    )


def test_every_kind_has_a_machine_of_its_own():
    assert len(set(KINDS)) == len(KINDS) == len(table()["alert.machine"][0])
    assert Continuity.FRESH == 2


def everything_kept(state):
    """All that the life cycles know but which kinds rest."""
    return [state[name].tobytes() for name in alert_columns(C) if name != "alert.resting"]


@settings(deadline=None, max_examples=60)
@given(several, cycles)
def test_a_kind_that_rests_is_left_as_looking_at_it_would_leave_it(steps, cycle):
    n = len(steps)
    quality = np.zeros((n, C), np.uint8)
    for i, s in enumerate(steps):
        quality[i, s[3]] = s[2]
    continuity = [2 if i % 17 == 16 else 0 for i in range(n)]
    rows, verdicts = frames([s[1] for s in steps], asset=[s[0] for s in steps], quality=quality, continuity=continuity)
    spec = replace(spec_of(cycle), quality=replace(SPEC.quality, merge_gap_ns=cycle["merge_gap"]))
    resting, looked_at = table("p0", "p1", "p2"), table("p0", "p1", "p2")
    for i in range(n):
        one = rows.take(slice(i, i + 1)), _cut(verdicts, i, i + 1), "t"
        looked_at["alert.resting"][:] = 0
        assert decide(*one, resting, spec) == decide(*one, looked_at, spec)
        assert everything_kept(resting) == everything_kept(looked_at)
