from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kafka_fixture import FeedTopics, an_alert, shared_broker, until

from connectors import kafka_runtime
from connectors.cluster import Cluster, Node, free_ports, main, node_properties
from connectors.kafka_client import NewTopic
from connectors.kafka_runtime import KAFKA_VERSION, Runtime, default_libs, fetch_jars, find_runtime
from pipeline.errors import ConfigError, Unavailable
from pipeline.protocols import Batch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.kafka
def test_a_broker_outlives_its_starter_survives_a_crash_and_ends_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_broker()  # skips where none can be run
    where = ["--dir", str(tmp_path)]
    try:
        started = command("start", *where)
        assert started.returncode == 0, started.stderr
        bootstrap = started.stdout.strip()
        feed = FeedTopics(bootstrap).create()
        for action in ("start", "status"):
            assert main([action, *where]) == 0
            assert capsys.readouterr().out.strip() == bootstrap
        cluster = Cluster(1, tmp_path)
        assert len(cluster.pids) == 1
        cluster.kill(1)
        assert main(["status", *where]) == 3
        assert cluster.pids == []
        cluster.restart(1)
        assert cluster.bootstrap == bootstrap
        assert {feed.input, feed.state} <= feed.client().topics().keys()
        assert command("stop", *where).returncode == 0
        until(lambda: cluster.pids == [])
    finally:
        command("stop", *where)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m connectors.cluster`, as `./dev kafka` does."""
    line = [sys.executable, "-m", "connectors.cluster", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.kafka
@pytest.mark.slow
def test_a_cluster_of_three_commits_while_one_node_is_down_and_takes_it_back() -> None:
    shared_broker()
    with Cluster(3) as cluster:
        assert len(cluster.pids) == 3
        feed = FeedTopics(cluster.bootstrap).create(1)
        committer = feed.committer("confluent")
        committer.commit(Batch({(feed.input, 0): 1}, [an_alert(0)]))
        cluster.kill(2)
        assert len(cluster.pids) == 2
        committer.commit(Batch({(feed.input, 0): 2}, [an_alert(1)]))
        committer.close()
        cluster.restart(2)
        assert len(cluster.pids) == 3
        assert len(feed.read(feed.alerts)) == 2
    assert not cluster.folder.exists()
    assert cluster.pids == []


@pytest.mark.kafka
def test_a_frozen_broker_goes_on_where_it_was() -> None:
    broker = shared_broker()
    client = FeedTopics(broker.bootstrap).client()
    broker.cluster.pause(1)
    try:
        with pytest.raises(Unavailable):
            client.topics(timeout_s=1)
    finally:
        broker.cluster.resume(1)
    assert client.create_topics([NewTopic(f"after-{os.getpid()}-{id(client)}", 1)])


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    shared_broker()
    cluster = Cluster(1, tmp_path, properties={"node.id": "not a number"})
    with pytest.raises(Unavailable, match=r"(?s)could not be formatted.*not a number"):
        cluster.start()
    assert cluster.pids == []


def test_a_process_that_is_not_ours_is_never_signalled(tmp_path: Path) -> None:
    mine = {"bootstrap": "127.0.0.1:1", "docker": "", "nodes": [[1, 20001, 20002, os.getpid()]]}
    (tmp_path / "cluster.json").write_text(json.dumps(mine))
    cluster = Cluster(1, tmp_path)
    assert cluster.pids == []
    cluster.stop()  # would end the tests


def test_a_folder_of_another_number_of_nodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps({"nodes": [[1, 20001, 20002, 0]]}))
    with pytest.raises(ConfigError, match="holds a cluster of 1"):
        Cluster(3, tmp_path)
    with pytest.raises(ConfigError, match="at least 1"):
        Cluster(0)


def test_where_nothing_was_started_stop_is_done_and_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "--dir", str(tmp_path)]) == 0
    assert main(["status", "--dir", str(tmp_path)]) == 3
    assert "no cluster was started" in capsys.readouterr().err


def test_three_nodes_replicate_and_one_does_not() -> None:
    ports = free_ports(6)
    assert len(set(ports)) == 6
    nodes = [Node(i + 1, ports[2 * i], ports[2 * i + 1]) for i in range(3)]
    one, three = node_properties(nodes[0], nodes[:1], Path("d")), node_properties(nodes[1], nodes, Path("d"))
    assert (one["default.replication.factor"], one["min.insync.replicas"]) == ("1", "1")
    assert (three["default.replication.factor"], three["min.insync.replicas"]) == ("3", "2")
    assert three["node.id"] == "2"
    assert three["controller.quorum.voters"].count("@127.0.0.1:") == 3


def test_without_java_and_docker_the_error_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(Unavailable, match=r"java \(17 or newer\) is not on the path; docker is not on the path"):
        find_runtime(tmp_path / "libs")
    with pytest.raises(Unavailable, match="mvn, which fetches them, is not on the path"):
        fetch_jars(tmp_path / "libs")
    assert main(["start", "--dir", str(tmp_path / "kafka")]) == 75


def test_jars_that_are_there_are_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / f"kafka_2.13-{KAFKA_VERSION}.jar").touch()
    assert fetch_jars(tmp_path) == tmp_path


def test_a_fetch_that_fails_shows_what_maven_said_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'could not resolve'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    with pytest.raises(Unavailable, match="could not resolve"):
        fetch_jars(tmp_path / "kafka" / "libs")
    assert list((tmp_path / "kafka").iterdir()) == []


STAND_IN = """#!/bin/sh
# A docker that runs the command of a container beside it: names, options, signals and ends as the real one has them.
case "$1" in
    version) echo 28.2.2; exit ;;
    kill) kill -s "${3#SIG}" "$(cat "$0.$4")"; exit ;;
esac
while [ "${1#apache/kafka:}" = "$1" ]; do
    if [ "$1" = --name ]; then name=$2; fi
    if [ "$1" = --volume ]; then cd "${2%%:*}" || exit 125; fi
    shift
done
if [ -e "$0.$name" ]; then echo "the container name $name is already in use"; exit 125; fi
shift
for argument do
    shift
    if [ "$argument" = "/opt/kafka/libs/*" ]; then argument="LIBS/*"; fi
    set -- "$@" "$argument"
done
JAVA "$@" &
echo $! > "$0.$name"
wait $!
code=$?
rm "$0.$name"
exit $code
"""


@pytest.mark.kafka
def test_a_broker_in_a_container_is_formatted_started_crashed_restarted_and_stopped_through_docker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared_broker()
    program = tmp_path / "docker"
    java = kafka_runtime.find_java()
    if not java:
        pytest.skip("the stand-in for docker runs a broker with Java, which is not here")
    program.write_text(STAND_IN.replace("JAVA", java).replace("LIBS", str(fetch_jars(default_libs()))))
    program.chmod(0o755)
    monkeypatch.setattr(kafka_runtime, "find_java", lambda: "")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with Cluster(1, tmp_path / "cluster") as cluster:
        feed = FeedTopics(cluster.bootstrap).create()
        cluster.kill(1)
        assert cluster.pids == []
        cluster.restart(1)
        assert {feed.input, feed.state} <= feed.client().topics().keys()
        assert (tmp_path / f"docker.midwatch-kafka-{cluster.nodes[0].port}").exists()
    assert list(tmp_path.glob("docker.*")) == []


def test_the_docker_image_is_used_where_there_is_an_engine_and_no_java(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kafka_runtime, "find_java", lambda: "")
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 28.2.2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    runtime = find_runtime()
    line = runtime.command("midwatch-kafka-1", tmp_path, "kafka.Kafka", "n.properties")
    assert line[:6] == [str(program), "run", "--rm", "--name", "midwatch-kafka-1", "--network"]
    assert line[line.index("--entrypoint") + 2] == f"apache/kafka:{KAFKA_VERSION}"
    assert line[-4:] == ["-cp", "/opt/kafka/libs/*", "kafka.Kafka", "n.properties"]
    assert f"{tmp_path}:{tmp_path}" in line


def test_jars_are_kept_in_the_checkout_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_libs() == ROOT / ".kafka" / "libs"
    monkeypatch.setattr(kafka_runtime, "__file__", str(tmp_path / "site-packages" / "connectors" / "kafka_runtime.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_libs() == tmp_path / "cache" / "midwatch" / f"kafka-{KAFKA_VERSION}"


def test_java_runs_a_main_class_with_the_jars_on_its_class_path() -> None:
    runtime = Runtime(("java", "-cp", "libs/*"))
    assert runtime.command("unused", Path("d"), "kafka.Kafka", "p") == ["java", "-cp", "libs/*", "kafka.Kafka", "p"]
