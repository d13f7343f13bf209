"""Three brokers, one input, and what an undisturbed run says of it: the fault suite holds every other run against it.

The input is there from the beginning, so that the suite need not wait for it; how much one poll takes decides how
many commits there are to be struck.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import fault_worker
import pytest

from connectors.cluster import Cluster
from connectors.kafka_client import connect
from connectors.kafka_commit import transactional_id
from connectors.kafka_runtime import find_runtime
from connectors.kafka_view import FeedView, Record, committed_records, remove_feed
from jobs.chaos_compare import Verdict, compare
from jobs.chaos_feed import FeedPlan, messages
from jobs.chaos_stage import Feed, fit_model, send, write_config
from jobs.config.specs import kafka_settings
from jobs.failpoints import VARIABLE
from jobs.settings import Settings, alone
from models.registry import Registry
from pipeline.errors import BrokerUnavailable, Unavailable

PARTITIONS = 4
PLAN = FeedPlan(rows=6000, pumps=16, seed=5)
PATIENCE_S = 180.0  # for what takes seconds on a machine that has nothing else to do


class Stage:
    """The cluster, the input and the model that all tests share."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        flags = {"kafka.bootstrap": cluster.bootstrap, "kafka.commit_timeout_s": 10.0}
        self.settings: Settings = alone(flags)
        self.kafka = kafka_settings(self.settings)
        self.client = connect(self.kafka, "confluent")
        self.feed = Feed(f"faults-{uuid.uuid4().hex[:6]}")
        self.feed.create(self.client, PARTITIONS, runs=())
        self.sent = send(self.client, self.feed.input, messages(PLAN), 1e9, lambda: False)
        self.alerts, self.dead = self._undisturbed()

    def attempt(
        self,
        name: str,
        slots: int = 2,
        feed: Feed | None = None,
        assignment: str = "group",
        client: str = "confluent",
        **options: object,
    ) -> Attempt:
        """Return a run of its own, with topics of its own; `options` are `section__key`."""
        feed = feed or self.feed
        run = f"{name}-{uuid.uuid4().hex[:6]}"
        feed.create(self.client, PARTITIONS, runs=[run])
        path = self.folder / f"{run}.toml"
        kafka = {"slots": slots, "client": client, "assignment": assignment}
        write_config(path, feed, run, self.settings, kafka)
        environ = {f"MIDWATCH_{key.upper()}": str(value) for key, value in options.items()}
        return Attempt(self, feed, run, path, slots, environ)

    def _undisturbed(self) -> tuple[list[Record], list[Record]]:
        """Fit the model, start the server that workers are forked from, and run one of them through the input."""
        calm = self.attempt("calm", slots=1)
        fit_model(calm.config, PLAN)
        os.environ[fault_worker.PRELOAD] = str(calm.config)
        # What `sys.path` has besides, the server is told of and does not heed.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        forks().set_forkserver_preload(["pytest", "fault_worker"])
        calm.start()
        calm.wait_drained(5 * PATIENCE_S)  # kernels that were never compiled here are compiled first
        calm.stop()
        assert calm.ended == []
        return calm.read("alerts"), calm.read("dead")


