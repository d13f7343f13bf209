"""Sources, committers, sinks and histories that live in memory, with buttons for faults: for tests and demos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

import numpy as np

from pipeline.errors import BrokerUnavailable, PipelineError, StateError
from pipeline.protocols import AssetState, Batch, Restored
from pipeline.values import Alert, DeadLetter, Polled, Rows, Verdicts


class Fault(Enum):
    """What can stand between two `Polled` of a `MemorySource`. Each happens once, at the start of a poll."""

    CRASH = "crash"  # poll raises Crash, and the source forgets where it was: the process was killed
    PAUSE = "pause"  # the partition has nothing more for this poll
    ERROR = "error"  # poll raises BrokerUnavailable


class Crash(Exception):  # noqa: N818 - not an error of midwatch: the end of a process, as a test sees it
    """The process was killed here."""


def messages(
    topic: str,
    partition: int,
    values: Sequence[bytes | None],
    *,
    first: int = 0,
    log_ts_ns: int = 0,
    keys: Sequence[bytes | None] | None = None,
) -> Polled:
    """Return `values` as messages with the offsets `first`, `first` + 1, ..., all taken by the log at `log_ts_ns`."""
    n = len(values)
    return Polled(topic, partition, np.arange(first, first + n), np.full(n, log_ts_ns, np.int64), list(values), keys)


class MemorySource:
    """A finite log in memory.

    Parameters
    ----------
    logs : (topic, partition) -> what is in it, in order: messages, with faults between them.
    """

    def __init__(self, logs: Mapping[tuple[str, int], Sequence[Polled | Fault]]) -> None:
        self._logs = {key: list(items) for key, items in logs.items()}
        self._at = dict.fromkeys(logs, (0, 0))  # item, message within it

    def partitions(self) -> Sequence[tuple[str, int]]:
        """Return the (topic, partition) pairs."""
        return list(self._logs)

    def lost(self) -> Sequence[tuple[str, int]]:
        """Return nothing: a partition here is never taken away."""
        return ()

    def seek(self, topic: str, partition: int, offset: int | None) -> None:
        """Go on at the first message whose offset is `offset` or more; None: where it is."""
        if offset is None:
            return
        items = self._logs[topic, partition]
        for i, item in enumerate(items):
            if isinstance(item, Polled) and len(item) and item.offset[-1] >= offset:
                self._at[topic, partition] = (i, int(np.searchsorted(item.offset, offset)))
                return
        self._at[topic, partition] = (len(items), 0)

    def poll(self, max_rows: int, timeout_s: float) -> list[Polled]:
        """Return up to `max_rows` messages, from the partitions in order; never waits."""
        out: list[Polled] = []
        left = max_rows
        for key in self._logs:
            while left > 0:
                item = self._next(key)
                if isinstance(item, Fault):
                    if out and item is not Fault.PAUSE:
                        return out  # hand over what was read before the fault
                    self._logs[key].remove(item)
                    self._strike(item, key)
                    break
                if item is None:
                    break
                out.append(self._cut(key, item, left))
                left -= len(out[-1])
        return out

    def ended(self) -> bool:
        """Return whether every message was handed over."""
        return all(self._next(key) is None for key in self._logs)

    def close(self) -> None:
        """Nothing to let go of."""

    def _next(self, key: tuple[str, int]) -> Polled | Fault | None:
        items, (i, j) = self._logs[key], self._at[key]
        while i < len(items):
            item = items[i]
            if isinstance(item, Fault) or j < len(item):
                self._at[key] = (i, j)
                return item
            i, j = i + 1, 0
        return None

    def _cut(self, key: tuple[str, int], item: Polled, most: int) -> Polled:
        i, j = self._at[key]
        stop = min(j + most, len(item))
        self._at[key] = (i, stop)
        return replace(
            item,
            offset=item.offset[j:stop],
            log_ts_ns=item.log_ts_ns[j:stop],
            value=item.value[j:stop],
            key=None if item.key is None else item.key[j:stop],
            end=int(item.offset[stop]) if stop < len(item) else item.end,
        )

    def _strike(self, fault: Fault, key: tuple[str, int]) -> None:
        if fault is Fault.CRASH:
            self._at = dict.fromkeys(self._logs, (0, 0))
            raise Crash(f"killed while reading {key}")
        if fault is Fault.ERROR:
            raise BrokerUnavailable(f"{key} does not answer: this memory source was told not to")


class MemoryCommitter:
    """Keeps every batch that was committed, in order, in `commits`."""

    def __init__(self) -> None:
        self.commits: list[Batch] = []
        self._errors: list[PipelineError] = []
        self._crash: Literal["", "before", "after"] = ""

    def fail_next(self, times: int, error: PipelineError) -> None:
        """Let the next `times` commits raise `error` and change nothing."""
        self._errors += [error] * times

    def crash_next(self, when: Literal["before", "after"]) -> None:
        """Let the next commit be the last thing that the process does: not done, or done."""
        self._crash = when

    def restore(self, topic: str, partition: int) -> Restored | None:
        """Return the newest position and every asset's newest state."""
        key = (topic, partition)
        position: int | None = None
        states: dict[str, AssetState] = {}
        for batch in self.commits:
            position = batch.positions.get(key, position)
            states.update((state.asset, state) for state in batch.states.get(key, ()))
        return None if position is None else Restored(position, list(states.values()))

    def rotation(self, topic: str, partition: int) -> tuple[int, int]:
        """Return that everything that changed is saved in full."""
        return (1, 0)

    def commit(self, batch: Batch) -> None:
        """Take a batch, unless a button was pressed.

        Raises
        ------
        StateError : a position would go backwards.
        """
        if self._errors:
            raise self._errors.pop(0)
        when, self._crash = self._crash, ""
        if when == "before":
            raise Crash("killed before the commit")
        for (topic, partition), position in batch.positions.items():
            restored = self.restore(topic, partition)
            if restored is not None and position < restored.position:
                raise StateError(f"{topic}[{partition}] would go back from offset {restored.position} to {position}")
        self.commits.append(batch)
        if when == "after":
            raise Crash("killed after the commit")

    def close(self) -> None:
        """Nothing to let go of."""

    @property
    def alerts(self) -> list[Alert]:
        """Everything that was published, in order."""
        return [alert for batch in self.commits for alert in batch.alerts]

    @property
    def dead(self) -> list[DeadLetter]:
        """Every dead letter, in order."""
        return [letter for batch in self.commits for letter in batch.dead]


