"""Which partitions carry more than their share of a feed, and fall behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.values import Place

_TIMES_THE_SHARE = 2.0


class Hot(NamedTuple):
    """One hot partition: its share of what was read, and how many messages wait in it."""

    topic: str
    partition: int
    share: float
    lag: int


def busy(read: Mapping[Place, int]) -> list[Place]:
    """Return the partitions of which more than twice an even share was read; none where there are fewer than three."""
    total = sum(read.values())
    if len(read) < 3 or not total:
        return []
    return [place for place, count in read.items() if count * len(read) > _TIMES_THE_SHARE * total]


def hot(read: Mapping[Place, int], lag: Mapping[Place, int], most: int) -> list[Hot]:
    """Return the busy partitions in which more than `most` messages wait.

    Parameters
    ----------
    read : (topic, partition) -> messages read in some while, idle partitions with 0.
    lag : (topic, partition) -> messages that wait.
    """
    total = sum(read.values())
    return [Hot(*place, read[place] / total, lag[place]) for place in busy(read) if lag.get(place, 0) > most]
