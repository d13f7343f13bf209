from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from kafka_fixture import LIBRARIES, Broker, FeedTopics, a_dead_letter, an_alert

from connectors.alert_json import cloud_event_headers, decode_alert
from connectors.kafka_client import Committed, NewTopic
from connectors.kafka_commit import KafkaCommitter
from connectors.kafka_state import delta_records
from connectors.kafka_topics import create_topics
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, Rebalanced, StateError
from pipeline.protocols import AssetState, Batch, Committer, Restored

pytestmark = pytest.mark.kafka

Open = Callable[..., KafkaCommitter]

# Where the client makes no difference: both keep the same contract (tests/contracts).
once = pytest.mark.parametrize("library", ["kafka-python"], indirect=True)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def feed(broker: Broker) -> FeedTopics:
    """Topics with enough in the input for every position that is committed here."""
    made = FeedTopics(broker.bootstrap).create()
    for partition in (0, 1):
        made.feed([b"."] * 300, partition)
    return made


@pytest.fixture
def opened(feed: FeedTopics, library: str) -> Iterator[Open]:
    """Open committers of the feed; closed at the end of the test."""
    held: list[KafkaCommitter] = []

    def one(**options: Any) -> KafkaCommitter:
        held.append(feed.committer(options.pop("library", library), **options))
        return held[-1]

    yield one
    for committer in held:
        committer.close()


def restored_as(position: int, assets: list[AssetState]) -> Restored:
    return Restored(position, assets, [])


def states(*assets: str, mark: str = "") -> list[AssetState]:
    return [AssetState(a, f"columns {a} {mark}".encode(), f"window {a} {mark}".encode()) for a in assets]


def test_a_partition_that_was_never_committed_has_nothing_to_restore(feed: FeedTopics, opened: Open) -> None:
    committer: Committer = opened()
    assert committer.restore(feed.input, 0) is None


@pytest.mark.parametrize("reader", LIBRARIES)
def test_what_was_committed_is_restored_by_either_client(reader: str, feed: FeedTopics, opened: Open) -> None:
    here, there = (feed.input, 0), (feed.input, 1)
    first = opened()
    first.restore(*here)
    first.commit(Batch({here: 10}, states={here: states("b", "a", "#commit", "größe")}))
    first.commit(Batch({here: 20, there: 7}, states={here: states("a", mark="newer"), there: states("z")}))
    first.commit(Batch({here: 21}))
    second = opened(library=reader)
    expected = sorted([*states("b", "#commit", "größe"), *states("a", mark="newer")], key=lambda s: s.asset)
    restored = second.restore(*here)
    assert restored is not None
    assert restored.position == 21
    assert sorted(restored.assets, key=lambda s: s.asset) == expected
    assert second.restore(*there) == restored_as(7, states("z"))


def test_alerts_and_dead_letters_are_records_that_strangers_can_read(feed: FeedTopics, opened: Open) -> None:
    alerts = [an_alert(0), an_alert(1, "pump-7", "resolved"), an_alert(0, "fan-1")]
    dead = a_dead_letter(b"\xff{broken\x00")
    opened().commit(Batch({(feed.input, 0): 1}, alerts, [dead]))
    found = sorted(decode_alert(value or b"").seq for key, value in feed.read(feed.alerts) if key == b"pump-7")
    assert found == [0, 1]
    reader = confluent_kafka.Consumer({"bootstrap.servers": feed.bootstrap, "group.id": "stranger"})
    reader.assign([confluent_kafka.TopicPartition(feed.dead, 0, 0)])
    letter = reader.poll(10)
    assert letter is not None
    assert letter.value() == dead.value
    assert dict(letter.headers() or ()) == {
        "midwatch_reason": b"not_json",
        "midwatch_detail": b"the message is not JSON: fix the sender",
        "midwatch_topic": b"in",
        "midwatch_partition": b"1",
        "midwatch_offset": b"17",
        "midwatch_row": b"-1",
    }
    reader.assign([confluent_kafka.TopicPartition(feed.alerts, p, 0) for p in range(2)])
    record = next(m for m in iter(lambda: reader.poll(10), None) if m.key() == b"fan-1")
    reader.close()
    assert record.headers() == cloud_event_headers(alerts[2])


