from __future__ import annotations

from concurrent.futures import Future

import pytest
from fold_fleet import chain, lines, polled

from connectors.memory import MemoryCommitter, MemoryHistory, MemorySource
from pipeline.errors import BrokerUnavailable, InUse, Rebalanced, StateError
from pipeline.protocols import Restored
from pipeline.runner import Runner

ONE, TWO = ("in", 0), ("in", 1)
LINES = [value for _, _, value in lines()]


class MovingSource(MemorySource):
    """A log whose partitions come and go as the test says; nothing is delivered of one that was not sought."""

    def __init__(self, *places):
        super().__init__({place: [polled(LINES, place[1])] for place in places})
        self.mine, self.taken, self.sought = set(places), [], set()

    def partitions(self):
        return sorted(self.mine)

    def lost(self):
        taken, self.taken = self.taken, []
        return taken

    def take(self, place):
        self.mine.discard(place)
        self.sought.discard(place)
        self.taken.append(place)

    def seek(self, topic, partition, offset):
        super().seek(topic, partition, offset or 0)
        self.sought.add((topic, partition))

    def poll(self, max_rows, timeout_s):
        found = super().poll(max_rows, timeout_s)
        return [p for p in found if (p.topic, p.partition) in self.sought]


class RebalancingCommitter(MemoryCommitter):
    """Refuses the next commits, and moves a partition away meanwhile."""

    def __init__(self, source, away=None, times=1):
        super().__init__()
        self.source, self.away, self.times = source, away, times

    def commit(self, batch):
        if self.times:
            self.times -= 1
            if self.away is not None:
                self.source.take(self.away)
                self.away = None
            raise Rebalanced("the group has other members")
        super().commit(batch)


def runner(source, committer, **options):
    return Runner(chain("pca"), source, committer, max_rows=600, **options)


def test_a_commit_refused_in_a_rebalance_is_made_again_without_what_went_away():
    source = MovingSource(ONE, TWO)
    committer = RebalancingCommitter(source, away=TWO)
    runner(source, committer).step()
    (batch,) = committer.commits
    assert set(batch.positions) == set(batch.states) == {ONE}
    assert {a.evidence.partition for a in batch.alerts} == {0}
    assert {d.partition for d in batch.dead} == {0}


def test_what_is_read_while_a_commit_is_tried_again_is_not_lost():
    source = MovingSource(ONE)
    committer = RebalancingCommitter(source, times=3)
    loop = Runner(chain("pca"), source, committer, max_rows=100)
    loop.run(lambda: False)
    undisturbed = MemoryCommitter()
    Runner(chain("pca"), MovingSource(ONE), undisturbed, max_rows=100).run(lambda: False)
    assert committer.alerts == undisturbed.alerts
    assert committer.commits[-1].positions == {ONE: len(LINES)}


def test_a_commit_that_never_succeeds_is_an_error_in_the_end():
    source = MovingSource(ONE)
    with pytest.raises(BrokerUnavailable):
        runner(source, RebalancingCommitter(source, times=10**6)).step()


@pytest.mark.parametrize(("error", "attempts"), [(BrokerUnavailable, 2), (Rebalanced, 20)])
def test_a_watch_that_is_to_stop_waits_for_a_group_that_moves_but_not_for_a_broker(error, attempts):
    made = []

    class Failing(MemoryCommitter):
        def commit(self, batch):
            made.append(batch)
            raise error("no")

    with pytest.raises(error):
        runner(MovingSource(ONE), Failing()).run(lambda: len(made) >= 2)
    assert len(made) == attempts


def test_what_is_due_between_steps_is_done_before_each():
    told = []
    loop = Runner(chain("pca"), MovingSource(ONE), MemoryCommitter(), max_rows=200, observe=told.append)
    loop.run(lambda: told.count("between") == 3, lambda: told.append("between"))
    assert [entry == "between" for entry in told] == [True, False] * 3


def test_an_error_that_does_not_pass_is_not_tried_again():
    committer = MemoryCommitter()
    committer.fail_next(1, StateError("no"))
    with pytest.raises(StateError):
        runner(MovingSource(ONE), committer).step()


def test_a_partition_that_is_being_restored_holds_back_nobody():
    source, calls = MovingSource(ONE, TWO), {}

    def spawn(call):
        future: Future[Restored | None] = Future()
        calls[call.args] = (future, call)
        return future

    committer = MemoryCommitter()
    loop = runner(source, committer, spawn=spawn)
    loop.step()
    future, call = calls[ONE]
    future.set_result(call())
    loop.step()
    assert [set(b.positions) for b in committer.commits] == [{ONE}]
    future, call = calls[TWO]
    future.set_result(call())
    loop.step()
    assert [set(b.positions) for b in committer.commits] == [{ONE}, {TWO}]


