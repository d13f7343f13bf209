from __future__ import annotations

from jobs.hot import busy, hot

ONE, TWO, THREE, FOUR = (("readings", p) for p in range(4))


def test_a_partition_with_more_than_twice_its_share_that_falls_behind_is_hot() -> None:
    read = {ONE: 10, TWO: 5, THREE: 5, FOUR: 80}
    assert hot(read, {FOUR: 9000, ONE: 9000}, 4096) == [("readings", 3, 0.8, 9000)]


def test_a_busy_partition_that_keeps_up_is_not_hot() -> None:
    read = {ONE: 10, TWO: 5, THREE: 5, FOUR: 80}
    assert busy(read) == [FOUR]
    assert hot(read, {FOUR: 4096}, 4096) == []


def test_even_partitions_an_idle_feed_and_one_or_two_partitions_have_none() -> None:
    assert busy({ONE: 30, TWO: 31, THREE: 29}) == []
    assert busy({ONE: 0, TWO: 0, THREE: 0}) == []
    assert busy({ONE: 1, TWO: 999}) == []