class ListSink:
    """Keeps alerts and dead letters in lists; an alert that comes again is taken once."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.dead: list[DeadLetter] = []
        self._seen: dict[str, int] = {}
        self._errors: list[PipelineError] = []

    def fail_next(self, times: int, error: PipelineError) -> None:
        """Let the next `times` writes raise `error` and take nothing."""
        self._errors += [error] * times

    def write(self, alerts: Sequence[Alert], dead: Sequence[DeadLetter]) -> None:
        """Take what is new."""
        if self._errors:
            raise self._errors.pop(0)
        for alert in alerts:
            if alert.seq > self._seen.get(alert.id, -1):
                self._seen[alert.id] = alert.seq
                self.alerts.append(alert)
        self.dead += [letter for letter in dead if letter not in self.dead]

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True, slots=True)
class Appended:
    """One push, as `MemoryHistory` took it."""

    position: tuple[int, int]
    assets: tuple[str, ...]
    rows: Sequence[Rows]
    verdicts: Sequence[Verdicts]
    alerts: Sequence[Alert]


class MemoryHistory:
    """Keeps every push by (topic, partition) in `pushes`; what is appended again replaces what was there."""

    def __init__(self) -> None:
        self.pushes: dict[tuple[str, int], list[Appended]] = {}

    def take(self, topic: str, partition: int) -> None:
        """Nothing to open."""

    def drop(self, topic: str, partition: int) -> None:
        """Nothing to let go of: what was pushed stays for the next owner."""

    def append(
        self,
        topic: str,
        partition: int,
        assets: Sequence[str],
        rows: Sequence[Rows],
        verdicts: Sequence[Verdicts],
        alerts: Sequence[Alert],
        position: tuple[int, int],
    ) -> None:
        """Add one push."""
        kept = [p for p in self.pushes.get((topic, partition), []) if p.position[0] < position[0]]
        self.pushes[topic, partition] = [*kept, Appended(position, tuple(assets), rows, verdicts, alerts)]

    def close(self) -> None:
        """Nothing to let go of."""


__all__ = [
    "Appended",
    "Crash",
    "Fault",
    "ListSink",
    "MemoryCommitter",
    "MemoryHistory",
    "MemorySource",
    "messages",
]
