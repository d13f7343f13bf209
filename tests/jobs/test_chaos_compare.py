import json

import pytest

from connectors.kafka_view import Record
from jobs.chaos_compare import compare


def alert(asset, seq, ratio=1.5, state="open", ident="a"):
    body = {"id": f"{asset}-{ident}", "seq": seq, "asset": asset, "kind": "anomaly", "state": state, "ratio": ratio}
    return asset.encode(), json.dumps(body).encode(), (("ce_id", f"{asset}-{ident}:{seq}".encode()),)


def letter(value, offset):
    return b"in/0", value, (("midwatch_offset", str(offset).encode()),)


def topic(*records):
    return [Record(0, i, *record) for i, record in enumerate(records)]


ALERTS = [alert("p1", 0), alert("p2", 0), alert("p1", 1, 2.5), alert("p2", 1, 0.5, "resolved"), alert("p1", 2, 0.1)]
LETTERS = [letter(b"{", 3), letter(b"{", 9), letter(b"", 11)]


def verdict(alerts=ALERTS, dead=LETTERS):
    return compare(topic(*alerts), topic(*ALERTS), topic(*dead), topic(*LETTERS))


def test_two_runs_that_said_the_same_are_equal_whatever_the_order_across_assets():
    across = [ALERTS[1], ALERTS[0], ALERTS[2], ALERTS[4], ALERTS[3]]
    for alerts in (ALERTS, across):
        found = verdict(alerts, LETTERS[::-1])
        assert found.equal
        assert (found.expected, found.dead_expected, found.examples) == (5, 3, [])


@pytest.mark.parametrize(
    ("alerts", "wrong"),
    [
        ([], {"lost": 5}),
        (ALERTS[1:], {"lost": 1}),
        ([*ALERTS, ALERTS[2], ALERTS[2]], {"doubled": 2}),
        ([*ALERTS, alert("p1", 3)], {"unexpected": 1}),
        ([*ALERTS[:4], alert("p1", 2, 0.1000001)], {"different": 1}),
        ([ALERTS[1], *ALERTS[2:4], ALERTS[4], ALERTS[0]], {"disordered": 1}),
        ([*ALERTS[:4], alert("p1", 2, ident="b")], {"lost": 1, "unexpected": 1}),
    ],
)
def test_an_alert_that_is_lost_doubled_changed_made_up_or_late_is_told(alerts, wrong):
    found = verdict(alerts)
    kinds = ("lost", "doubled", "different", "unexpected", "disordered")
    assert {k: getattr(found, k) for k in kinds if getattr(found, k)} == wrong
    assert not found.equal
    assert found.examples


def test_what_differs_in_an_alert_is_said():
    (example,) = verdict([*ALERTS[:4], alert("p1", 2, 0.25)]).examples
    assert "p1-a:2 of asset 'p1', anomaly open {'ratio': (0.25, 0.1)}" in example


@pytest.mark.parametrize(("dead", "lost", "doubled"), [(LETTERS[:2], 1, 0), ([*LETTERS, LETTERS[0]], 0, 1)])
def test_dead_letters_are_a_multiset(dead, lost, doubled):
    found = verdict(dead=dead)
    assert (found.dead_lost, found.dead_doubled, found.equal) == (lost, doubled, False)


def test_a_changed_header_is_a_difference():
    key, value, _ = ALERTS[0]
    assert verdict([(key, value, ()), *ALERTS[1:]]).different == 1
