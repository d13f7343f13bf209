"""What the whole fold promises, bitwise, with fitted models of every kind."""

from collections import Counter
from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
from fold_fleet import ASSETS, KINDS, chain, lines, polled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.kafka_records import Count, state_records
from connectors.kafka_state import assembled
from pipeline.protocols import Restored
from pipeline.values import Position

LINES = [value for _, _, value in lines()]
N = len(LINES)
few = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
kinds = pytest.mark.parametrize("kind", KINDS)
cuts = st.lists(st.integers(0, N), max_size=6).map(lambda c: [0, *sorted(c), N])


class Told:
    """Everything a run said: alerts and dead letters in order, and every frame's figures by asset and time."""

    def __init__(self):
        self.alerts, self.dead, self.frames = [], [], {}

    def take(self, out, names):
        self.alerts += out.alerts
        self.dead += out.dead
        for v in out.verdicts:
            s = v.scores
            for i in range(len(s)):
                key = (names[s.asset[i]], int(s.ts_ns[i]))
                figures = (
                    s.score[i],
                    v.smoothed[i],
                    v.ratio[i],
                    v.own_ratio[i],
                    s.coverage[i],
                    *s.by_channel[i],
                    *s.expected[i],
                )
                assert key not in self.frames
                self.frames[key] = (np.array(figures, np.float32).tobytes(), int(s.status[i]))

    def __eq__(self, other):
        return (self.alerts, self.dead, self.frames) == (other.alerts, other.dead, other.frames)

    def by_asset(self):
        plain = [replace(a, evidence=Position("", 0, 0)) for a in self.alerts]
        return {asset: [a for a in plain if a.asset == asset] for asset in ASSETS}

    def letters(self):
        """Return how often each dead letter came, wherever in the log it was."""
        return Counter(replace(d, offset=0) for d in self.dead)


def run(kind, pieces, **options):
    """Push pieces [(partition, first offset, messages)] one after another."""
    told, fold = Told(), chain(kind, **options)
    for partition, first, messages in pieces:
        if messages:
            out = fold.push([polled(messages, partition, first)])
            told.take(out, fold.assets("in", partition))
    return told


def whole(kind, **options):
    return run(kind, [(0, 0, LINES)], **options)


@kinds
def test_the_feed_has_what_the_properties_are_about(kind):
    told = whole(kind)
    assert {(a.asset, a.kind) for a in told.alerts} >= {("p0", "anomaly"), ("p1", "stuck"), ("p2", "missing")}
    assert [d.reason for d in told.dead] == ["not_json"]
    assert {status for _, status in told.frames.values()} >= {0, 1, 2}


@kinds
@few
@given(cuts=cuts)
def test_cutting_the_input_into_other_micro_batches_changes_nothing(kind, cuts):
    pieces = [(0, a, LINES[a:b]) for a, b in pairwise(cuts)]
    assert run(kind, pieces) == whole(kind)


@kinds
@few
@given(cuts=cuts)
def test_stopping_anywhere_and_going_on_from_the_snapshot_changes_nothing(kind, cuts):
    told, states = Told(), {}
    for a, b in pairwise(cuts):
        fold = chain(kind)
        fold.restore("in", 0, Restored(a, list(states.values())))
        if a < b:
            told.take(fold.push([polled(LINES[a:b], 0, a)]), fold.assets("in", 0))
            states |= {s.asset: s for s in fold.take_states({("in", 0): (1, 0)})[0].get(("in", 0), ())}
    assert told == whole(kind)


class CompactedTopic:
    """The state topic of one partition after compaction, and the numbers of its commits."""

    def __init__(self):
        self.newest, self.count, self.model_ids = {}, Count(), []

    def commit(self, fold, every, position):
        rotation = {("in", 0): self.count.rotation(every)}
        states, deltas = fold.take_states(rotation)
        self.count = self.count.next(every)
        of_partition = (states.get(("in", 0), ()), deltas.get(("in", 0)))
        for record in state_records("state", 0, self.count, position, *of_partition, most_bytes=6000):
            self.newest[record.key] = record.value

    def restored(self):
        state = assembled(self.newest, "state topic")
        assert (state.newest.n, state.newest.every, state.newest.since) == astuple(self.count)
        return Restored(state.newest.position, state.assets, state.deltas)


@kinds
@few
@given(cuts=st.lists(st.integers(0, N), max_size=14).map(lambda c: [0, *sorted(c), N]), data=st.data())
def test_stopping_anywhere_and_going_on_from_old_snapshots_and_what_changed_since_changes_nothing(kind, cuts, data):
    told, topic, fold = Told(), CompactedTopic(), chain(kind)
    for a, b in pairwise(cuts):
        if a == b:
            continue
        if topic.newest and data.draw(st.booleans(), "stopped"):
            fold = chain(kind)
            fold.restore("in", 0, topic.restored())
        told.take(fold.push([polled(LINES[a:b], 0, a)]), fold.assets("in", 0))
        topic.commit(fold, data.draw(st.sampled_from([1, 2, 4, 4, 4]), "K"), b)
    assert told == whole(kind)


@kinds
@few
@given(cuts=cuts, seed=st.integers(0, 5))
def test_partitions_in_any_interleaving_tell_what_each_tells_alone(kind, cuts, seed):
    place = {asset: int(p) for asset, p in zip(ASSETS, np.random.default_rng(seed).permutation(3), strict=True)}
    alone = {p: [v for asset, _, v in lines() if place[asset] == p] for p in range(3)}
    expected = run(kind, [(p, 0, alone[p]) for p in range(3)])
    told, fold, done = Told(), chain(kind), dict.fromkeys(range(3), 0)
    for share in [c / N for c in cuts[1:]]:
        batch = []
        for p in range(3):
            end = int(share * len(alone[p]))
            if end > done[p]:
                batch.append(polled(alone[p][done[p] : end], p, done[p]))
                done[p] = end
        out = fold.push(batch)
        for v in out.verdicts:
            told.take(replace(out, verdicts=[v], alerts=[], dead=[]), fold.assets("in", v.scores.partition))
        told.alerts += out.alerts
    assert told.frames == expected.frames
    assert told.by_asset() == expected.by_asset()


@kinds
@few
@given(seed=st.integers(0, 10_000))
def test_a_shuffle_within_the_lateness_changes_nothing(kind, seed):
    late_s = 6
    g = np.random.default_rng(seed)
    order = np.argsort([t + g.uniform(0, late_s) for _, t, _ in lines()], kind="stable")
    straight = whole(kind, lateness_s=late_s)
    shuffled = run(kind, [(0, 0, [LINES[i] for i in order])], lateness_s=late_s)
    assert shuffled.frames == straight.frames
    assert shuffled.by_asset() == straight.by_asset()
    assert shuffled.letters() == straight.letters()


@kinds
@few
@given(at=st.integers(1, N - 1), seed=st.integers(0, 10_000))
def test_no_future_row_touches_an_earlier_score(kind, at, seed):
    future = [LINES[i] for i in at + np.random.default_rng(seed).permutation(N - at)]
    before = run(kind, [(0, 0, LINES[:at])])
    assert before.frames.items() <= run(kind, [(0, 0, LINES[:at] + future)]).frames.items()
    assert before.frames.items() <= whole(kind).frames.items()
