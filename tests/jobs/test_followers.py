"""What `historian` and `notify` refuse before they connect, and who writes the history."""

import pytest

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
