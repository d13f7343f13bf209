from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.selection import AlertInterval, Label, Reason, Verb, select_normal, settle
from pipeline.errors import InputError, ShapeError

N = 100
TS = np.arange(N, dtype=np.int64) * 10  # row i is at 10 i ns
GOOD = np.zeros(N, np.bool_)


def alert(start_row: int, end_row: int | None, id: str = "a", asset: str = "m01") -> AlertInterval:  # noqa: A002
    return AlertInterval(id, asset, 10 * start_row, None if end_row is None else 10 * end_row)


def said(verb: Verb, alert_id: str = "a", who: str = "ada", when_ns: int = 0) -> Label:
    return Label(verb, who, when_ns, alert_id=alert_id)


def stretch(verb: Verb, start_row: int, end_row: int | None, asset: str = "m01", who: str = "ada") -> Label:
    return Label(verb, who, 0, asset=asset, start_ns=10 * start_row, end_ns=None if end_row is None else 10 * end_row)


def chosen(alerts=(), labels=(), quality_bad=GOOD, guard_rows=0, **options):
    return select_normal(TS, "m01", alerts, labels, quality_bad, 10 * guard_rows, **options)


def rows_with(selection, reason: Reason) -> list[int]:
    return np.flatnonzero(selection.reason == reason).tolist()


def test_rows_of_an_alert_and_its_guard_band_are_left_out():
    s = chosen([alert(40, 50)], guard_rows=3)
    assert rows_with(s, Reason.IN_ALERT) == list(range(40, 50))
    assert rows_with(s, Reason.GUARD_BAND) == [37, 38, 39, 50, 51, 52]
    assert s.counts[Reason.SELECTED] == s.mask.sum() == N - 16


def test_an_open_alert_keeps_everything_after_it_out():
    assert rows_with(chosen([alert(40, None)], guard_rows=3), Reason.IN_ALERT) == list(range(40, N))


def test_other_assets_alerts_and_labels_do_not_matter():
    s = chosen([alert(40, 50, asset="m02")], [said(Verb.CONFIRM), stretch(Verb.KNOWN_EVENT, 0, 90, asset="m02")])
    assert s.mask.all()
    assert s.unmatched == ()


def test_a_dismissed_alert_is_kept_in_with_its_guard_band():
    s = chosen([alert(40, 42)], [said(Verb.DISMISS)], guard_rows=1)
    assert s.mask.all()
    assert s.taken_back == 4


def test_a_dismissal_does_not_lift_another_alert_over_the_same_rows():
    s = chosen([alert(40, 44), alert(42, 46, "b")], [said(Verb.DISMISS)])
    assert rows_with(s, Reason.IN_ALERT) == [42, 43, 44, 45]
    assert s.taken_back == 2


def test_rows_that_dismissals_let_in_are_at_most_five_percent_of_what_is_selected():
    s = chosen([alert(40, 60)], [said(Verb.DISMISS)])
    assert s.taken_back == 4  # 4 of 84; 5 of 85 would be more than 5 %
    assert s.mask.sum() == 84
    assert rows_with(s, Reason.OVER_CAP) == list(range(44, 60))


def test_the_cap_is_filled_by_the_alerts_that_were_dismissed_first():
    alerts = [alert(10, 13, "a"), alert(50, 53, "b")]
    labels = [said(Verb.DISMISS, "a", when_ns=9), said(Verb.DISMISS, "b", when_ns=3)]
    s = chosen(alerts, labels)
    assert s.taken_back == 4
    assert rows_with(s, Reason.OVER_CAP) == [11, 12]


@pytest.mark.parametrize(("share", "taken"), [(0.0, 0), (1.0, 100), (0.5, 0)])
def test_the_cap_can_be_closed_or_switched_off(share, taken):
    s = chosen([alert(0, None)], [said(Verb.DISMISS)], dismissed_share=share)  # nothing else is selected at all
    assert s.taken_back == taken


