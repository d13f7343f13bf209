"""`midwatch notify`: committed alerts to the configured sinks, at least once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

from jobs import build
from jobs.every import Every
from jobs.stopping import until_signal
from pipeline.errors import ConfigError, SinkUnavailable

if TYPE_CHECKING:
    from connectors.kafka_follow import KafkaFollower
    from connectors.notifier import Notifier
    from jobs.console import Console
    from jobs.settings import Settings

_POLL_S = 0.2
_COMMIT_S = 1.0
_TELL_S = 10.0
_AGAIN_S = 5.0  # how long a sink that does not take alerts is left alone


def notify(settings: Settings, console: Console) -> Counter[str]:
    """Hand alerts on until SIGTERM or SIGINT comes; return the counts of what it did.

    Raises
    ------
    ConfigError : no sink is configured.
    StateError : a position has aged out; another notifier of the feed was started.
    """
    if not settings.sinks.alerts:
        raise ConfigError("sinks.alerts", "", "name a file that alerts are added to, or `-` for standard output")
    from connectors.notifier import Notifier
    from connectors.sinks import TeeSink

    only_alerts = settings.model_copy(update={"sinks": settings.sinks.model_copy(update={"dead": ""})})
    with (
        closing(build.follower_of(settings, "notify", ("alerts_topic",))) as follower,
        closing(TeeSink(list(build.file_sinks(only_alerts, console).values()))) as sink,
    ):
        notifier = Notifier(follower, sink)
        _follow(notifier, follower, settings.run.max_rows, console)
    return notifier.counts + follower.counts


def _follow(notifier: Notifier, follower: KafkaFollower, max_rows: int, console: Console) -> None:
    commit = Every(_COMMIT_S, notifier.commit)
    tell = Every(_TELL_S, lambda: _tell(notifier, follower, console))
    with until_signal() as stopped:
        while not stopped():
            try:
                notifier.step(max_rows, _POLL_S)
            except SinkUnavailable as error:
                console.warn(f"alerts are kept and offered again: {error}")
                _wait(stopped, _AGAIN_S)
            commit()
            tell()
        notifier.commit()
    _tell(notifier, follower, console)


def _tell(notifier: Notifier, follower: KafkaFollower, console: Console) -> None:
    c = notifier.counts
    console.say(f"{c['alerts']} alerts handed on, {c['again']} that came again left out")
    if lost := follower.counts["lost"]:
        console.warn(f"{lost} messages had aged out before they were read: their alerts are told to nobody")


def _wait(stopped: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stopped() and time.monotonic() < until:
        time.sleep(0.05)
