"""What `historian` and `notify` refuse before they connect, what is told of an end, and who writes the history."""

import signal
from collections import Counter

import pytest
from follow_cases import MemoryFollower, Topics
from io_cases import an_alert

from connectors.alert_json import encode_alert
from jobs import build
from jobs.console import Console
from jobs.historian import historian
from jobs.notify import notify
from jobs.settings import load
from pipeline.errors import ConfigError

QUIET = Console(as_json=True, quiet=True)


def settings(tmp_path, **flags):
    base = {"feed.channels": "a,b", "source.type": "kafka", "history.root": str(tmp_path / "history")}
    return load(flags=base | {key.replace("__", "."): value for key, value in flags.items()}, environ={}).settings


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({}, "kafka.scores_topic"),
        ({"kafka__scores_topic": "s", "history__enabled": False}, "history.enabled"),
        ({"kafka__scores_topic": "s", "source__type": "file"}, "source.type"),
    ],
)
def test_a_historian_without_its_topics_is_refused(tmp_path, flags, key):
    with pytest.raises(ConfigError) as refused:
        historian(settings=settings(tmp_path, **flags), once=True, console=QUIET)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("flags", "key"), [({"sinks__alerts": ""}, "sinks.alerts"), ({"source__type": "file"}, "source.type")]
)
def test_a_notifier_without_topic_or_sink_is_refused(tmp_path, monkeypatch, flags, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        notify(settings=settings(tmp_path, **flags), console=QUIET)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("flags", "writes"),
    [
        ({}, True),
        ({"kafka__scores_topic": "s"}, False),
        ({"kafka__scores_topic": "s", "source__type": "file"}, True),
        ({"history__enabled": False}, False),
    ],
)
def test_the_watch_writes_the_history_unless_a_historian_does(tmp_path, flags, writes):
    history = build.history_of(settings(tmp_path, **flags))
    assert (history is not None) == writes
    if history is not None:
        history.close()


class UntilRead(MemoryFollower):
    """Ends the program that follows once everything was read."""

    def __init__(self, topics, lost):
        super().__init__(topics)
        self.counts = Counter(lost=lost)

    def poll(self, max_rows, timeout_s):
        found = super().poll(max_rows, timeout_s)
        if not found:
            signal.raise_signal(signal.SIGTERM)
        return found

    def close(self):
        pass


@pytest.mark.parametrize("lost", [0, 7])
def test_a_notifier_tells_what_it_handed_on_what_came_again_and_what_was_lost(tmp_path, monkeypatch, capsys, lost):
    log = Topics()
    log.add("alerts", 0, [encode_alert(an_alert(*key)) for key in (("a", 0), ("a", 0), ("b", 0), ("a", 1))])
    monkeypatch.setattr(build, "follower_of", lambda settings, name, options: UntilRead(log, lost))
    sinks = {"sinks__alerts": str(tmp_path / "alerts.ndjson")}
    counts = notify(settings=settings(tmp_path, **sinks), console=Console())
    assert counts == Counter(alerts=3, again=1, lost=lost)
    said = capsys.readouterr().err
    assert "3 alerts handed on, 1 that came again left out" in said
    assert ("7 messages had aged out before they were read" in said) == (lost == 7)