@given(
    share=st.floats(0, 1),
    dismissed=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30)), max_size=4),
    standing=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30)), max_size=3),
    guard_rows=st.integers(0, 5),
)
@settings(deadline=None, max_examples=100)
def test_the_cap_holds_and_every_row_is_counted_once(share, dismissed, standing, guard_rows):
    alerts = [alert(s, s + n, f"d{i}") for i, (s, n) in enumerate(dismissed)]
    alerts += [alert(s, s + n, f"s{i}") for i, (s, n) in enumerate(standing)]
    labels = [said(Verb.DISMISS, f"d{i}", when_ns=i) for i in range(len(dismissed))]
    s = chosen(alerts, labels, guard_rows=guard_rows, dismissed_share=share)
    assert sum(s.counts.values()) == N
    assert s.taken_back <= share * s.mask.sum() + 1e-6
    for row in range(N):  # the definition, spelt out
        near = [a for a in alerts if a.start_ns - 10 * guard_rows <= TS[row] < a.end_ns + 10 * guard_rows]
        if any(a.id.startswith("s") for a in near):
            inside = any(a.id.startswith("s") and a.start_ns <= TS[row] < a.end_ns for a in near)
            assert s.reason[row] == (Reason.IN_ALERT if inside else Reason.GUARD_BAND)
        elif near:
            assert s.reason[row] in (Reason.SELECTED, Reason.OVER_CAP)
        else:
            assert s.reason[row] == Reason.SELECTED


def test_a_fault_that_returns_every_night_stays_out_until_somebody_dismisses_it():
    nights = [alert(10 * k + 5, 10 * k + 8, f"n{k}") for k in range(10)]
    assert chosen(nights).mask.sum() == 70
    s = chosen(nights, [said(Verb.DISMISS, f"n{k}", when_ns=k) for k in range(10)])
    assert s.taken_back == 3  # and even then it is a small part of what is learned


def test_a_confirmed_fault_is_left_out_under_its_own_reason():
    s = chosen([alert(40, 50)], [said(Verb.CONFIRM)], guard_rows=1)
    assert rows_with(s, Reason.CONFIRMED) == list(range(40, 50))
    assert rows_with(s, Reason.GUARD_BAND) == [39, 50]


def test_a_fault_without_an_alert_can_be_confirmed_by_its_time():
    assert rows_with(chosen(labels=[stretch(Verb.CONFIRM, 5, 8)]), Reason.CONFIRMED) == [5, 6, 7]


def test_maintenance_is_left_out_with_its_alerts_and_may_still_go_on():
    s = chosen([alert(90, None)], [stretch(Verb.KNOWN_EVENT, 80, None)])
    assert rows_with(s, Reason.KNOWN_EVENT) == list(range(80, N))


def test_a_stretch_that_is_dismissed_dismisses_the_alerts_that_start_in_it():
    alerts = [alert(40, 42, "in"), alert(60, 62, "out")]
    s = chosen(alerts, [stretch(Verb.DISMISS, 30, 60)])
    assert rows_with(s, Reason.IN_ALERT) == [60, 61]
    assert s.taken_back == 2


def test_before_a_change_point_nothing_is_learned_and_after_it_its_alert_is_normal_without_a_cap():
    s = chosen([alert(60, None)], [said(Verb.CHANGE_POINT)], guard_rows=5)
    assert rows_with(s, Reason.BEFORE_CHANGE) == list(range(60))
    assert rows_with(s, Reason.SELECTED) == list(range(60, N))
    assert s.taken_back == 0


def test_a_bare_change_point_takes_no_alert_back_and_the_newest_one_counts():
    labels = [stretch(Verb.CHANGE_POINT, 10, None), stretch(Verb.CHANGE_POINT, 30, None)]
    s = chosen([alert(60, None)], labels)
    assert rows_with(s, Reason.BEFORE_CHANGE) == list(range(30))
    assert rows_with(s, Reason.IN_ALERT) == list(range(60, N))


def test_a_change_point_with_an_end_takes_back_the_alerts_that_start_in_it():
    s = chosen([alert(60, None)], [stretch(Verb.CHANGE_POINT, 55, 65)])
    assert rows_with(s, Reason.BEFORE_CHANGE) == list(range(55))
    assert rows_with(s, Reason.SELECTED) == list(range(55, N))


def test_a_sensor_fault_stays_out_whatever_was_dismissed():
    bad = GOOD.copy()
    bad[41] = True
    s = chosen([alert(40, 43)], [said(Verb.DISMISS)], quality_bad=bad)
    assert rows_with(s, Reason.QUALITY) == [41]
    assert s.taken_back == 2


