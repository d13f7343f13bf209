"""`midwatch chaos`: workers and brokers are killed under a feed; it must say what an undisturbed run of it says.

Everything is looked at from outside: the workers are `midwatch run`, the verdict is read from the topics. Without
brokers of the user's it starts three of its own and strikes them too. On the user's it makes topics with a prefix of
their own, removes them in the end, and strikes nothing but its own workers.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs.chaos_compare import Verdict, compare
from jobs.chaos_feed import FeedPlan, messages
from jobs.chaos_stage import Feed, fit_model, send, write_config
from jobs.chaos_stalls import Watcher, quantile, recoveries
from jobs.chaos_storm import BrokerStorm, Span, WorkerStorm
from jobs.chaos_workers import Workers, watch_command
from jobs.failpoints import VARIABLE
from pipeline.errors import Unavailable

if TYPE_CHECKING:
    from connectors.cluster import Cluster
    from connectors.kafka_client import Client
    from jobs.console import Console
    from jobs.settings import Settings

_DRAIN_S: Final = 300.0
_FAILPOINTS: Final = ("before_produce", "after_produce", "after_send_offsets", "after_commit")
_AT_FAILPOINTS: Final = 0.3  # of the workers' kills, about
_COMMITS_PER_S: Final = 4.0  # of one worker, about: what the failpoints' probability is reckoned from
_BROKER_EVERY_S: Final = 15.0
_PARTITIONS_EACH: Final = 2


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """How much chaos.

    Attributes
    ----------
    kills : at least so many processes are killed: workers at random points and at failpoints, and brokers.
    minutes : about how long that goes on; twice as long if the kills take it.
    rate : messages a second.
    client : which client library the workers use.
    assignment : who shares out the partitions, `group` or `fixed`.
    """

    kills: int = 30
    minutes: float = 2.0
    workers: int = 3
    rate: float = 400.0
    seed: int = 0
    client: str = "confluent"
    assignment: str = "group"


def chaos(plan: ChaosPlan, settings: Settings | None, keep: Path | None, console: Console) -> bool:
    """Run it and print one record; return whether the alert topic is that of the undisturbed run.

    Parameters
    ----------
    settings : `[kafka]` of it says how to reach the user's brokers; None: three brokers are started for the run.
    keep : folder for configuration, model and what the workers said; None: a temporary one, removed if all is well.

    Raises
    ------
    Unavailable : no broker can be run, or the user's do not answer.
    """
    from connectors.cluster import Cluster
    from jobs.settings import alone

    folder = keep or Path(tempfile.mkdtemp(prefix="midwatch-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        cluster = None
        if settings is None:
            console.say("starting three brokers")
            cluster = stack.enter_context(Cluster(3))
            settings = alone({"kafka.bootstrap": cluster.bootstrap})
        run = _Run(plan, settings, cluster, folder, console)
        stack.callback(run.clear)
        record = run.through()
    console.record(record)
    for example in record["examples"]:
        console.warn(example)
    if not record["equal"]:
        console.warn(f"what the workers said is in {folder}")
    elif keep is None:
        shutil.rmtree(folder)
    return bool(record["equal"])


class _Run:
    """One run, from its topics to its verdict."""

    def __init__(
        self, plan: ChaosPlan, settings: Settings, cluster: Cluster | None, folder: Path, console: Console
    ) -> None:
        from connectors.kafka_client import connect
        from jobs.config.specs import kafka_settings

        self._plan, self._settings, self._cluster = plan, settings, cluster
        self._folder, self._console = folder, console
        self._kafka = kafka_settings(settings)
        self._client: Client = connect(self._kafka, "confluent")
        self._feed = Feed(f"midwatch-chaos-{uuid.uuid4().hex[:8]}")
        self._partitions = _PARTITIONS_EACH * plan.workers
        self._rng = random.Random(plan.seed)  # noqa: S311 - nothing secret

    def through(self) -> dict[str, Any]:
        """Prepare, make the storm, wait for the calm, run undisturbed, compare."""
        plan, say = self._plan, self._console.say
        rows = FeedPlan(round(plan.rate * plan.minutes * 60 * 2), seed=plan.seed)
        self._feed.create(self._client, self._partitions)
        secrets = self._write_config("storm", plan.workers) | self._write_config("calm", 1)
        say("fitting a model on a stretch without faults")
        fit_model(self._config("storm"), rows)
        command = watch_command(self._config("storm"), "--workers", str(plan.workers))
        workers = Workers(command, self._folder / "storm.log", {**secrets, **self._failpoints()})
        watcher = self._watch("storm")
        say(f"{plan.workers} workers; {plan.kills} kills in {plan.minutes:g} minutes; input {self._feed.input}")
        try:
            injected, away, sent = self._storm(workers, messages(rows), secrets)
            say(f"{sent} messages sent, the faults are over; waiting until all is read")
            drained = watcher.drained(_DRAIN_S)
            code = workers.stop()
        finally:
            workers.kill()
            watcher.close()
        say("the same input through one undisturbed worker")
        calm = self._calm(secrets)
        verdict = self._verdict()
        stalls = watcher.stalls
        apart = [(span.start, span.end) for span in away]
        deaths = [(death.slot, death.at) for death in workers.deaths]
        recovered = recoveries(deaths, stalls, partial(self._held, watcher), apart)
        broker_kills = injected["broker kill"]
        return {
            "kills": len(workers.deaths) + broker_kills,
            "expected": verdict.expected,
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "recovery_p50_s": round(quantile(recovered, 0.5), 2),
            "recovery_p99_s": round(quantile(recovered, 0.99), 2),
            "recoveries": len(recovered),
            "longest_stall_s": round(stalls.longest(), 2),
            "different": verdict.different,
            "unexpected": verdict.unexpected,
            "disordered": verdict.disordered,
            "dead_expected": verdict.dead_expected,
            "dead_lost": verdict.dead_lost,
            "dead_doubled": verdict.dead_doubled,
            "drained": drained and calm,
            "equal": verdict.equal and drained and calm and verdict.expected > 0,
            "messages": sent,
            "faults": dict(injected) | {"worker kill": len(workers.deaths)},
            "gave_up": workers.given_up,
            "exit_code": code,
            "examples": verdict.examples,
        }

    def clear(self) -> None:
        """Remove topics and groups from brokers that are not ours."""
        if self._cluster is None:
            from connectors.kafka_view import remove_feed

            groups = [self._feed.own(run)["group"] for run in ("storm", "calm")]
            remove_feed(self._kafka, self._feed.topics(), groups)

    def _storm(
        self, workers: Workers, rows: Iterator[tuple[bytes, bytes]], secrets: dict[str, str]
    ) -> tuple[Counter[str], list[Span], int]:
        """Send, watch and strike; return the faults by kind, when brokers were away, and the number of messages."""
        plan = self._plan
        seconds = plan.minutes * 60
        over = threading.Event()
        sent: list[int] = []
        sender = threading.Thread(
            target=lambda: sent.append(send(self._client, self._feed.input, rows, plan.rate, over.is_set)), daemon=True
        )
        sender.start()
        workers.start()
        _wait(lambda: len(workers.slots) == plan.workers, 300.0, "the workers did not start")
        brokers = self._broker_storm(seconds)
        mean_s = seconds / max(plan.kills * (1 - _AT_FAILPOINTS) * 1.25, 1)
        config = self._config("storm")

        def second(slot: int) -> Workers:
            return Workers(watch_command(config, "--slot", str(slot)), self._folder / f"second-{slot}.log", secrets)

        storm = WorkerStorm(workers, mean_s, second, self._rng)
        began = time.monotonic()

        def enough() -> bool:
            lasted = time.monotonic() - began
            kills = len(workers.deaths) + (brokers.injected["broker kill"] if brokers else 0)
            return lasted > 2 * seconds or (lasted > seconds and kills >= plan.kills)

        try:
            storm.run(enough)
        finally:
            over.set()
            if brokers is not None:
                brokers.stop()
        sender.join()
        if not sent:
            raise Unavailable("the input could not be sent: see above")
        injected = storm.injected + (brokers.injected if brokers else Counter())
        return injected, brokers.away if brokers else [], sent[0]

    def _broker_storm(self, seconds: float) -> BrokerStorm | None:
        if self._cluster is None:
            return None
        from connectors.kafka_view import move_leaders

        kills = max(1, min(self._plan.kills // 8, round(seconds / _BROKER_EVERY_S)))
        rng = random.Random(self._plan.seed + 1)  # noqa: S311 - nothing secret
        return BrokerStorm(self._cluster, kills, seconds, lambda: move_leaders(self._kafka, self._feed.topics()), rng)

    def _calm(self, secrets: dict[str, str]) -> bool:
        """Run one worker over the input, from its beginning to its end; return whether it got there."""
        worker = Workers(watch_command(self._config("calm")), self._folder / "calm.log", secrets)
        watcher = self._watch("calm")
        try:
            worker.start()
            drained = watcher.drained(_DRAIN_S)
            return worker.stop() == 0 and drained
        finally:
            worker.kill()
            watcher.close()

    def _verdict(self) -> Verdict:
        from connectors.kafka_view import committed_records

        read = [
            committed_records(self._kafka, self._feed.own(run)[topic])
            for topic in ("alerts_topic", "dead_topic")
            for run in ("storm", "calm")
        ]
        return compare(*read)

    def _watch(self, run: str) -> Watcher:
        from connectors.kafka_view import FeedView

        view = FeedView(self._kafka, self._feed.own(run)["group"], self._feed.input, self._partitions)
        return Watcher(view, self._partitions)

    def _held(self, watcher: Watcher, slot: int, at: float) -> Sequence[int]:
        """Return the partitions that a slot had at a time."""
        if self._plan.assignment == "fixed":
            return range(slot, self._partitions, self._plan.workers)
        return watcher.held(f"{self._feed.own('storm')['group']}-{slot}", at)

    def _config(self, run: str) -> Path:
        return self._folder / f"{run}.toml"

    def _write_config(self, run: str, slots: int) -> dict[str, str]:
        kafka = {"slots": slots, "client": self._plan.client, "assignment": self._plan.assignment}
        return write_config(self._config(run), self._feed, run, self._settings, kafka)

    def _failpoints(self) -> dict[str, str]:
        """Return the environment that makes workers kill themselves, about as often as the plan wants it."""
        plan = self._plan
        commits = plan.workers * _COMMITS_PER_S * plan.minutes * 60
        likely = min(plan.kills * _AT_FAILPOINTS / commits / len(_FAILPOINTS), 0.1)
        return {VARIABLE: ",".join(f"{step}:{likely:.6f}" for step in _FAILPOINTS)}


def _wait(holds: Callable[[], bool], within_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise Unavailable(f"{otherwise} within {within_s:.0f} s")
        time.sleep(0.05)
