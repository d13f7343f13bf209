"""The scores topic over a real broker: in the transaction of the alerts, or not at all."""

from __future__ import annotations

import pytest
from io_cases import a_push
from kafka_fixture import FeedTopics, an_alert

from connectors.kafka_client import NewTopic
from connectors.kafka_topics import check_topics, create_topics
from connectors.scores_topic import ScoresTopic, decode_scores
from pipeline.errors import ConfigError, StateError
from pipeline.protocols import Batch
from pipeline.values import Scored

pytestmark = pytest.mark.kafka
NAMES = ("temp", "vib_x", "vib_y")


def scored(feed: FeedTopics, first: int, after: int, partition: int = 0) -> Scored:
    _, verdicts = a_push(range(first, after), partition=partition)
    return Scored(feed.input, partition, ("a0", "a1"), verdicts, first, after)


def test_scores_of_a_partition_lie_in_the_same_partition_cut_under_the_record_limit(feed: FeedTopics) -> None:
    committer = feed.committer("confluent", scores=ScoresTopic(feed.scores, "north", NAMES), max_record_bytes=6000)
    batch = Batch(
        {(feed.input, 0): 100, (feed.input, 1): 7},
        [an_alert()],
        scored=[scored(feed, 0, 100), Scored(feed.input, 1, (), None, 0, 7)],
    )
    committer.commit(batch)
    committer.close()
    found = [decode_scores(body or b"") for _, body in feed.read(feed.scores)]
    parts = [one for one in found if one.scored.partition == 0]
    assert len(parts) > 1
    assert sum(len(one.scored.verdicts or ()) for one in parts) == 100
    assert [one.scored.next for one in found if one.scored.partition == 1] == [7]


def test_scores_of_a_commit_that_came_to_nothing_are_seen_by_nobody(feed: FeedTopics) -> None:
    class Ended(Exception):
        pass

    def at_step(name: str) -> None:
        if name == "after_send_offsets":
            raise Ended

    topic = ScoresTopic(feed.scores, "north", NAMES)
    first = feed.committer("confluent", scores=topic, at_step=at_step)
    with pytest.raises(Ended):
        first.commit(Batch({(feed.input, 0): 50}, [an_alert()], scored=[scored(feed, 0, 50)]))
    second = feed.committer("confluent", scores=topic)  # ends what the first left open
    second.commit(Batch({(feed.input, 0): 40}, scored=[scored(feed, 0, 40)]))
    assert [decode_scores(body or b"").scored.next for _, body in feed.read(feed.scores)] == [40]
    assert feed.read(feed.alerts) == []
    first.close()
    second.close()


def test_one_score_that_does_not_fit_a_record_is_refused(feed: FeedTopics) -> None:
    committer = feed.committer("confluent", scores=ScoresTopic(feed.scores, "north", NAMES), max_record_bytes=700)
    with pytest.raises(StateError, match=r"one row's score .* more than 700 fit into a record"):
        committer.commit(Batch({(feed.input, 0): 1}, scored=[scored(feed, 0, 1)]))
    committer.close()


def test_a_scores_topic_that_is_missing_compacted_or_too_small_is_refused(feed: FeedTopics) -> None:
    client = feed.client()
    rest = (feed.alerts, feed.dead, {feed.input: feed.state})
    check_topics(client, *rest, feed.scores)
    with pytest.raises(ConfigError, match=r"kafka.scores_topic = 'missing': no such topic"):
        check_topics(client, *rest, "missing")
    small, compact = f"small-{feed.mark}", f"compact-{feed.mark}"
    client.create_topics([NewTopic(small, 1), NewTopic(compact, 2, {"cleanup.policy": "compact"})])
    with pytest.raises(ConfigError, match="1 partitions, fewer than the 2 of"):
        check_topics(client, *rest, small)
    with pytest.raises(ConfigError, match="keeps the newest scores only"):
        check_topics(client, *rest, compact)
    new = f"new-{feed.mark}"
    assert create_topics(client, **feed.topics(), scores_topic=new) == [new]
    assert client.topics()[new] == 2
