"""`midwatch chaos --takeovers n`: how long partitions stand still when a worker is lost, each case n times.

Three cases: a worker is killed and its supervisor starts it again; one is killed and stays away, so that the others
take over; the same, killed between `send_offsets` and the commit, so that its transaction is left open over its
partitions. Seen from outside, by committed offsets that stand still while there is something to read.
"""

from __future__ import annotations

import itertools
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.chaos_feed import FeedPlan, endless
from jobs.chaos_stage import Feed, fit_model, send, write_config
from jobs.chaos_stalls import Stalls, Watcher, quantile
from jobs.chaos_workers import Workers, watch_command
from jobs.failpoints import VARIABLE
from pipeline.errors import PipelineError, Unavailable

if TYPE_CHECKING:
    from connectors.kafka_client import Client
    from jobs.chaos import ChaosPlan
    from jobs.console import Console

_STEP: Final = "after_send_offsets"
_LIKELY: Final = 0.05  # that the marked worker kills itself in a commit, once it is asked to by its environment
_ASK_S: Final = 0.4  # between two questions to the brokers: each opens connections, and takes from what is measured
_CALM_S: Final = 1.5  # that all partitions must have moved on for, before the next kill
_START_S: Final = 300.0  # for programs to be loaded, on a slow machine, and partitions to be shared out
_PATIENCE_S: Final = 60.0  # for partitions to go on


@dataclass(slots=True)
class Case:
    """The worst and the usual of one case: partitions of the lost worker, and those of the others (s)."""

    own: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "times": len(self.own),
            "own_p50_s": round(quantile(self.own, 0.5), 2),
            "own_worst_s": round(max(self.own), 2),
            "others_p50_s": round(quantile(self.others, 0.5), 2),
            "others_worst_s": round(max(self.others), 2),
        }


def measure_takeovers(times: int, plan: ChaosPlan, keep: Path | None, console: Console) -> None:
    """Print the record of `takeovers`; `keep` is a folder for what the workers say, else a temporary one."""
    with tempfile.TemporaryDirectory(prefix="midwatch-takeover-") as folder:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        console.record(takeovers(times, plan, keep or Path(folder), console))


def takeovers(times: int, plan: ChaosPlan, folder: Path, console: Console) -> dict[str, Any]:
    """Run the three cases on three brokers of its own; return their figures.

    Raises
    ------
    Unavailable : no broker can be run, or partitions did not go on.
    """
    from connectors.cluster import Cluster
    from connectors.kafka_client import connect
    from connectors.kafka_view import FeedView
    from jobs.config.specs import kafka_settings
    from jobs.settings import alone

    with ExitStack() as stack:
        console.say("starting three brokers")
        cluster = stack.enter_context(Cluster(3))
        settings = alone({"kafka.bootstrap": cluster.bootstrap})
        kafka = kafka_settings(settings)
        client = connect(kafka, "confluent")
        feed, partitions = Feed("midwatch-takeover"), 2 * plan.workers
        feed.create(client, partitions, ["storm"])
        config = folder / "storm.toml"
        write_config(config, feed, "storm", settings, {"slots": plan.workers, "client": plan.client})
        rows = FeedPlan(100_000, seed=plan.seed)
        fit_model(config, rows)
        over = threading.Event()
        stack.callback(over.set)
        _keep_sending(client, feed, rows, plan.rate, over)
        watcher = Watcher(FeedView(kafka, feed.own("storm")["group"], feed.input, partitions), partitions)
        stack.callback(watcher.close)
        scene = _Scene(client, feed.own("storm")["group"], watcher.stalls, folder, config, plan.workers)
        console.say(f"{times} restarts under a supervisor")
        restarted = scene.restarts(times)
        console.say(f"{times} takeovers by the other workers")
        taken = scene.takeovers(times, "")
        console.say(f"{times} takeovers with a transaction left open")
        left_open = scene.takeovers(times, f"{_STEP}:{_LIKELY}")
    return {
        "session_s": settings.kafka.session_s,
        "client": plan.client,
        "restarted": restarted.record(),
        "taken_over": taken.record(),
        "taken_over_in_commit": left_open.record(),
    }


def _keep_sending(client: Client, feed: Feed, rows: FeedPlan, rate: float, over: threading.Event) -> None:
    threading.Thread(target=send, args=(client, feed.input, endless(rows), rate, over.is_set), daemon=True).start()


