"""Real Apache Kafka on this machine: n combined KRaft nodes on loopback ports, for trials and tests.

Only processes that this module started are ever signalled, by their id.

    python -m connectors.cluster start [--nodes 3] [--dir var/kafka]     prints the bootstrap servers
    python -m connectors.cluster status | stop [--dir var/kafka]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from connectors.kafka_client import NewTopic, connect
from connectors.kafka_runtime import Runtime, find_runtime, last_lines, run_quietly
from connectors.kafka_settings import KafkaSettings
from pipeline.errors import ConfigError, PipelineError, Unavailable

_CLUSTER_ID: Final = "MmbRAjhQT32rhRqN2lIh8A"  # any 22 characters, the same for every node
# Below the range from which systems take the ports of outgoing connections (32768 and up on Linux), so that nothing
# takes a node's port while it is down and about to be restarted.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000
_STATE: Final = "cluster.json"


@dataclass(slots=True)
class Node:
    """One combined broker and controller. `pid` is 0 while it is not meant to run."""

    number: int
    port: int
    controller_port: int
    pid: int = 0
    process: subprocess.Popen[bytes] | None = None  # None where another process started it


class Cluster:
    """n combined nodes on free loopback ports, as a context manager or by `start` and `stop`.

    Parameters
    ----------
    nodes : 1, or 3 and more for replication (factor 3, two in sync).
    folder : data, logs and the state file; kept, and taken up again with the same data and ports.
        None: a temporary one, removed by `stop`.
    libs : where Kafka's jars are or go; default: `connectors.kafka_runtime.default_libs()`.
    properties : broker settings that are added or replaced, e.g. `{"group.min.session.timeout.ms": "1000"}`.
    """

    def __init__(
        self,
        nodes: int = 1,
        folder: Path | None = None,
        libs: Path | None = None,
        properties: Mapping[str, str] | None = None,
        start_timeout_s: float = 90.0,
    ) -> None:
        if nodes < 1:
            raise ConfigError("nodes", nodes, "at least 1")
        self.temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="midwatch-kafka-")) if folder is None else folder.resolve()
        self.libs = libs
        self.properties = dict(properties or {})
        self.start_timeout_s = start_timeout_s
        saved = read_state(self.folder)
        self._docker = str(saved.get("docker", ""))
        self.nodes = [Node(*numbers) for numbers in saved.get("nodes", [])] or _new_nodes(nodes)
        if len(self.nodes) != nodes:
            fix = f"{self.folder} holds a cluster of {len(self.nodes)}: stop it and remove the folder, or name another"
            raise ConfigError("nodes", nodes, fix)
        self._runtime: Runtime | None = None

    @property
    def bootstrap(self) -> str:
        """Return the bootstrap servers, as clients take them."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the nodes that run."""
        return [node.pid for node in self.nodes if self._alive(node)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start all nodes that do not run, and return when every one of them is listed as a broker.

        Raises
        ------
        Unavailable : Kafka cannot be run here, or a node ended or did not answer in time (with its log's last lines).
        """
        try:
            self._runtime = self._runtime or find_runtime(self.libs)
            self._docker = self._runtime.docker
            self._format(self._runtime)
            for node in self.nodes:
                if not self._alive(node):
                    self._launch(node, self._runtime)
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all nodes: cleanly, or at once where the data is thrown away with them."""
        for node in self.nodes:
            self._signal(node, signal.SIGCONT)
            self._signal(node, signal.SIGKILL if self.temporary else signal.SIGTERM)
        for node in self.nodes:
            self._wait_ended(node, 20.0)
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._save()

    def kill(self, number: int) -> None:
        """Crash a node (the first is 1)."""
        node = self.nodes[number - 1]
        self._signal(node, signal.SIGKILL)
        self._wait_ended(node, 20.0)

    def pause(self, number: int) -> None:
        """Freeze a node until `resume`: its connections stay open and nothing answers."""
        self._signal(self.nodes[number - 1], signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let a frozen node go on."""
        self._signal(self.nodes[number - 1], signal.SIGCONT)

    def restart(self, number: int) -> None:
        """Start a node that was killed, with the data it had; returns when it is listed again."""
        self._runtime = self._runtime or find_runtime(self.libs)
        self._launch(self.nodes[number - 1], self._runtime)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when every node that is meant to run accepts connections and is listed by the cluster."""
        meant = [node for node in self.nodes if node.pid]
        expected = {f"127.0.0.1:{node.port}" for node in meant}
        admin = connect(KafkaSettings(self.bootstrap), "confluent")
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            for node in meant:
                if not self._alive(node):
                    raise Unavailable(f"Kafka node {node.number} ended:\n{last_lines(self._log(node).read_text())}")
            if all(_listens(node.port) for node in meant):
                with contextlib.suppress(Unavailable):
                    if expected <= admin.brokers(timeout_s=2.0):
                        return
            time.sleep(0.05)
        raise Unavailable(f"Kafka did not answer within {self.start_timeout_s:.0f} s; its logs are in {self.folder}")

    def create_topics(self, topics: Sequence[NewTopic]) -> list[str]:
        """Create the topics that are not there; return the names of those made."""
        return connect(KafkaSettings(self.bootstrap), "confluent").create_topics(topics)

    def _format(self, runtime: Runtime) -> None:
        """Write each node's properties and format its folder, once; side by side, as each takes a JVM a second."""
        runs = []
        for node in self.nodes:
            data = self._place(node) / "data"
            if (data / "meta.properties").exists():
                continue
            data.parent.mkdir(parents=True, exist_ok=True)
            settings = {**node_properties(node, self.nodes, data), **self.properties}
            path = data.with_name("server.properties")
            path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
            tool = ("kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(path))
            command = runtime.command(f"{_container(node)}-format", self.folder, *tool)
            runs.append((self._log(node), _spawn(command, self._log(node))))
        for log, run in runs:
            if run.wait(60):
                raise Unavailable(f"Kafka's storage could not be formatted:\n{last_lines(log.read_text())}")

    def _launch(self, node: Node, runtime: Runtime) -> None:
        path = str(self._place(node) / "server.properties")
        node.process = _spawn(runtime.command(_container(node), self.folder, "kafka.Kafka", path), self._log(node))
        node.pid = node.process.pid
        self._save()

    def _alive(self, node: Node) -> bool:
        if node.process is not None:
            return node.process.poll() is None
        # A pid from the state file may be somebody else's by now: ours has its properties file on the command line.
        return node.pid > 0 and str(self._place(node) / "server.properties") in _command_line(node.pid)

    def _signal(self, node: Node, which: signal.Signals) -> None:
        if not self._alive(node):
            return
        if self._docker:
            run_quietly([self._docker, "kill", "--signal", which.name, _container(node)], timeout_s=20)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, which)

    def _wait_ended(self, node: Node, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self._alive(node):
            if time.monotonic() > deadline:
                self._signal(node, signal.SIGKILL)
                deadline += within_s
            time.sleep(0.02)
        node.pid, node.process = 0, None

    def _place(self, node: Node) -> Path:
        return self.folder / f"node{node.number}"

    def _log(self, node: Node) -> Path:
        return self._place(node) / "node.log"

    def _save(self) -> None:
        nodes = [[node.number, node.port, node.controller_port, node.pid] for node in self.nodes]
        beside = self.folder / f"{_STATE}.new"
        beside.write_text(json.dumps({"bootstrap": self.bootstrap, "docker": self._docker, "nodes": nodes}))
        beside.replace(self.folder / _STATE)


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state file of a cluster's folder: bootstrap, docker, nodes (number, ports, pid); {} if none."""
    try:
        state: dict[str, Any] = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        return {}
    return state


def node_properties(node: Node, nodes: Sequence[Node], data: Path) -> dict[str, str]:
    """Return the broker settings of one combined node, for loopback and small machines."""
    copies = str(min(len(nodes), 3))
    in_sync = "2" if len(nodes) >= 3 else "1"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.number),
        "controller.quorum.voters": ",".join(f"{n.number}@127.0.0.1:{n.controller_port}" for n in nodes),
        "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data),
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
        # A node that was killed is taken back when its session has ended: by default after 9 s.
        "broker.session.timeout.ms": "5000",
        "broker.heartbeat.interval.ms": "1000",
        "log.cleaner.dedupe.buffer.size": str(16 << 20),
    }


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def _new_nodes(count: int) -> list[Node]:
    ports = free_ports(2 * count)
    return [Node(i + 1, ports[2 * i], ports[2 * i + 1]) for i in range(count)]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _container(node: Node) -> str:
    return f"midwatch-kafka-{node.port}"


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that an interrupt at the terminal does not reach it."""
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        ps = None if Path("/proc/self").exists() else shutil.which("ps")
    return run_quietly([ps, "-o", "command=", "-p", str(pid)], timeout_s=10).stdout if ps else ""


def main(arguments: Sequence[str]) -> int:
    """Start, stop or show a cluster; return the exit code (0 runs or done, 3 does not run, 75 cannot)."""
    parser = argparse.ArgumentParser(prog="python -m connectors.cluster", description="Apache Kafka on this machine.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--nodes", type=int, help="default: 1, or as many as there were")
    parser.add_argument("--dir", type=Path, default=Path("var/kafka"), help="data, logs and state (%(default)s)")
    given = parser.parse_args(arguments)
    known = len(read_state(given.dir).get("nodes", []))
    if given.action != "start" and not known:
        sys.stderr.write(f"no cluster was started in {given.dir}\n")
        return 0 if given.action == "stop" else 3
    try:
        given.dir.mkdir(parents=True, exist_ok=True)
        cluster = Cluster(given.nodes or known or 1, given.dir)
        if given.action == "stop":
            cluster.stop()
            return 0
        if given.action == "start":
            cluster.start()
    except PipelineError as failed:
        sys.stderr.write(f"{failed}\n")
        return 75 if failed.retriable else 2
    sys.stdout.write(f"{cluster.bootstrap}\n")
    running = cluster.pids
    for node in cluster.nodes:
        state = f"pid {node.pid}" if node.pid in running else "down"
        sys.stderr.write(f"node {node.number} at 127.0.0.1:{node.port}: {state}\n")
    return 0 if len(running) == len(cluster.nodes) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