@once
@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
def test_kcat_reads_an_alert_back(feed: FeedTopics, opened: Open) -> None:
    opened().commit(Batch({(feed.input, 0): 1}, [an_alert()]))
    command = ["kcat", "-b", feed.bootstrap, "-t", feed.alerts, "-C", "-e", "-q", "-f", "%k|%h|%s\n"]
    key, headers, body = (
        subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip().split("|", 2)
    )
    assert key == "pump-7"
    assert "ce_id=a1b2c3:0" in headers
    assert "ce_type=io.midwatch.alert.open" in headers
    assert decode_alert(body.encode()) == an_alert()


@pytest.mark.parametrize("step", ["after_produce", "after_send_offsets", "after_commit"])
def test_a_process_that_dies_in_a_commit_leaves_all_of_it_or_nothing(
    step: str, library: str, feed: FeedTopics, opened: Open
) -> None:
    place = (feed.input, 0)
    before = opened()
    before.commit(Batch({place: 100}, [an_alert(seq=0)], states={place: states("pump-7")}))
    worker = start_worker(feed, library, step)
    finish(worker)
    assert worker.returncode == 9
    restored = opened().restore(*place)  # fences the dead worker off, and ends its transaction
    seqs = seqs_of(feed)
    if step == "after_commit":
        dead = [AssetState("pump-7", b"columns of the dead", b"window of the dead")]
        assert (restored, seqs) == (restored_as(200, dead), [0, 1])
    else:
        assert (restored, seqs) == (restored_as(100, states("pump-7")), [0])


def test_a_broker_that_stops_answering_ends_the_process_and_the_next_goes_on_from_the_last_commit(
    library: str, feed: FeedTopics, opened: Open, broker: Broker
) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 100}, states={place: states("pump-7")}))
    worker = start_worker(feed, library, "", timeout_s=1.5)
    broker.cluster.pause(1)
    try:
        finish(worker)
    finally:
        broker.cluster.resume(1)
    assert worker.returncode == 75
    assert opened().restore(*place) == restored_as(100, states("pump-7"))
    assert feed.read(feed.alerts) == []


@pytest.mark.parametrize("library", ["confluent"], indirect=True)  # kafka-python waits until the watchdog ends it
def test_a_commit_that_failed_for_want_of_a_broker_is_made_again_after_a_restore(
    feed: FeedTopics, opened: Open, broker: Broker
) -> None:
    place = (feed.input, 0)
    batch = Batch({place: 20}, [an_alert()], states={place: states("a", mark="newer")})
    committer = opened(commit_timeout_s=1.5)
    committer.commit(Batch({place: 10}, states={place: states("a")}))
    broker.cluster.pause(1)
    try:
        with pytest.raises(BrokerUnavailable, match="slot 0"):
            committer.commit(batch)
    finally:
        broker.cluster.resume(1)
    assert committer.restore(*place) == restored_as(10, states("a"))
    committer.commit(batch)
    assert committer.restore(*place) == restored_as(20, states("a", mark="newer"))
    assert len(feed.read(feed.alerts)) == 1