def test_a_partition_that_goes_away_while_it_is_restored_is_forgotten():
    source, calls = MovingSource(ONE), []

    def spawn(call):
        calls.append(Future())
        return calls[-1]

    committer = MemoryCommitter()
    loop = runner(source, committer, spawn=spawn)
    loop.step()
    source.take(ONE)
    loop.step()
    calls[0].set_result(None)
    assert loop.step() is None
    assert committer.commits == []


def test_a_partition_that_comes_back_goes_on_from_what_was_committed_of_it_not_from_what_was_left_behind():
    source, committer = MovingSource(ONE), MemoryCommitter()
    loop = Runner(chain("pca"), source, committer, max_rows=200)
    loop.step()
    kept = committer.restore(*ONE)
    source.take(ONE)
    loop.step()
    elsewhere = Runner(chain("pca"), MovingSource(ONE), committer, max_rows=100)
    elsewhere.step()
    assert committer.restore(*ONE).position == kept.position + 100
    source.mine.add(ONE)
    loop.run(lambda: False)
    undisturbed = MemoryCommitter()
    Runner(chain("pca"), MovingSource(ONE), undisturbed, max_rows=300).run(lambda: False)
    assert committer.alerts == undisturbed.alerts


class LatestSource(MovingSource):
    """Starts at the end of its log."""

    def seek(self, topic, partition, offset):
        start = None if offset is not None else len(LINES)
        super().seek(topic, partition, len(LINES) if offset is None else offset)
        return start


def test_where_a_partition_starts_is_committed_before_anything_came_if_it_would_be_elsewhere_later():
    source, committer = LatestSource(ONE, TWO), MemoryCommitter()
    loop = runner(source, committer)
    assert loop.step() is None
    assert [b.positions for b in committer.commits] == [{ONE: len(LINES), TWO: len(LINES)}]
    assert loop.step() is None
    again = runner(LatestSource(ONE, TWO), committer)
    assert again.step() is None
    assert len(committer.commits) == 1


def test_the_start_of_a_partition_that_went_away_is_not_committed():
    source = LatestSource(ONE, TWO)
    committer = RebalancingCommitter(source, away=TWO)
    runner(source, committer).step()
    assert [b.positions for b in committer.commits] == [{ONE: len(LINES)}]


def test_a_restore_that_fails_for_now_is_tried_again_and_one_that_fails_for_good_ends_the_run():
    errors = [BrokerUnavailable("soon"), StateError("never")]

    class Failing(MemoryCommitter):
        def restore(self, topic, partition):
            raise errors.pop(0)

    loop = runner(MovingSource(ONE), Failing())
    assert loop.step() is None
    with pytest.raises(StateError, match="never"):
        loop.step()


class LentHistory(MemoryHistory):
    """A history of which each partition has one owner at a time; those in `away` have another one."""

    def __init__(self, *away):
        super().__init__()
        self.away, self.mine = set(away), set()

    def take(self, topic, partition):
        if (topic, partition) in self.away:
            raise InUse("another process has it")
        self.mine.add((topic, partition))

    def drop(self, topic, partition):
        self.mine.discard((topic, partition))

    def append(self, topic, partition, *push):
        assert (topic, partition) in self.mine
        super().append(topic, partition, *push)


def test_a_partition_waits_until_its_last_owner_has_let_go_of_its_history_and_the_others_go_on():
    source, committer, history = MovingSource(ONE, TWO), MemoryCommitter(), LentHistory(TWO)
    source.mine = {ONE}
    loop = Runner(chain("pca"), source, committer, history, max_rows=200)
    loop.step()
    source.mine.add(TWO)
    turns = iter(range(100))

    def stop():
        if next(turns) == 40:
            assert committer.commits[-1].positions == {ONE: len(LINES)}
            assert history.mine == {ONE}
            history.away.clear()
        return False

    loop.run(stop)
    assert history.mine == {ONE, TWO}
    for place in (ONE, TWO):
        pushed = [push.position for push in history.pushes[place]]
        assert [first for first, _ in pushed] == [0, *(after for _, after in pushed[:-1])]
        assert pushed[-1][1] == len(LINES)


def test_the_history_of_a_partition_that_goes_away_is_let_go_of_though_its_last_push_was_not_committed():
    source, history = MovingSource(ONE, TWO), LentHistory()
    loop = Runner(chain("pca"), source, RebalancingCommitter(source, away=TWO), history, max_rows=600)
    loop.step()
    assert history.mine == {ONE}


def test_a_history_that_another_process_has_from_the_beginning_is_an_error_before_anything_is_read():
    source = MovingSource(ONE)
    with pytest.raises(InUse):
        Runner(chain("pca"), source, MemoryCommitter(), LentHistory(ONE)).step()
    assert source.poll(1, 0) == []