@dataclass(slots=True)
class _Scene:
    """Workers, what is seen of their partitions, and who has which."""

    client: Client
    group: str
    stalls: Stalls
    folder: Path
    config: Path
    workers: int

    def restarts(self, times: int) -> Case:
        """Kill a worker of a supervisor's, each slot in its turn."""
        program = Workers(watch_command(self.config, "--workers", str(self.workers)), self.folder / "supervised.log")
        program.start()
        case = Case()
        try:
            for i in itertools.takewhile(lambda _: len(case.own) < times, itertools.count()):
                self._calm(range(self.workers))
                slot = i % self.workers
                mine = self._partitions_of(slot)
                at = time.monotonic()
                if not program.send(slot, signal.SIGKILL):
                    raise Unavailable(f"slot {slot} has no process")
                self._measure(case, mine, at)
        finally:
            program.stop()
        return case

    def takeovers(self, times: int, failpoint: str) -> Case:
        """Let a worker die, by a signal or by itself at a failpoint, and start it again when others have taken over."""
        alone = [self._start(slot, "") for slot in range(self.workers)]
        case = Case()
        try:
            for i in itertools.takewhile(lambda _: len(case.own) < times, itertools.count()):
                slot = i % self.workers
                if failpoint:
                    self._calm(range(self.workers))
                    alone[slot].stop()
                    alone[slot] = self._start(slot, failpoint)
                mine, at = self._death_of(alone, slot, failpoint)
                self._measure(case, mine, at)
                alone[slot] = self._start(slot, "")
        finally:
            for one in alone:
                one.stop()
        return case

    def _death_of(self, alone: Sequence[Workers], slot: int, failpoint: str) -> tuple[Sequence[int], float]:
        """Return what a worker had, and when it died."""
        mine: Sequence[int] = ()
        if not failpoint:
            self._calm(range(self.workers))
            mine, at = self._partitions_of(slot), time.monotonic()
            alone[slot].kill()
            return mine, at
        asked = 0.0
        while alone[slot].alive:
            if time.monotonic() > asked + _ASK_S:
                mine, asked = self._partitions_of(slot) or mine, time.monotonic()
            time.sleep(0.02)
        return mine, time.monotonic()

    def _start(self, slot: int, failpoint: str) -> Workers:
        environ = {VARIABLE: failpoint} if failpoint else {}
        one = Workers(watch_command(self.config, "--slot", str(slot)), self.folder / f"slot-{slot}.log", environ)
        one.start()
        return one

    def _partitions_of(self, slot: int) -> Sequence[int]:
        try:
            owned = self.client.owners(self.group).get(f"{self.group}-{slot}", ())
        except PipelineError:  # before the group's first member, and while its coordinator moves
            return ()
        return sorted(partition for _, partition in owned)

    def _calm(self, slots: range) -> None:
        """Wait until every slot has partitions and all of them have moved on for a while."""
        deadline = time.monotonic() + _START_S
        began = time.monotonic()
        while time.monotonic() < began + _CALM_S:
            if self.stalls.standing(time.monotonic()) > 1.0 or not all(self._partitions_of(slot) for slot in slots):
                began = time.monotonic()
            if time.monotonic() > deadline:
                raise Unavailable(f"the watch has not come to rest in {_START_S:.0f} s: see {self.folder}")
            time.sleep(_ASK_S)

    def _measure(self, case: Case, mine: Sequence[int], at: float) -> None:
        """Wait until the lost worker's partitions have moved on; add how long they, and the others, stood still.

        A worker that died before all of its partitions went on, after it had joined, is left out.
        """
        deadline = at + _PATIENCE_S
        while any(self.stalls.after(p, at) is None for p in mine):
            if time.monotonic() > deadline:
                raise Unavailable(f"partitions {mine} did not go on within {_PATIENCE_S:.0f} s: see {self.folder}")
            time.sleep(0.05)
        time.sleep(_CALM_S)
        found = [stall for p in mine if (stall := self.stalls.after(p, at)) is not None]
        if not found or min(stall.start for stall in found) < at - 1.0:
            return
        case.own.append(max(stall.seconds for stall in found))
        rest = [p for p in range(len(self.stalls.found)) if p not in mine]
        case.others.append(max(s.seconds for p in rest for s in self.stalls.found[p] if s.end >= at))
