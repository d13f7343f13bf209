"""Time without scores, from outside: how long each partition's committed offset stood still while it had lag."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.errors import BrokerUnavailable

if TYPE_CHECKING:
    from connectors.kafka_view import FeedView

_EVERY_S: Final = 0.1
_SEEN_S: Final = 1.0  # after which a commit has been seen, also on a loaded machine
_OWNERS_EVERY: Final = 5  # looks


@dataclass(frozen=True, slots=True)
class Stall:
    """A partition had messages to read and committed none of them, from one time to another (monotonic, s)."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.start


class Stalls:
    """The progress of n partitions, from what was seen of them at some times. It counts from their first commit on."""

    def __init__(self, partitions: int) -> None:
        self.found: list[list[Stall]] = [[] for _ in range(partitions)]  # by partition, one after the other
        self.lag = [0] * partitions
        self._committed = [0] * partitions
        self._since = [math.nan] * partitions  # when it was last seen to move on, or to have nothing to do

    def see(self, now: float, committed: Sequence[int], ends: Sequence[int]) -> None:
        """Take what the offsets are at a time."""
        for p, (at, end) in enumerate(zip(committed, ends, strict=True)):
            started = not math.isnan(self._since[p])
            if at > self._committed[p] or (started and self.lag[p] <= 0):
                if started:
                    self.found[p].append(Stall(self._since[p], now))
                self._since[p] = now
            self._committed[p] = at
            self.lag[p] = end - at

    def longest(self, since: float = 0.0) -> float:
        """Return the longest stall of any partition that began after a time."""
        return max((s.seconds for stalls in self.found for s in stalls if s.start >= since), default=0.0)

    def standing(self, now: float) -> float:
        """Return for how long the slowest partition has stood still by now."""
        waits = [now - since for since, lag in zip(self._since, self.lag, strict=True) if lag > 0]
        return max((math.inf if math.isnan(wait) else wait for wait in waits), default=0.0)

    def after(self, partition: int, at: float) -> Stall | None:
        """Return how long a partition stood still after it was struck: its longest stall within a second of a time.

        What was committed just before may be seen only after: then the stall around that time is not the one.
        None while that second, or the stall it ends in, is not over, and where nothing had begun.
        """
        stalls = self.found[partition]
        first = bisect_left(stalls, at, key=lambda stall: stall.end)
        last = bisect_left(stalls, at + _SEEN_S, key=lambda stall: stall.end)
        if last == len(stalls) or stalls[first].start > at:
            return None
        return max(stalls[first : last + 1], key=lambda stall: stall.seconds)


def recoveries(
    deaths: Sequence[tuple[int, float]],
    stalls: Stalls,
    held: Callable[[int, float], Sequence[int]],
    apart: Sequence[tuple[float, float]],
) -> list[float]:
    """Return for deaths of workers how long the slowest partition of the slot stood still around them (s).

    Left out are deaths whose slot was struck again before all of its partitions had moved on, and those that fall into
    a time when something else was broken: they do not tell how long a recovery takes.

    Parameters
    ----------
    deaths : slot and time of each.
    held : slot, time -> the partitions that it had then.
    apart : from when to when (monotonic, s) something else was broken.
    """
    out = []
    for slot, at in deaths:
        around = [stall for p in held(slot, at) if (stall := stalls.after(p, at)) is not None]
        if not around:
            continue
        start, end = min(stall.start for stall in around), max(stall.end for stall in around)
        struck = sum(other == slot and start <= when <= end for other, when in deaths) > 1
        if not struck and not any(first <= end and start <= last for first, last in apart):
            out.append(max(stall.seconds for stall in around))
    return out


class Watcher:
    """Looks at a feed ten times a second, on a thread of its own, until it is closed."""

    def __init__(self, view: FeedView, partitions: int) -> None:
        self.stalls = Stalls(partitions)
        self._view = view
        self._over = threading.Event()
        self._looked = 0
        self._owners: list[tuple[float, dict[int, str]]] = []  # when, and who had which partition from then on
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def held(self, member: str, at: float) -> list[int]:
        """Return the partitions that a member of the group had at a time, as far as was seen."""
        owners = next((owners for when, owners in reversed(self._owners) if when <= at), {})
        return [partition for partition, owner in owners.items() if owner == member]

    def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is left to be read; return whether that came true."""
        deadline = time.monotonic() + timeout_s
        seen = self._looked
        # Twice: the look that goes on now may have begun before the last message was sent.
        while self._looked < seen + 2 or any(self.stalls.lag):
            if time.monotonic() > deadline:
                return False
            time.sleep(_EVERY_S)
        return True

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S):
            try:
                committed, ends = self._view.committed(), self._view.ends()
                self.stalls.see(time.monotonic(), committed, ends)
                self._looked += 1
                if self._looked % _OWNERS_EVERY == 1:
                    self._see_owners(self._view.owners())
            except BrokerUnavailable:
                continue  # the next look tells how long it lasted

    def _see_owners(self, owners: dict[int, str]) -> None:
        if owners and (not self._owners or owners != self._owners[-1][1]):
            self._owners.append((time.monotonic(), owners))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that a share `q` of all does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(q * 1000) * len(ordered) // 1000) - 1)] if ordered else float("nan")
