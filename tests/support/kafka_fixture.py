"""One real broker for all tests of a session that want one, with an encrypted listener beside the plain one."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from connectors.cluster import Cluster, free_ports
from connectors.kafka_client import Client, NewTopic, connect
from connectors.kafka_commit import KafkaCommitter
from connectors.kafka_runtime import find_runtime
from connectors.kafka_settings import KafkaSettings
from connectors.kafka_state import STATE_TOPIC_SETTINGS
from pipeline.errors import Unavailable
from pipeline.values import Alert, DeadLetter, Position, TopChannel

LIBRARIES = ["kafka-python", "confluent"]
USER, PASSWORD = "watch", "watch-secret"


@dataclass(frozen=True)
class Broker:
    cluster: Cluster
    secure_bootstrap: str  # SASL_SSL; "" where there is no keytool to make a certificate with
    ca: Path

    @property
    def bootstrap(self) -> str:
        return self.cluster.bootstrap


def shared_broker() -> Broker:
    """The session's broker; skips the test, or fails it in CI, where none can be run."""
    started, why = _start_once()
    if started is not None:
        return started
    if why.startswith("no way to run") and not os.environ.get("CI"):
        pytest.skip(why)
    pytest.fail(why)


@functools.cache
def _start_once() -> tuple[Broker | None, str]:
    """Start the broker; or say why not, once for all tests."""
    try:
        find_runtime()
    except Unavailable as missing:
        return None, str(missing)
    folder = Path(tempfile.mkdtemp(prefix="midwatch-test-"))
    cluster = Cluster(properties={"group.min.session.timeout.ms": "1000"})
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(cluster.stop)
    (port,) = free_ports(1)
    secure = _add_secure_listener(cluster, port, folder)
    try:
        cluster.start()
    except Unavailable as failed:
        return None, str(failed)
    return Broker(cluster, f"127.0.0.1:{port}" if secure else "", folder / "ca.pem"), ""


def _add_secure_listener(cluster: Cluster, port: int, folder: Path) -> bool:
    keytool = shutil.which("keytool")
    if keytool is None:
        return False
    store, secret = str(folder / "broker.p12"), "changeit"
    named = ["-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1", "-ext", "bc:c", "-validity", "30"]
    to = ["-alias", "broker", "-keystore", store, "-storepass", secret]
    for command in (
        ["-genkeypair", "-keyalg", "EC", *named, *to, "-storetype", "PKCS12"],
        ["-exportcert", "-rfc", *to, "-file", str(folder / "ca.pem")],
    ):
        subprocess.run([keytool, *command], check=True, capture_output=True)
    node = cluster.nodes[0]
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    cluster.properties |= {
        "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port},"
        f"SECURE://127.0.0.1:{port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port},SECURE://127.0.0.1:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL",
        "listener.name.secure.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.secure.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
        "listener.name.secure.ssl.keystore.location": store,
        "listener.name.secure.ssl.keystore.password": secret,
        "listener.name.secure.ssl.keystore.type": "PKCS12",
    }
    return True


@dataclass(frozen=True)
class FeedTopics:
    """Topics of one test, made for it and named for nobody else."""

    bootstrap: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @property
    def input(self) -> str:
        return f"in-{self.mark}"

    @property
    def alerts(self) -> str:
        return f"alerts-{self.mark}"

    @property
    def dead(self) -> str:
        return f"dead-{self.mark}"

    @property
    def state(self) -> str:
        return f"state-{self.mark}"

    @property
    def scores(self) -> str:
        return f"scores-{self.mark}"

    @property
    def group(self) -> str:
        return f"group-{self.mark}"

    def client(self, library: str = "confluent") -> Client:
        return connect(KafkaSettings(self.bootstrap), library)

    def create(self, partitions: int = 2) -> FeedTopics:
        wanted = [NewTopic(self.input, partitions), NewTopic(self.alerts, 2), NewTopic(self.dead, 1)]
        wanted += [NewTopic(self.scores, partitions), NewTopic(self.state, partitions, STATE_TOPIC_SETTINGS)]
        self.client().create_topics(wanted)
        return self

    def topics(self) -> dict[str, Any]:
        return {"alerts_topic": self.alerts, "dead_topic": self.dead, "state_topics": {self.input: self.state}}

    def committer(self, library: str, slot: int = 0, **options: Any) -> KafkaCommitter:
        return KafkaCommitter(self.client(library), group=self.group, slot=slot, **self.topics(), **options)

    def feed(self, values: Sequence[bytes], partition: int = 0) -> None:
        """Put messages into the input topic."""
        producer = self.client().producer()
        for i, value in enumerate(values):
            producer.send(self.input, value, key=b"k%d" % i, partition=partition)
        producer.flush()
        producer.close()

    def read(self, topic: str, timeout_s: float = 10.0) -> list[tuple[bytes | None, bytes | None]]:
        """Return the committed records of a topic, all partitions, as (key, value)."""
        client = self.client()
        consumer = client.consumer(f"reader-{self.mark}", fetch_wait_s=0.01)
        places = [(topic, p) for p in range(client.topics()[topic])]
        ends = consumer.end_offsets(places, timeout_s)
        consumer.assign(dict.fromkeys(places, 0))
        found: list[tuple[bytes | None, bytes | None]] = []
        until(lambda: _read_on(consumer, found, ends), timeout_s)
        consumer.close()
        return found


def _read_on(consumer: Any, found: list[tuple[bytes | None, bytes | None]], ends: dict[Any, int]) -> bool:
    for polled in consumer.poll(10_000, 1 << 25, 0.02):
        found += zip(polled.key or (), polled.value, strict=True)
    return all(consumer.position(*place) >= end for place, end in ends.items())


def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Ask again and again; fails the test if it never holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def an_alert(seq: int = 0, asset: str = "pump-7", state: str = "open") -> Alert:
    return Alert(
        id="a1b2c3",
        seq=seq,
        feed="plant",
        asset=asset,
        kind="anomaly",
        state=state,
        reason="the reconstruction error is over its threshold",
        severity="warning",
        ts_ns=1_700_000_000_000_000_000,
        opened_ns=1_700_000_000_000_000_000,
        start_ns=1_699_999_990_000_000_000,
        onset_ns=1_699_999_995_000_000_000,
        end_ns=None,
        ratio=1.5,
        peak_ratio=2.25,
        threshold=0.125,
        coverage=1.0,
        top_channels=(TopChannel("flow", 0.75, 1.0, 3.5), TopChannel("pressure", 0.25, 4.0, 4.5)),
        model_id="bundle-1",
        config_id="config-1",
        evidence=Position("in", 0, 41, 0),
    )


def a_dead_letter(value: bytes = b"{broken") -> DeadLetter:
    return DeadLetter("in", 1, 17, -1, "not_json", "the message is not JSON: fix the sender", value)
