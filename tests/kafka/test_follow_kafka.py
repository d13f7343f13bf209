"""Committed topics followed over a real broker: what is rolled back is never seen, and a kill changes no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import confluent_kafka.admin
import pytest
from io_cases import T0, a_push, an_alert
from kafka_fixture import LIBRARIES, FeedTopics, until

from connectors.history_views import open_history
from connectors.kafka_client import Committed
from connectors.kafka_follow import KafkaFollower
from connectors.scores_topic import ScoresTopic
from jobs.console import Console
from jobs.historian import historian as write_history
from jobs.settings import load
from pipeline.errors import StateError
from pipeline.protocols import Batch
from pipeline.values import Position, Scored

pytestmark = pytest.mark.kafka
NAMES = ("temp", "vib_x", "vib_y")
ASSETS = ("a0", "a1")
MIDWATCH = [sys.executable, "-c", "import sys; sys.argv[0] = 'midwatch'; from jobs.cli import main; main()"]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(feed: FeedTopics, library: str) -> Iterator[object]:
    held: list[KafkaFollower] = []

    def one(**options: object) -> KafkaFollower:
        topics = {"kafka.topic": feed.input}
        held.append(KafkaFollower(feed.client(library), topics, f"{feed.group}-follow", **options))
        return held[-1]

    yield one
    for follower in held:
        follower.close()


def read_all(follower: KafkaFollower, count: int) -> list[tuple[int, int]]:
    """Return (partition, offset) of what is read until there is that much."""
    found: list[tuple[int, int]] = []

    def enough() -> bool:
        found.extend((p.partition, at) for p in follower.poll(1000, 0.1) for at in p.offset.tolist())
        return len(found) >= count

    until(enough, 20)
    return sorted(found)


def test_it_goes_on_after_what_was_said_to_be_safe(feed: FeedTopics, opened) -> None:
    feed.feed([b"1", b"2", b"3"], partition=0)
    feed.feed([b"4"], partition=1)
    first = opened()
    assert read_all(first, 4) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    first.commit({(feed.input, 0): Committed(2, "a note"), (feed.input, 1): Committed(1)})
    second = opened()
    assert second.taken_up((feed.input, 0)) == Committed(2, "a note")
    assert read_all(second, 1) == [(0, 2)]
    with pytest.raises(StateError, match="newer process"):
        first.commit({(feed.input, 0): Committed(3)})


def test_a_partition_that_is_held_is_not_read_and_the_others_are(feed: FeedTopics, opened) -> None:
    for p in range(2):
        feed.feed([b"1", b"2"], partition=p)
    follower = opened()
    read_all(follower, 4)
    follower.hold([(feed.input, 1)])
    for p in range(2):
        feed.feed([b"3"], partition=p)
    assert read_all(follower, 1) == [(0, 2)]
    assert follower.position((feed.input, 1)) == 2
    follower.hold([])
    assert read_all(follower, 1) == [(1, 2)]


def test_a_partition_that_is_added_is_read_from_its_start(feed: FeedTopics, opened, monkeypatch) -> None:
    follower = opened()
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    admin.create_partitions([confluent_kafka.admin.NewPartitions(feed.input, 3)])[feed.input].result(10)
    until(lambda: feed.client().topics()[feed.input] == 3)
    feed.feed([b"1"], partition=2)
    monkeypatch.setattr(follower, "_check_at", 0.0)
    assert read_all(follower, 1) == [(2, 0)]
    assert follower.counts["added"] == 1


def test_messages_that_have_aged_out_are_an_error_that_can_be_accepted(feed: FeedTopics, opened) -> None:
    feed.feed([b"%d" % i for i in range(10)])
    first = opened()
    first.commit({(feed.input, 0): Committed(3)})
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    place = confluent_kafka.TopicPartition(feed.input, 0, 7)
    admin.delete_records([place])[place].result(10)
    with pytest.raises(StateError, match=r"offset 3 has aged out, .* 7; the 4 messages .*kafka.aged_out"):
        opened()
    second = opened(resume=True)
    assert read_all(second, 3) == [(0, 7), (0, 8), (0, 9)]
    assert second.counts["lost"] == 4


def message(offset: int, partition: int) -> bytes:
    values = {name: round((offset * 7 + partition + c) % 11 / 3, 3) for c, name in enumerate(NAMES)}
    return json.dumps({"asset": ASSETS[offset % 2], "ts": T0 + offset * 10**9, **values}).encode()


def a_batch(feed: FeedTopics, partition: int, first: int, after: int) -> Batch:
    _, verdicts = a_push(range(first, after), delay=3, partition=partition)
    alerts = [
        an_alert(f"p{partition}-{at}", feed="north", evidence=Position(feed.input, partition, at))
        for at in range(first, after)
        if at % 10 == 9
    ]
    scored = Scored(feed.input, partition, ASSETS, verdicts, first, after)
    return Batch({(feed.input, partition): after}, alerts, scored=[scored])


def commit_all(feed: FeedTopics, end: int) -> None:
    """Fill the topics as a watch would that was killed in the middle of a commit, and went on."""

    class Killed(Exception):
        pass

    def kill(step: str) -> None:
        if step == "after_send_offsets":
            raise Killed

    for p in range(2):
        feed.feed([message(at, p) for at in range(end)], partition=p)
    topic = ScoresTopic(feed.scores, "north", NAMES)
    killed = feed.committer("confluent", scores=topic, at_step=kill)
    with pytest.raises(Killed):
        killed.commit(a_batch(feed, 0, 0, 39))
    committer = feed.committer("confluent", scores=topic)
    for first in range(0, end, 7):
        for p in range(2):
            committer.commit(a_batch(feed, p, first, min(first + 7, end)))
    killed.close()
    committer.close()


def configure(folder: Path, feed: FeedTopics, library: str, group: str) -> Path:
    folder.mkdir()
    path = folder / "midwatch.toml"
    path.write_text(f"""