@dataclass
class Attempt:
    """One run over the input by processes that may be struck; dead ones are replaced by `tend`."""

    stage: Stage
    feed: Feed
    run: str
    config: Path
    slots: int
    environ: dict[str, str]
    mutant: str = ""
    workers: dict[int, BaseProcess] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)  # exit codes of those that were replaced
    others: list[BaseProcess] = field(default_factory=list)

    def start(self, *slots: int, failpoint: str = "") -> None:
        """Start workers, of all slots if none is named."""
        if failpoint:
            self.environ[VARIABLE] = failpoint
        for slot in slots or range(self.slots):
            self.workers[slot] = self.fork(slot)

    def fork(self, slot: int, failpoint: str = "") -> BaseProcess:
        """Start one process more in a slot; `tend` knows nothing of it."""
        environ = {**self.environ, VARIABLE: failpoint} if failpoint else self.environ
        arguments = (str(self.config), slot, str(self.log), environ, self.mutant)
        process = forks().Process(target=fault_worker.watch, args=arguments, daemon=True)
        process.start()
        self.others.append(process)
        return process

    @property
    def log(self) -> Path:
        return self.config.with_suffix(".log")

    def signal(self, slot: int, number: signal.Signals) -> None:
        os.kill(self.workers[slot].pid or 0, number)

    def tend(self) -> None:
        """Start again what has ended, as a supervisor would."""
        for slot, process in self.workers.items():
            if process.exitcode is not None:
                self.ended.append(process.exitcode)
                self.workers[slot] = self.fork(slot)

    def member(self, slot: int) -> str:
        """Return what the group calls the worker of a slot."""
        return transactional_id(self.feed.own(self.run)["group"], slot)

    def shares(self, slot: int) -> bool:
        """Return whether the group has given a slot any partitions."""
        try:
            return self.member(slot) in self._view.owners().values()
        except BrokerUnavailable:
            return False

    def committed(self) -> int:
        """Return how many messages the group is past, or -1 if nobody can say now."""
        try:
            return sum(self._view.committed())
        except BrokerUnavailable:
            return -1

    def waiting(self) -> list[int]:
        """Return how many messages of each partition the group is not past."""
        return [end - at for end, at in zip(self._view.ends(), self._view.committed(), strict=True)]

    def drained(self) -> bool:
        try:
            return not any(self.waiting())
        except BrokerUnavailable:
            return False

    def wait_drained(self, within_s: float = PATIENCE_S) -> None:
        """Tend the workers until nothing is left to read."""
        self.wait(self.drained, within_s)

    def wait(self, holds: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
        """Tend the workers until something is so; fails the test if it never is."""
        deadline = time.monotonic() + within_s
        while not holds():
            self.tend()
            said = self.log.read_text()[-2000:] if self.log.exists() else ""
            assert time.monotonic() < deadline, f"not in {within_s:.0f} s; the workers said:\n{said}"
            time.sleep(0.05)

    def until_committed(self, rows: int) -> None:
        self.wait(lambda: self.committed() >= rows)

    def stop(self) -> None:
        """Ask all workers to end, and see that they do so cleanly or were ended by us."""
        for process in self.workers.values():
            if process.is_alive():
                process.terminate()
        for process in self.workers.values():
            process.join(30)

    def close(self) -> None:
        for process in self.others:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGCONT)
                process.kill()
            process.join()
        self._view.close()
        own = self.feed.own(self.run)
        remove_feed(self.stage.kafka, [own[f"{t}_topic"] for t in ("alerts", "dead", "state")], [own["group"]])

    def read(self, topic: str) -> list[Record]:
        return committed_records(self.stage.kafka, self.feed.own(self.run)[f"{topic}_topic"], PATIENCE_S)

    def verdict(self) -> Verdict:
        """Hold what this run published against the undisturbed run."""
        return compare(self.read("alerts"), self.stage.alerts, self.read("dead"), self.stage.dead)

    @functools.cached_property
    def _view(self) -> FeedView:
        return FeedView(self.stage.kafka, self.feed.own(self.run)["group"], self.feed.input, PARTITIONS)


def forks() -> multiprocessing.context.ForkServerContext:
    return multiprocessing.get_context("forkserver")


def shared_stage() -> Stage:
    """The session's stage; skips the test, or fails it in CI, where no broker can be run."""
    started, why = _start_once()
    if started is not None:
        return started
    if why.startswith("no way to run") and not os.environ.get("CI"):
        pytest.skip(why)
    pytest.fail(why)


@functools.cache
def _start_once() -> tuple[Stage | None, str]:
    try:
        find_runtime()
    except Unavailable as missing:
        return None, str(missing)
    folder = Path(tempfile.mkdtemp(prefix="midwatch-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cluster = Cluster(3)
    atexit.register(cluster.stop)
    try:
        cluster.start()
    except Unavailable as failed:
        return None, str(failed)
    return Stage(cluster, folder), ""


def equal(run: Attempt) -> None:
    """Nothing is lost, nothing doubled, nothing else is said, and the dead letters are the same."""
    verdict = run.verdict()
    assert verdict.equal, f"{verdict}; workers ended with {run.ended}"
    assert verdict.expected > 50
    assert verdict.dead_expected > 20


def retrained(stage: Stage, root: Path, plan: FeedPlan) -> str:
    """Register one more model, fitted on other rows, and leave the champion as it is; return its id."""
    config = root.with_name(f"{root.name}-retrained") / "midwatch.toml"
    config.parent.mkdir()
    write_config(config, stage.feed, "retrained", stage.settings, {})
    fit_model(config, plan)
    made = Registry(config.parent / "models")
    return Registry(root).add(made.load(made.champion() or ""), time.time_ns()).id