def test_a_row_with_several_reasons_is_counted_under_the_strongest():
    everywhere = np.ones(N, np.bool_)
    labels = [said(Verb.CONFIRM), stretch(Verb.KNOWN_EVENT, 0, None)]
    alerts = [alert(0, None)]
    assert chosen(alerts, labels, everywhere, warming=everywhere).counts[Reason.QUALITY] == N
    assert chosen(alerts, labels, warming=everywhere).counts[Reason.WARMING] == N
    assert chosen(alerts, labels).counts[Reason.KNOWN_EVENT] == N
    assert chosen(alerts, labels[:1]).counts[Reason.CONFIRMED] == N
    assert chosen(alerts, [stretch(Verb.CHANGE_POINT, 99, None)]).counts[Reason.BEFORE_CHANGE] == N - 1


def test_the_last_word_of_a_person_holds_whatever_the_order_of_the_log():
    first, second = said(Verb.DISMISS, when_ns=1), said(Verb.CONFIRM, when_ns=2)
    for labels in ([first, second], [second, first]):
        in_force, conflicts = settle(labels)
        assert in_force == (second,)
        assert conflicts == ()
    same_time = replace(second, when_ns=1)
    assert settle([first, same_time])[0] == (same_time,)


def test_people_who_disagree_are_reported_and_the_alert_counts_as_not_dismissed():
    labels = [said(Verb.DISMISS, who="ada"), said(Verb.CONFIRM, who="bob"), said(Verb.DISMISS, "b", who="bob")]
    s = chosen([alert(40, 50), alert(60, 61, "b")], labels)
    assert [{(label.who, label.verb) for label in c.labels} for c in s.conflicts] == [
        {("ada", Verb.DISMISS), ("bob", Verb.CONFIRM)}
    ]
    assert rows_with(s, Reason.CONFIRMED) == list(range(40, 50))
    assert s.mask[60]


def test_people_who_agree_are_no_conflict():
    s = chosen([alert(40, 42)], [said(Verb.DISMISS, who="ada"), said(Verb.DISMISS, who="bob")])
    assert s.conflicts == ()
    assert s.mask.all()


def test_a_label_about_an_alert_nobody_handed_over_is_reported():
    lost = said(Verb.DISMISS, "gone")
    assert chosen([alert(40, 42)], [lost]).unmatched == (lost,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs an alert id, or an asset and a start time"),
        ({"asset": "m01"}, "needs an alert id, or an asset and a start time"),
        ({"start_ns": 5}, "needs an alert id, or an asset and a start time"),
        ({"alert_id": "a", "asset": "m01"}, "give one of them"),
        ({"alert_id": "a", "end_ns": 5}, "give one of them"),
        ({"asset": "m01", "start_ns": 5, "end_ns": 5}, "ends at 5, not after its start at 5"),
    ],
)
def test_a_label_that_means_nothing_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Label(Verb.DISMISS, "ada", 0, **fields)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="quality_bad"):
        chosen(quality_bad=GOOD[:-1])
    with pytest.raises(ShapeError, match="warming is uint8"):
        chosen(warming=GOOD.astype(np.uint8))
    with pytest.raises(InputError, match="row 1 is not later"):
        select_normal(np.zeros(N, np.int64), "m01", [], [], GOOD, 0)
    with pytest.raises(InputError, match="alert 'a' is there 2 times"):
        chosen([alert(1, None), alert(1, 5)])
    with pytest.raises(InputError, match="before its start"):
        chosen([alert(5, 1)])
    with pytest.raises(InputError, match="guard_ns"):
        chosen(guard_rows=-1)
    with pytest.raises(InputError, match="dismissed_share"):
        chosen(dismissed_share=1.5)


def test_times_at_the_edge_of_int64_do_not_overflow():
    edge = AlertInterval("a", "m01", np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    assert chosen([edge], guard_rows=10**15).counts[Reason.IN_ALERT] == N


def test_no_rows_are_no_problem():
    empty = np.empty(0, np.int64)
    s = select_normal(empty, "m01", [alert(1, 2)], [], np.empty(0, np.bool_), 5)
    assert len(s.mask) == 0
    assert sum(s.counts.values()) == 0
