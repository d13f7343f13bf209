"""The topics that a feed reads and writes: creating them, and checking that they are fit for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from connectors.kafka_client import MAX_RECORD_BYTES, Client, NewTopic, missing_topic
from connectors.kafka_state import STATE_TOPIC_SETTINGS
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)


def create_topics(
    client: Client,
    *,
    alerts_topic: str,
    dead_topic: str,
    state_topics: Mapping[str, str],
    scores_topic: str = "",
    partitions: int = 4,
    replication: int = -1,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> list[str]:
    """Create the topics of a feed where they are not there yet; return the names of those created.

    A state topic is compacted. It and the scores have the partitions of the input topic; dead letters have one, so
    that they are read in order.

    Parameters
    ----------
    state_topics : input topic -> its state topic.
    scores_topic : "" for a feed that publishes none.
    partitions : of a new input topic, and of the alerts.
    replication : copies of each partition; -1 leaves it to the broker.
    max_record_bytes : what the topics that are written to have to take; brokers take `MAX_RECORD_BYTES` by default.
    """
    known = client.topics()
    large = {"max.message.bytes": str(max_record_bytes)} if max_record_bytes > MAX_RECORD_BYTES else {}
    wanted = [
        NewTopic(alerts_topic, partitions, large, replication),
        NewTopic(dead_topic, 1, large, replication),
    ]
    for topic, state_topic in state_topics.items():
        count = known.get(topic, partitions)
        wanted.append(NewTopic(topic, count, replication=replication))
        wanted.append(NewTopic(state_topic, count, {**STATE_TOPIC_SETTINGS, **large}, replication))
        if scores_topic:
            wanted.append(NewTopic(scores_topic, count, large, replication))
    return client.create_topics([topic for topic in wanted if topic.name not in known])


def check_topics(
    client: Client,
    alerts_topic: str,
    dead_topic: str,
    state_topics: Mapping[str, str],
    scores_topic: str = "",
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> None:
    """Check that everything a feed reads and writes is there and fit for it.

    Raises
    ------
    ConfigError : a topic is missing, too small, or cleaned up in a way that loses what it is for; with what helps.
    """
    known = client.topics()
    if len(set(state_topics.values())) < len(state_topics):
        named = dict(state_topics)
        raise ConfigError("kafka.state_topic", named, "a state topic keeps the state of one input topic only")
    wanted = [("kafka.alerts_topic", alerts_topic), ("kafka.dead_topic", dead_topic)]
    wanted += [("kafka.topic", topic) for topic in state_topics]
    wanted += [("kafka.state_topic", topic) for topic in state_topics.values()]
    wanted += [("kafka.scores_topic", scores_topic)] if scores_topic else []
    for option, topic in wanted:
        if topic not in known:
            raise missing_topic(option, topic)
    for topic, state_topic in state_topics.items():
        _require_as_many("kafka.state_topic", state_topic, topic, known)
        settings = _settings(client, state_topic)
        _require_room(state_topic, settings, max_record_bytes)
        policy = settings.get("cleanup.policy", "")
        if policy not in ("compact", ""):
            fix = f"its cleanup.policy is {policy!r}, which drops the state of quiet assets: set it to 'compact'"
            raise ConfigError("kafka.state_topic", state_topic, fix)
        if scores_topic:
            _require_as_many("kafka.scores_topic", scores_topic, topic, known)
    if scores_topic and "compact" in _settings(client, scores_topic).get("cleanup.policy", ""):
        fix = "its cleanup.policy has 'compact', which keeps the newest scores only: set it to 'delete'"
        raise ConfigError("kafka.scores_topic", scores_topic, fix)
    if max_record_bytes > MAX_RECORD_BYTES:
        for topic in filter(None, (alerts_topic, dead_topic, scores_topic)):
            _require_room(topic, _settings(client, topic), max_record_bytes)


def _require_as_many(option: str, follower: str, topic: str, known: Mapping[str, int]) -> None:
    if known[follower] < known[topic]:
        fix = f"has {known[follower]} partitions, fewer than the {known[topic]} of {topic!r}: add as many"
        raise ConfigError(option, follower, fix)


def _require_room(topic: str, settings: Mapping[str, str], max_record_bytes: int) -> None:
    takes = settings.get("max.message.bytes")
    if takes is not None and int(takes) < max_record_bytes:
        fix = f"topic {topic!r} takes no more than {takes} bytes: set its max.message.bytes to {max_record_bytes}"
        raise ConfigError("kafka.max_record_bytes", max_record_bytes, fix)


def _settings(client: Client, topic: str) -> Mapping[str, str]:
    """Return a topic's settings; {} where they may not be read: that is a right of its own, not needed to work."""
    try:
        settings = client.topic_settings(topic)
    except ConfigError:
        settings = {}
    if "cleanup.policy" not in settings:
        log.warning("the settings of topic %r may not be read: cleanup and sizes were not checked", topic)
    return settings
