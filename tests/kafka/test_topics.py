"""`midwatch topics` against a real broker."""

import io
import json
from contextlib import redirect_stdout

import pytest
from kafka_fixture import LIBRARIES, FeedTopics

from connectors.kafka_client import NewTopic
from jobs.console import Console
from jobs.doctor import doctor
from jobs.settings import load
from jobs.topics import check, create
from pipeline.errors import ConfigError, PipelineError

pytestmark = pytest.mark.kafka
QUIET = Console(as_json=True, quiet=True)


@pytest.fixture
def topics(broker) -> FeedTopics:
    return FeedTopics(broker.bootstrap)


def configured(topics: FeedTopics, library: str, **more):
    given = {
        "source.type": "kafka",
        "feed.channels": ["flow"],
        "kafka.bootstrap": [topics.bootstrap],
        "kafka.client": library,
        "kafka.topic": topics.input,
        "kafka.alerts_topic": topics.alerts,
        "kafka.dead_topic": topics.dead,
        "kafka.state_topic": topics.state,
        "kafka.scores_topic": f"scores-{topics.mark}",
    }
    return load(flags=given | more, environ={}).settings


def said(call, *arguments, **options) -> dict:
    out = io.StringIO()
    with redirect_stdout(out):
        call(*arguments, **options, console=QUIET)
    return {row.pop("option", row.get("what")): row for row in map(json.loads, out.getvalue().splitlines())}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_topics_of_a_feed_are_created_once_with_what_each_needs(topics, library):
    settings = configured(topics, library)
    with pytest.raises(ConfigError, match=r"kafka.alerts_topic.*`midwatch topics create`"):
        check(settings, QUIET)
    made = said(create, settings, 6, 1)
    assert {option: row["partitions"] for option, row in made.items()} == {
        "kafka.topic": 6,
        "kafka.alerts_topic": 6,
        "kafka.dead_topic": 1,
        "kafka.state_topic": 6,
        "kafka.scores_topic": 6,
    }
    assert all(row["created"] for row in made.values())
    assert topics.client().topic_settings(topics.state)["cleanup.policy"] == "compact"
    again = said(create, settings, 9, None)
    assert {option: row["partitions"] for option, row in again.items()} == {o: r["partitions"] for o, r in made.items()}
    assert not any(row["created"] for row in again.values())
    assert {option: row["topic"] for option, row in said(check, settings).items()} == {
        option: row["topic"] for option, row in made.items()
    }


@pytest.mark.parametrize("library", LIBRARIES)
def test_larger_records_are_taken_by_new_topics_and_a_feed_with_topics_that_do_not_take_them_is_refused(
    topics, library
):
    said(create, configured(topics, library, **{"kafka.max_record_bytes": 2_000_000}), 2, 1)
    for topic in (topics.alerts, topics.dead, topics.state, f"scores-{topics.mark}"):
        assert topics.client(library).topic_settings(topic)["max.message.bytes"] == "2000000"
    more = configured(topics, library, **{"kafka.max_record_bytes": 2_000_001})
    with pytest.raises(
        ConfigError, match=r"kafka\.max_record_bytes = 2000001: topic 'state-.* its max\.message\.bytes"
    ):
        check(more, QUIET)


def test_state_follows_readings_that_are_there_and_new_ones_have_a_partition_for_each_slot(topics):
    topics.client().create_topics([NewTopic(topics.input, 3)])
    made = said(create, configured(topics, "confluent", **{"kafka.slots": 5}), None, None)
    assert not made["kafka.topic"]["created"]
    assert (made["kafka.state_topic"]["partitions"], made["kafka.alerts_topic"]["partitions"]) == (3, 5)


def test_a_topic_that_is_there_and_unfit_is_named_not_changed(topics):
    topics.client().create_topics([NewTopic(topics.input, 2), NewTopic(topics.state, 2)])
    with pytest.raises(ConfigError, match=r"kafka.state_topic = .*cleanup.policy is 'delete'"):
        said(create, configured(topics, "confluent"), None, None)


@pytest.mark.parametrize("library", LIBRARIES)
def test_more_copies_than_there_are_brokers_are_refused_in_words(topics, library):
    with pytest.raises(PipelineError, match=r"creating topics.*(?i:replication)"):
        create(configured(topics, library), None, 3, QUIET)


def test_the_doctor_says_the_same(topics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = configured(topics, "confluent")
    out = io.StringIO()
    with redirect_stdout(out):
        assert not doctor(settings, QUIET)
    assert "`midwatch topics create`" in out.getvalue()
    said(create, settings, 2, None)
    out = io.StringIO()
    with redirect_stdout(out):
        assert doctor(settings, QUIET), out.getvalue()
    assert f"{topics.state} (2 partitions)" in out.getvalue()