[feed]
name = "north"
channels = {json.dumps(NAMES)}
[mapping]
time_unit = "ns"
max_ahead_s = "off"
[source]
type = "kafka"
[kafka]
bootstrap = ["{feed.bootstrap}"]
client = "{library}"
topic = "{feed.input}"
group = "{group}"
alerts_topic = "{feed.alerts}"
dead_topic = "{feed.dead}"
state_topic = "{feed.state}"
scores_topic = "{feed.scores}"
[history]
range_rows = 64
""")
    return path


def midwatch(config: Path, *arguments: str, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    environ = os.environ | {"NO_COLOR": "1", "PYTHONPATH": path, "MIDWATCH_FAILPOINT": failpoints}
    command = [*MIDWATCH, *arguments, "-c", str(config)]
    return subprocess.run(command, cwd=config.parent, env=environ, capture_output=True, text=True, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    root = folder / "var" / "history"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def test_a_historian_that_is_killed_again_and_again_writes_the_files_of_one_that_was_not(
    feed: FeedTopics, tmp_path: Path
) -> None:
    commit_all(feed, 200)
    plain = configure(tmp_path / "plain", feed, "kafka-python", "plain")
    settings = load(config=plain, flags={"history.root": str(plain.parent / "var/history")}, environ={}).settings
    counts = write_history(settings=settings, once=True, console=Console(as_json=True, quiet=True))
    assert counts == {"rows": 400, "scores": 394, "alerts": 40, "pushes": 58}
    with open_history(tmp_path / "plain" / "var" / "history") as history:
        # What the killed watch had sent was never committed: of its push (0, 39) there is nothing.
        found = history.execute("SELECT count(*), count(DISTINCT id) FROM alerts").fetchone()
        assert found == (40, 40)
        found = history.execute('SELECT count(*), count(DISTINCT (partition, "offset")) FROM scores').fetchone()
        assert found == (394, 394)
    run = configure(tmp_path / "run", feed, "confluent", "run")
    for point in ("publish:0.2:3", "published:0.2:5", "commit:1"):
        assert midwatch(run, "historian", "--once", failpoints=point).returncode == -signal.SIGKILL
    ended = midwatch(run, "historian", "--once")
    assert ended.returncode == 0, ended.stderr
    assert len(files(tmp_path / "run")) == 17
    assert files(tmp_path / "run") == files(tmp_path / "plain")


def test_committed_alerts_reach_the_configured_file_once_over_two_processes(feed: FeedTopics, tmp_path: Path) -> None:
    commit_all(feed, 100)
    config = configure(tmp_path / "notify", feed, "confluent", "notify")
    alerts = config.parent / "var" / "alerts.ndjson"
    for count in (20, 30):
        environ = os.environ | {"NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [*MIDWATCH, "notify", "-c", str(config)]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=config.parent, env=environ, stderr=log)
        until(lambda count=count: alerts.exists() and len(alerts.read_bytes().splitlines()) >= count, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
        if count == 20:
            committer = feed.committer("confluent", scores=ScoresTopic(feed.scores, "north", NAMES))
            committer.commit(a_batch(feed, 0, 1000, 1100))
            committer.close()
    keys = [(a["id"], a["seq"]) for a in map(json.loads, alerts.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 30
