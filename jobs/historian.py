"""`midwatch historian`: the history of a Kafka feed, written from what the watch has committed."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import build, failpoints
from jobs.config import specs
from jobs.every import Every
from jobs.stopping import until_signal
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from connectors.historian import Historian
    from connectors.kafka_follow import KafkaFollower
    from jobs.console import Console
    from jobs.settings import Settings

_TELL_S = 10.0
_FLUSH_S = 60.0  # how old the newest rows may be that a nightly job sees
_POLL_S = 0.2


def historian(settings: Settings, once: bool, console: Console) -> Counter[str]:
    """Write the history until SIGTERM or SIGINT comes; return the counts of everything it did.

    Parameters
    ----------
    once : end when all that is committed and scored at the start is written.

    Raises
    ------
    ConfigError : no scores topic is configured, or the history is switched off.
    StateError : a position has aged out; another historian of the feed was started.
    """
    k, h = settings.kafka, settings.history
    if not k.scores_topic:
        raise ConfigError(
            "kafka.scores_topic", "", "name the topic that scores go to; `run` and the historian share it"
        )
    if not h.enabled:
        raise ConfigError("history.enabled", False, "must be true for the historian to have something to do")
    from connectors.historian import FeedLogs, Historian

    topics = ("topic", "scores_topic", "alerts_topic")
    mapping, most = specs.field_mapping(settings), settings.feed.max_assets
    logs = FeedLogs(settings.feed.name, k.topic, k.scores_topic, k.alerts_topic, mapping, most)
    with closing(build.follower_of(settings, "historian", topics)) as follower:
        writer = Historian(
            follower,
            logs,
            Path(h.root),
            offsets_per_file=h.range_rows,
            waiting_rows=h.pending_rows,
            reach=failpoints.read(os.environ),
        )
        _follow(writer, follower, settings.run.max_rows, once, console)
    return writer.counts + follower.counts


def _follow(writer: Historian, follower: KafkaFollower, max_rows: int, once: bool, console: Console) -> None:
    ends = follower.ends() if once else {}
    flush = Every(_FLUSH_S, writer.flush)
    tell = Every(_TELL_S, lambda: _tell(writer, follower, console))
    with until_signal() as stopped:
        while not stopped() and not (once and writer.caught_up(ends)):
            writer.step(max_rows, _POLL_S)
            flush()
            tell()
        writer.flush()
    _tell(writer, follower, console)


def _tell(writer: Historian, follower: KafkaFollower, console: Console) -> None:
    c = writer.counts
    console.say(f"{c['rows']} rows, {c['scores']} scores, {c['alerts']} alerts of {c['pushes']} commits")
    if lost := follower.counts["lost"]:
        console.warn(f"{lost} messages had aged out before they were read: they are not in the history")
    if held := c["held"]:
        console.warn(f"partitions were held {held} times, because their scores lag behind the readings")
