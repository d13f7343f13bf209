import math
import time

import pytest

from jobs.chaos_stalls import Stall, Stalls, Watcher, quantile, recoveries
from pipeline.errors import BrokerUnavailable


def seen(*looks, partitions=1):
    stalls = Stalls(partitions)
    for look in looks:
        stalls.see(*look)
    return stalls


def test_a_partition_stalls_from_its_last_progress_to_its_next_while_it_has_lag():
    stalls = seen((0.0, [1], [5]), (0.1, [2], [5]), (0.2, [2], [6]), (3.0, [2], [9]), (3.1, [9], [10]))
    assert stalls.after(0, 1.0) == Stall(0.1, 3.1)
    assert stalls.longest() == pytest.approx(3.0)
    assert stalls.longest(since=0.2) == 0.0


def test_a_partition_with_nothing_to_read_does_not_stall():
    stalls = seen(
        (0.0, [5], [5]), (10.0, [5], [5]), (20.0, [5], [6]), (20.5, [6], [6]), (20.9, [6], [6]), (21.3, [6], [6])
    )
    # New input may have come right after the look before: ten seconds of silence are ten seconds of nothing to read.
    assert max(s.seconds for s in stalls.found[0]) == 10.0
    assert stalls.after(0, 20.2) == Stall(20.0, 20.5)


def test_a_stall_that_goes_on_has_no_end():
    stalls = seen((0.0, [1], [5]), (1.0, [1], [9]))
    assert stalls.after(0, 0.9) is None


def test_a_commit_that_is_seen_after_its_worker_died_does_not_hide_the_stall_that_follows():
    looks = [(0.0, 1), (0.5, 2), (1.0, 3), (4.0, 4), (4.5, 5), (5.5, 6)]
    stalls = seen(*[(at, [committed], [9]) for at, committed in looks])
    assert stalls.after(0, 0.9) == Stall(1.0, 4.0)
    assert stalls.after(0, 1.1) == Stall(1.0, 4.0)
    assert stalls.after(0, 3.9) == Stall(1.0, 4.0)


def test_nothing_stalls_before_the_first_commit():
    stalls = seen((0.0, [0], [5]), (50.0, [0], [5]), (60.0, [2], [5]), (61.0, [5], [5]))
    assert stalls.longest() == 1.0
    assert stalls.after(0, 30.0) is None


def test_a_recovery_is_the_stall_of_the_slots_slowest_partition():
    looks = [(0.0, [1, 1, 1]), (1.0, [2, 2, 2]), (3.0, [3, 2, 3]), (5.0, [4, 3, 4])]
    stalls = seen(*[(at, committed, [9, 9, 9]) for at, committed in looks], partitions=3)
    held = lambda slot, _: [[0, 1], [2]][slot]  # noqa: E731
    assert recoveries([(0, 1.5)], stalls, held, []) == [4.0]
    assert recoveries([(1, 1.5)], stalls, held, []) == [2.0]


def test_a_slot_that_was_struck_twice_and_one_that_lost_its_broker_tell_nothing_of_recovery():
    stalls = seen((0.0, [1], [9]), (1.0, [2], [9]), (4.0, [3], [9]), (5.0, [4], [9]))
    assert recoveries([(0, 1.5), (0, 2.0)], stalls, lambda *_: [0], []) == []
    assert recoveries([(0, 1.5)], stalls, lambda *_: [0], [(3.0, 3.5)]) == []
    assert recoveries([(0, 1.5)], stalls, lambda *_: [0], [(6.0, 7.0)]) == [3.0]
    assert recoveries([(0, 9.0)], stalls, lambda *_: [0], []) == []


def test_quantiles_are_values_that_were_there():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([1.0, 2.0], 0.99) == 2.0
    assert math.isnan(quantile([], 0.5))


class Fed:
    """A feed that is read one message a look, and whose coordinator is away for one."""

    def __init__(self):
        self.looks = 0

    def committed(self):
        self.looks += 1
        if self.looks == 2:
            raise BrokerUnavailable("away")
        return [min(self.looks, 4)]

    def ends(self):
        return [4]

    def owners(self):
        return {0: "watch-1" if self.looks < 6 else "watch-2"}


def test_a_watcher_sees_when_all_is_read_and_goes_on_looking_while_brokers_are_away():
    view = Fed()
    watcher = Watcher(view, 1)
    assert not watcher.drained(0.05)
    assert watcher.drained(10.0)
    assert view.looks >= 4
    assert watcher.held("watch-1", time.monotonic()) == [0]
    assert watcher.held("watch-1", time.monotonic() - 60) == []
    watcher.close()
    looked = view.looks
    time.sleep(0.25)
    assert view.looks == looked