def start_worker(feed: FeedTopics, library: str, step: str, timeout_s: float = 10.0) -> subprocess.Popen[str]:
    """Start commit_and_die.py; returns once it has opened its committer."""
    script = str(Path(__file__).with_name("commit_and_die.py"))
    path = os.pathsep.join(p for p in sys.path if p)
    worker = subprocess.Popen(
        [sys.executable, script, feed.bootstrap, feed.mark, library, step, str(timeout_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "open\n"
    return worker


def finish(worker: subprocess.Popen[str]) -> None:
    """Let the worker commit, and wait for its end."""
    worker.communicate("go\n", timeout=30)


def test_a_second_process_of_the_same_slot_fences_the_first_off(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    first = opened()
    first.commit(Batch({place: 10}, [an_alert(0)], states={place: states("a")}))
    second = opened()
    who = rf"group '{feed.group}', slot 0, host {re.escape(socket.gethostname())}, pid {os.getpid()}"
    with pytest.raises(StateError, match=rf"newer process.*{who}"):
        first.commit(Batch({place: 20}, [an_alert(1)], states={place: states("a", mark="late")}))
    with pytest.raises(StateError, match="newer process"):
        first.commit(Batch({place: 20}))
    assert second.restore(*place) == restored_as(10, states("a"))
    second.commit(Batch({place: 30}, [an_alert(1)]))
    assert len(feed.read(feed.alerts)) == 2


def test_a_process_that_was_superseded_before_its_first_commit_does_not_take_the_slot_back(
    feed: FeedTopics, opened: Open
) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 10}, states={place: states("a")}))
    frozen = opened()
    frozen.restore(*place)
    newer = opened()
    newer.commit(Batch({place: 30}, [an_alert(0)], states={place: states("a", mark="newer")}))
    with pytest.raises(Fenced):
        frozen.commit(Batch({place: 20}, [an_alert(1)], states={place: states("a", mark="stale")}))
    newer.commit(Batch({place: 40}, [an_alert(2)]))
    assert newer.restore(*place) == restored_as(40, states("a", mark="newer"))
    assert sorted(seqs_of(feed)) == [0, 2]


def lost_under(committer: KafkaCommitter, batch: Batch, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    """Commit with a connection that breaks before, or after, the broker has taken the commit."""
    commit = committer._producer.commit

    def lost() -> None:
        if taken:
            commit()
        raise BrokerUnavailable("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(committer._producer, "commit", lost)
        with pytest.raises(BrokerUnavailable, match="broke"):
            committer.commit(batch)


@pytest.mark.parametrize("position", [20, 15])
def test_a_commit_in_doubt_is_not_taken_for_one_that_a_newer_process_made_meanwhile(
    position: int, feed: FeedTopics, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (feed.input, 0), (feed.input, 1)
    older = opened()
    older.commit(Batch({here: 10, there: 10}))
    batch = Batch({here: 20}, [an_alert(1)])
    lost_under(older, batch, monkeypatch, taken=False)
    newer = opened()
    newer.commit(Batch({here: 15}, [an_alert(0)]) if position == 15 else Batch({there: 20}, [an_alert(0)]))
    for _ in range(2):
        with pytest.raises(Fenced, match="another process has committed meanwhile"):
            older.commit(batch)
    assert seqs_of(feed) == [0]


@pytest.mark.parametrize("taken", [True, False])
def test_a_commit_in_doubt_is_published_once(
    taken: bool, feed: FeedTopics, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (feed.input, 0), (feed.input, 1)
    committer = opened()
    committer.commit(Batch({here: 10}))
    batch = Batch({here: 20, there: 5}, [an_alert(0)])
    lost_under(committer, batch, monkeypatch, taken)
    committer.commit(batch)
    committer.commit(Batch({here: 30}, [an_alert(1)]))
    assert sorted(seqs_of(feed)) == [0, 1]
    assert committer.restore(*here) == restored_as(30, [])


def test_a_commit_in_doubt_of_which_a_partition_has_moved_on_is_asked_for_the_rest(
    library: str, feed: FeedTopics, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (feed.input, 0), (feed.input, 1)
    reader = feed.client(library).consumer(feed.group)
    member = opened(group_metadata=reader.group_metadata)
    batch = Batch({here: 20, there: 20}, [an_alert(0)])
    lost_under(member, batch, monkeypatch, taken=True)
    opened(slot=1).commit(Batch({there: 30}))
    with pytest.raises(Rebalanced, match=r"in-\w+\[1\]: another process"):
        member.commit(batch)
    member.commit(Batch({here: 20}, [an_alert(0)]))
    assert seqs_of(feed) == [0]
    reader.close()


def seqs_of(feed: FeedTopics) -> list[int]:
    return [decode_alert(value or b"").seq for _, value in feed.read(feed.alerts)]


@once
def test_slots_do_not_fence_one_another(feed: FeedTopics, opened: Open) -> None:
    one, other = opened(slot=0), opened(slot=1)
    one.commit(Batch({(feed.input, 0): 5}, states={(feed.input, 0): states("a")}))
    other.commit(Batch({(feed.input, 1): 6}, states={(feed.input, 1): states("b")}))
    one.commit(Batch({(feed.input, 0): 7}))
    assert one.restore(feed.input, 0) == restored_as(7, states("a"))
    assert other.restore(feed.input, 1) == restored_as(6, states("b"))


@once
def test_a_state_that_does_not_fit_a_record_is_refused_by_name_and_nothing_is_lost(
    feed: FeedTopics, opened: Open
) -> None:
    place = (feed.input, 0)
    committer = opened(max_record_bytes=2000)
    with pytest.raises(StateError, match=r"'whale' takes 3\d\d\d bytes, more than 2000"):
        committer.commit(Batch({place: 9}, [an_alert()], states={place: [AssetState("whale", b"x" * 3000, b"")]}))
    assert feed.read(feed.alerts) == []
    committer.commit(Batch({place: 9}, states={place: states("minnow")}))
    assert committer.restore(*place) == restored_as(9, states("minnow"))


def test_records_larger_than_topics_take_by_default_are_written_where_the_option_and_the_topics_allow_it(
    broker: Broker, library: str
) -> None:
    feed, most = FeedTopics(broker.bootstrap), 3_000_000
    create_topics(feed.client(library), **feed.topics(), scores_topic=feed.scores, max_record_bytes=most)
    feed.feed([b"."] * 10)
    place, noise = (feed.input, 0), os.urandom(2_900_000)
    committer = feed.committer(library, max_record_bytes=most)
    dead = a_dead_letter(noise)
    small = [AssetState(f"fish-{i}", noise[: 200_000 + i], b"") for i in range(9)]
    assets = [*small, AssetState("whale", b"c", noise), AssetState("whale-2", b"c", noise)]
    committer.commit(Batch({place: 9}, [an_alert()], dead=[dead], states={place: assets}))
    assert committer.restore(*place) == restored_as(9, assets)
    committer.close()
    assert [value for _, value in feed.read(feed.dead)] == [noise]
    with pytest.raises(ConfigError, match=rf"kafka\.max_record_bytes = {most + 1}: topic '{feed.state}' takes no more"):
        feed.committer(library, max_record_bytes=most + 1)


@once
def test_a_dead_letter_too_long_for_a_record_is_cut_and_says_so(feed: FeedTopics, opened: Open) -> None:
    opened(max_record_bytes=1000).commit(Batch({(feed.input, 0): 1}, dead=[a_dead_letter(bytes(range(256)) * 20)]))
    reader = confluent_kafka.Consumer({"bootstrap.servers": feed.bootstrap, "group.id": "stranger"})
    reader.assign([confluent_kafka.TopicPartition(feed.dead, 0, 0)])
    letter = reader.poll(10)
    reader.close()
    assert letter is not None
    value = letter.value() or b""
    assert 300 < len(value) < 1000
    assert (bytes(range(256)) * 20).startswith(value)
    assert dict(letter.headers() or ())["midwatch_cut_from"] == b"5120"


@once
def test_a_missing_topic_is_named_with_the_command_that_creates_it(broker: Broker, library: str) -> None:
    feed = FeedTopics(broker.bootstrap)
    with pytest.raises(ConfigError, match=rf"alerts_topic = '{feed.alerts}': no such topic.*`midwatch topics create`"):
        feed.committer(library)
    feed.client(library).create_topics([NewTopic(feed.alerts, 1), NewTopic(feed.dead, 1), NewTopic(feed.input, 3)])
    with pytest.raises(ConfigError, match=rf"state_topic = '{feed.state}': no such topic"):
        feed.committer(library)


def test_the_topics_of_a_feed_are_created_once_and_the_state_follows_the_readings(broker: Broker, library: str) -> None:
    feed = FeedTopics(broker.bootstrap)
    client = feed.client(library)
    client.create_topics([NewTopic(feed.input, 3)])
    assert set(create_topics(client, **feed.topics())) == {feed.alerts, feed.dead, feed.state}
    assert create_topics(client, **feed.topics()) == []
    assert client.topics()[feed.state] == 3
    assert client.topic_settings(feed.state)["cleanup.policy"] == "compact"


def test_a_state_topic_that_is_not_compacted_or_too_small_is_refused(broker: Broker, library: str) -> None:
    for settings, count, message in (
        ({}, 2, "cleanup.policy is 'delete'"),
        ({"cleanup.policy": "compact"}, 1, "fewer"),
    ):
        feed = FeedTopics(broker.bootstrap)
        named = [NewTopic(feed.alerts, 1), NewTopic(feed.dead, 1), NewTopic(feed.input, 2)]
        feed.client(library).create_topics([*named, NewTopic(feed.state, count, settings)])
        with pytest.raises(ConfigError, match=message):
            feed.committer(library)


@once
def test_offsets_that_somebody_else_committed_are_not_taken_for_ours(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 10}, states={place: states("a")}))
    meddle(feed, {place: Committed(3)})
    with pytest.raises(StateError, match=r"offset 3 of group .* was not committed by midwatch"):
        opened().restore(*place)


@once
def test_state_that_is_newer_than_the_offsets_stops_the_feed(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    committer = opened()
    committer.commit(Batch({place: 10}, states={place: states("a")}))
    committer.commit(Batch({place: 20}))
    meddle(feed, {place: Committed(10, '{"n":1,"config":""}')})
    with pytest.raises(StateError, match=r"offset 10 of commit 1, but its state is of commit 2 at offset 20"):
        opened().restore(*place)


@once
def test_state_that_is_older_than_the_offsets_is_waited_for_and_then_an_error(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 10}, states={place: states("a")}))
    meddle(feed, {place: Committed(20, '{"n":2,"config":""}')})
    began = time.monotonic()
    with pytest.raises(StateError, match=r"has commit 1 as its newest, the offsets of group .* have 2"):
        opened(restore_timeout_s=2.0).restore(*place)
    assert time.monotonic() - began >= 2.0


@once
def test_state_whose_marker_comes_late_is_restored_once_it_is_there(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 10}, states={place: states("a")}))
    meddle(feed, {place: Committed(20, '{"n":2,"config":""}')})
    late = feed.client().producer()
    ((key, value),) = delta_records(None, 2, 20, 1, 2, 1000)
    late.send(feed.state, value, key, partition=0)
    committer = opened()
    late.flush()
    late.close()
    assert committer.restore(*place) == restored_as(20, states("a"))


@once
def test_offsets_that_are_gone_while_the_state_is_there_stop_the_feed(feed: FeedTopics, opened: Open) -> None:
    place = (feed.input, 0)
    opened().commit(Batch({place: 10}, states={place: states("a")}))
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": feed.bootstrap})
    admin.delete_consumer_groups([feed.group])[feed.group].result(10)
    with pytest.raises(StateError, match=r"no committed offset, but its state is of commit 1 at offset 10"):
        opened().restore(*place)


def meddle(feed: FeedTopics, offsets: dict[tuple[str, int], Committed]) -> None:
    """Commit offsets as some other tool would."""
    listed = [confluent_kafka.TopicPartition(t, p, at.offset, at.metadata) for (t, p), at in offsets.items()]
    other = confluent_kafka.Consumer({"bootstrap.servers": feed.bootstrap, "group.id": feed.group})
    other.commit(offsets=listed, asynchronous=False)
    other.close()


@once
def test_state_without_a_position_and_input_without_a_state_topic_are_refused(feed: FeedTopics, opened: Open) -> None:
    committer = opened()
    with pytest.raises(StateError, match="without its position"):
        committer.commit(Batch({}, states={(feed.input, 0): states("a")}))
    with pytest.raises(StateError, match="no state topic for input topic 'elsewhere'"):
        committer.commit(Batch({("elsewhere", 0): 1}))


@once
def test_alerts_without_a_position_and_empty_batches_can_be_committed(feed: FeedTopics, opened: Open) -> None:
    committer = opened()
    committer.commit(Batch({}))
    committer.commit(Batch({}, [an_alert()]))
    assert [key for key, _ in feed.read(feed.alerts)] == [b"pump-7"]
    assert committer.restore(feed.input, 0) is None
