"""The topics that commits write to: creating them, and checking that they are fit for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from connectors.kafka_client import Client, NewTopic, missing_topic
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
    alert_partitions: int = 4,
    replication: int = -1,
) -> list[str]:
    """Create the topics that a committer needs where they are not there yet; return the names of those created.

    Raises
    ------
    ConfigError : an input topic (a key of `state_topics`) is not there: its partitions are what the state's follow.
    """
    known = client.topics()
    wanted = [
        NewTopic(alerts_topic, alert_partitions, replication=replication),
        NewTopic(dead_topic, 1, replication=replication),
    ]
    for topic, state_topic in state_topics.items():
        if topic not in known:
            raise missing_topic(topic, client.settings.bootstrap, alert_partitions)
        wanted.append(NewTopic(state_topic, known[topic], STATE_TOPIC_SETTINGS, replication))
        if scores_topic:
            wanted.append(NewTopic(scores_topic, known[topic], replication=replication))
    return client.create_topics([topic for topic in wanted if topic.name not in known])


def check_topics(
    client: Client, alerts_topic: str, dead_topic: str, state_topics: Mapping[str, str], scores_topic: str = ""
) -> None:
    """Check that everything a commit writes to is there and fit for it.

    Raises
    ------
    ConfigError : a topic is missing, too small or not compacted; with the command that helps.
    """
    known = client.topics()
    bootstrap = client.settings.bootstrap
    if len(set(state_topics.values())) < len(state_topics):
        raise ConfigError("state_topics", dict(state_topics), "a state topic keeps the state of one input topic only")
    for topic in (alerts_topic, dead_topic, *state_topics):
        if topic not in known:
            raise missing_topic(topic, bootstrap, 4)
    for topic, state_topic in state_topics.items():
        if state_topic not in known:
            raise missing_topic(state_topic, bootstrap, known[topic], STATE_TOPIC_SETTINGS)
        if known[state_topic] < known[topic]:
            fix = f"has {known[state_topic]} partitions, fewer than the {known[topic]} of {topic!r}: add as many"
            raise ConfigError("topic", state_topic, fix)
        policy = _policy(client, state_topic)
        if policy not in ("compact", ""):
            fix = f"its cleanup.policy is {policy!r}, which drops the state of quiet assets: set it to 'compact'"
            raise ConfigError("topic", state_topic, fix)
        if scores_topic:
            _check_scores_topic(client, scores_topic, topic, known)


def _check_scores_topic(client: Client, scores_topic: str, topic: str, known: Mapping[str, int]) -> None:
    if scores_topic not in known:
        raise missing_topic(scores_topic, client.settings.bootstrap, known[topic])
    if known[scores_topic] < known[topic]:
        fix = f"has {known[scores_topic]} partitions, fewer than the {known[topic]} of {topic!r}: add as many"
        raise ConfigError("kafka.scores_topic", scores_topic, fix)
    if "compact" in _policy(client, scores_topic):
        fix = "its cleanup.policy has 'compact', which keeps the newest scores only: set it to 'delete'"
        raise ConfigError("kafka.scores_topic", scores_topic, fix)


def _policy(client: Client, topic: str) -> str:
    """Return a topic's cleanup.policy; "" where it may not be read: that is a right of its own, not needed to work."""
    try:
        policy = client.topic_settings(topic).get("cleanup.policy")
    except ConfigError:
        policy = None
    if policy is None:
        log.warning("the settings of topic %r may not be read: whether it is compacted was not checked", topic)
    return policy or ""
