"""The faults of a chaos run: workers killed, frozen and told to end; brokers killed and frozen; leaders moved."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.errors import Unavailable

if TYPE_CHECKING:
    from connectors.cluster import Cluster
    from jobs.chaos_workers import Workers

_FREEZE_S: Final = (7.0, 12.0)  # past the session timeout of 6 s
_REPLACEMENT_S: Final = 8.0  # how long a second process keeps a slot after the first one thawed
_BROKER_DOWN_S: Final = (2.0, 6.0)
_SETTLE_S: Final = 3.0  # how long a cluster takes to be itself again after a broker is back
_TURN_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time (monotonic, s) in which a broker was away."""

    start: float
    end: float


class WorkerStorm:
    """Strikes workers at random until it is stopped.

    Parameters
    ----------
    mean_s : mean time between two faults.
    replacement : slot -> a second process for it, not started yet; used while the first is frozen.
    """

    def __init__(
        self, workers: Workers, mean_s: float, replacement: Callable[[int], Workers], rng: random.Random
    ) -> None:
        self.injected: Counter[str] = Counter()
        self._workers, self._mean_s, self._replacement, self._rng = workers, mean_s, replacement, rng
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._frozen: dict[int, float] = {}  # slot -> when it thaws

    def run(self, over: Callable[[], bool]) -> None:
        """Strike until `over` says so; then heal what is broken."""
        due = time.monotonic() + self._mean_s
        while not over():
            now = time.monotonic()
            self._do_later(now)
            if now >= due:
                due = now + self._rng.expovariate(1 / self._mean_s)
                self._strike(now)
            time.sleep(min(_TURN_S, self._mean_s / 4))
        while self._later:
            self._do_later(time.monotonic())
            time.sleep(_TURN_S)

    def _strike(self, now: float) -> None:
        slots = [slot for slot in self._workers.slots if self._frozen.get(slot, 0.0) < now]
        if not slots:
            return
        slot = self._rng.choice(slots)
        kind = self._rng.choices(["kill", "term", "freeze"], [12, 2, 1])[0]
        if kind == "freeze":
            self._freeze(slot, now)
        elif not self._workers.send(slot, signal.SIGKILL if kind == "kill" else signal.SIGTERM):
            return
        self.injected[kind] += 1

    def _freeze(self, slot: int, now: float) -> None:
        """Stop a worker for longer than a session lasts; every other time somebody starts another in its slot."""
        pid = self._workers.send(slot, signal.SIGSTOP)
        thaw = now + self._rng.uniform(*_FREEZE_S)
        self._frozen[slot] = thaw
        self._later.append((thaw, lambda: self._workers.send_to(pid, signal.SIGCONT)))
        if self.injected["freeze"] % 2:
            second = self._replacement(slot)
            second.start()
            self._later.append((thaw + _REPLACEMENT_S, second.stop))
            self.injected["replaced while frozen"] += 1

    def _do_later(self, now: float) -> None:
        for item in [item for item in self._later if item[0] <= now]:
            self._later.remove(item)
            item[1]()


class BrokerStorm:
    """Strikes one broker at a time, on a thread of its own; a majority always runs.

    Attributes
    ----------
    away : when a broker was not there.
    """

    def __init__(
        self, cluster: Cluster, kills: int, seconds: float, move_leaders: Callable[[], int], rng: random.Random
    ) -> None:
        self.injected: Counter[str] = Counter()
        self.away: list[Span] = []
        self._cluster, self._move_leaders, self._rng = cluster, move_leaders, rng
        self._kills = kills
        self._gap_s = seconds / (kills + 1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Strike no more; returns when every broker is back."""
        self._over.set()
        self._thread.join()
        self._cluster.start()

    def _run(self) -> None:
        while self.injected["broker kill"] < self._kills and not self._over.wait(
            self._gap_s * self._rng.uniform(0.5, 1)
        ):
            began = time.monotonic()
            node = self._rng.randrange(len(self._cluster.nodes)) + 1
            if self._rng.random() < 0.25:
                self._freeze(node)
            else:
                self._kill(node)
            self.away.append(Span(began, time.monotonic() + _SETTLE_S))
            with suppress(Unavailable):
                self.injected["leaders moved"] += self._move_leaders() > 0

    def _kill(self, node: int) -> None:
        self._cluster.kill(node)
        self.injected["broker kill"] += 1
        self._over.wait(self._rng.uniform(*_BROKER_DOWN_S))
        with suppress(Unavailable):  # slow to come back; `stop` waits for it
            self._cluster.restart(node)

    def _freeze(self, node: int) -> None:
        self._cluster.pause(node)
        try:
            self._over.wait(self._rng.uniform(*_BROKER_DOWN_S))
        finally:
            self._cluster.resume(node)
        self.injected["broker freeze"] += 1
