"""What a partition that stands still costs the others: from sending to commit, with one of four held and with none.

Two watches of the same topic over a real broker, each a member of a group of its own; in one, the restore of the last
partition never ends, while messages go on coming into it. Messages are sent at a steady rate and say when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np

from connectors.cluster import Cluster
from connectors.kafka_client import Client, Member, NewTopic, connect
from connectors.kafka_commit import KafkaCommitter, transactional_id
from connectors.kafka_group_source import KafkaGroupSource
from connectors.kafka_settings import KafkaSettings
from connectors.kafka_topics import create_topics
from jobs.benches import fleet
from jobs.benches.measure import Result, Trial, against, result
from models.engine import open_engine
from pipeline.chain import Chain
from pipeline.protocols import Restored
from pipeline.runner import Runner, Step, at_once

_INPUT: Final = "readings"
_PARTITIONS: Final = 4
_RATE: Final = 200  # messages a second and partition
_SETTLING_S: Final = 0.5  # of a turn: what waited since the last one is read first


def held(trial: Trial) -> Result:
    """Return the p99 from sending to commit in three partitions while a fourth stands still, to that while it flows."""
    seconds = 4.0 if not trial.quick else 1.0
    over = threading.Event()
    with Cluster() as cluster, ThreadPoolExecutor(1) as pool:
        client = connect(KafkaSettings(cluster.bootstrap), "confluent")
        watches = {name: _Watch(client, name, last_held=name == "held") for name in ("flowing", "held")}
        sending = pool.submit(_send, client, over)
        try:
            for watch in watches.values():
                watch.turn_until(watch.joined)
            # One turn of each before those that count.
            turns = [{name: watch.turn(seconds) for name, watch in watches.items()} for _ in range(trial.count + 1)]
        finally:
            over.set()
            for watch in watches.values():
                watch.close()
        sending.result()
    p99 = {name: np.array([turn[name] for turn in turns[1:]]) for name in watches}
    line = against("the same while all four flow", p99["held"] / p99["flowing"])
    figures = {f"{name}_p99_ms": float(np.median(values)) for name, values in p99.items()}
    return result("kafka.paused", [line], figures, better="lower")


class _Watch:
    """One watch: its loop, and how long its messages took."""

    def __init__(self, client: Client, name: str, last_held: bool) -> None:
        alerts, dead, state = f"{name}.alerts", f"{name}.dead", {_INPUT: f"{name}.state"}
        if _INPUT not in client.topics():
            _create_input(client)
        create_topics(client, alerts_topic=alerts, dead_topic=dead, state_topics=state)
        member = Member(transactional_id(name, 0))
        self._source = KafkaGroupSource(client, [_INPUT], name, member=member, start="latest")
        self._committer = KafkaCommitter(
            client,
            group=name,
            slot=0,
            group_metadata=self._source.group_metadata,
            alerts_topic=alerts,
            dead_topic=dead,
            state_topics=state,
            snapshot_every=32,
        )
        chain = Chain(fleet.chain_spec(), journal=True)
        bundle = fleet.bundle(fleet.DEFAULT)
        chain.serve(bundle, open_engine(bundle, "cpu"))
        self._wanted = _PARTITIONS - last_held
        self._seen: set[int] = set()
        self._took_ms: list[float] = []
        self._since_ms = 0.0
        self._runner = Runner(
            chain,
            self._source,
            self._committer,
            max_rows=4096,
            commit_interval_s=0.05,
            observe=self._after,
            spawn=_never_the_last if last_held else at_once,
        )

    def joined(self) -> bool:
        """Return whether every partition that is not held was read."""
        return len(self._seen) == self._wanted

    def turn_until(self, holds: Callable[[], bool]) -> None:
        """Step until something is so."""
        while not holds():
            self._runner.step()

    def turn(self, seconds: float) -> float:
        """Step for a while; return the p99 from sending to commit of the first three partitions (ms)."""
        began = time.time()
        self._took_ms.clear()
        self._since_ms = 1000 * (began + _SETTLING_S)
        self.turn_until(lambda: time.time() > began + _SETTLING_S + seconds)
        return float(np.quantile(self._took_ms, 0.99))

    def close(self) -> None:
        self._source.close()
        self._committer.close()

    def _after(self, step: Step) -> None:
        now = 1000 * time.time()
        for polled in step.polled:
            self._seen.add(polled.partition)
            sent = polled.log_ts_ns / 1e6
            if polled.partition < _PARTITIONS - 1:
                self._took_ms += (now - sent[sent >= self._since_ms]).tolist()


def _never_the_last(call: Callable[[], Restored | None]) -> Future[Restored | None]:
    """Make the call at once, but never come to an end with that of the last partition."""
    if isinstance(call, partial) and call.args == (_INPUT, _PARTITIONS - 1):
        return Future()
    return at_once(call)


def _create_input(client: Client) -> None:
    client.create_topics([NewTopic(_INPUT, _PARTITIONS)])


def _send(client: Client, over: threading.Event) -> None:
    """Send messages at a steady rate until told to stop."""
    lines = [value for polled in fleet.steady_batches(40, 1000, _RATE) for value in polled.value]
    producer = client.producer()
    began, sent = time.monotonic(), 0
    while not over.wait(0.005):
        due = int((time.monotonic() - began) * _RATE)
        for i in range(sent, due):
            for partition in range(_PARTITIONS):
                producer.send(_INPUT, lines[i % len(lines)], partition=partition)
        sent = due
        producer.flush()
    producer.close()
