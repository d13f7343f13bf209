"""`midwatch topics`: the Kafka topics that the configuration names, created and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jobs import build

if TYPE_CHECKING:
    from connectors.kafka_client import Client
    from jobs.console import Console
    from jobs.settings import Settings

_LEAST_PARTITIONS = 4
_NAMES = ("topic", "alerts_topic", "dead_topic", "state_topic", "scores_topic")


class Topic(NamedTuple):
    """A topic that is fit for what it is used for. `option` names it in the configuration."""

    option: str
    topic: str
    partitions: int


def create(settings: Settings, partitions: int | None, replication: int | None, console: Console) -> None:
    """Create the topics that are missing, then check all of them; what is there stays as it is.

    Parameters
    ----------
    partitions : of a new topic of readings, and of alerts; None: one a slot, at least 4.
    replication : copies of each partition; None leaves it to the broker.

    Raises
    ------
    ConfigError : a topic that is there and unfit.
    BrokerUnavailable : no broker answers.
    """
    from connectors.kafka_topics import create_topics

    k, client = settings.kafka, build.kafka_client(settings)
    created = create_topics(
        client,
        alerts_topic=k.alerts_topic,
        dead_topic=k.dead_topic,
        state_topics={k.topic: k.state_topic},
        scores_topic=k.scores_topic,
        partitions=partitions or max(_LEAST_PARTITIONS, k.slots),
        replication=replication or -1,
        max_record_bytes=k.max_record_bytes,
    )
    found = fit_topics(settings, client)
    rows = [{**t._asdict(), "created": t.topic in created} for t in found]
    console.rows(rows, ("option", "topic", "partitions", "created"))


def check(settings: Settings, console: Console) -> None:
    """Print the topics, if they are all there and fit.

    Raises
    ------
    ConfigError : one that is not.
    BrokerUnavailable : no broker answers.
    """
    found = fit_topics(settings, build.kafka_client(settings))
    console.rows([t._asdict() for t in found], Topic._fields)


def fit_topics(settings: Settings, client: Client) -> list[Topic]:
    """Return the topics that the configuration names, once they are checked.

    Raises
    ------
    As `check`.
    """
    from connectors.kafka_topics import check_topics

    k = settings.kafka
    check_topics(client, k.alerts_topic, k.dead_topic, {k.topic: k.state_topic}, k.scores_topic, k.max_record_bytes)
    known = client.topics()
    named = {option: getattr(k, option) for option in _NAMES}
    return [Topic(f"kafka.{option}", topic, known[topic]) for option, topic in named.items() if topic]
