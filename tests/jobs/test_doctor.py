"""What the doctor finds out about Kafka, without a broker. `tests/kafka/test_topics.py` asks a real one."""

import io
import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from jobs.console import Console
from jobs.doctor import doctor
from jobs.settings import load
from pipeline.errors import BrokerUnavailable

TOPICS = {"readings": 6, "midwatch.alerts": 4, "midwatch.dead": 1, "midwatch.state": 6}
TOPIC_OPTIONS = {"topic": "readings", "alerts_topic": "midwatch.alerts", "dead_topic": "midwatch.dead"}


class Broker:
    """A client whose broker has these topics, all with one cleanup.policy; or that reaches none."""

    def __init__(self, topics=None, policy="compact"):
        self.known, self.policy = topics, policy

    def topics(self):
        if self.known is None:
            raise BrokerUnavailable("no broker of one:9092, two:9092 answers: is it running?")
        return self.known

    def topic_settings(self, topic):
        return {"cleanup.policy": self.policy}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask the doctor about a feed from Kafka; return whether all is well, and the findings by what they are about."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))

    def ask(broker, *, crc32c=True, **options):
        monkeypatch.setattr("connectors.kafka_client.has_crc32c", lambda: crc32c)
        monkeypatch.setattr("connectors.kafka_client.connect", lambda settings, library: broker)
        kafka = {"bootstrap": ["one:9092", "two:9092"], "state_topic": "midwatch.state", **TOPIC_OPTIONS, **options}
        flags = {"source.type": "kafka", "feed.channels": ["flow"], "run.device": "cpu"}
        settings = load(flags=flags | {f"kafka.{k}": v for k, v in kafka.items()}, environ={}).settings
        out = io.StringIO()
        with redirect_stdout(out):
            well = doctor(settings, Console(as_json=True, quiet=True))
        return well, {row["what"]: row for row in map(json.loads, out.getvalue().splitlines())}

    return ask


def test_a_broker_with_every_topic_is_well_and_tells_what_answers(asked):
    well, found = asked(Broker(TOPICS), client="kafka-python")
    assert well, found
    assert found["broker"]["found"] == "one:9092,two:9092 answers, 4 topics, client kafka-python"
    assert found["topics"]["found"] == ", ".join(f"{t} ({TOPICS[t]} partitions)" for t in TOPICS)
    assert "crc32c" not in found


def test_a_missing_crc32c_is_named_with_the_line_that_installs_it_and_the_rest_is_still_looked_at(asked):
    well, found = asked(Broker(TOPICS), crc32c=False, client="kafka-python")
    assert not well
    assert found["crc32c"]["found"] == "not installed"
    assert "pip install 'kafka-python[crc32c]'" in found["crc32c"]["fix"]
    assert found["broker"]["ok"]
    assert found["topics"]["ok"]


def test_the_other_client_needs_no_crc32c(asked):
    well, found = asked(Broker(TOPICS), crc32c=False, client="confluent")
    assert well, found
    assert "crc32c" not in found


def test_a_broker_that_does_not_answer_is_the_only_thing_that_is_wrong(asked):
    well, found = asked(Broker(None))
    assert not well
    assert [what for what, row in found.items() if not row["ok"]] == ["source"]
    assert "no broker of one:9092, two:9092 answers" in found["source"]["fix"]
    assert found["model"]["found"] == "no champion yet: the watch collects history"


@pytest.mark.parametrize(
    ("broker", "fix"),
    [
        (Broker({t: n for t, n in TOPICS.items() if t != "midwatch.alerts"}), "`midwatch topics create`"),
        (Broker(TOPICS | {"midwatch.state": 5}), "fewer than the 6 of 'readings'"),
        (Broker(TOPICS, policy="delete"), "set it to 'compact'"),
    ],
)
def test_a_topic_that_is_missing_too_small_or_cleaned_up_wrongly_comes_with_what_helps(asked, broker, fix):
    well, found = asked(broker)
    assert not well
    assert found["broker"]["ok"]
    assert fix in found["source"]["fix"]
    assert "topics" not in found
