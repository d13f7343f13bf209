"""Where a chaos run plays: its topics, its model, its configuration files, and the input that is sent all the while."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from jobs.chaos_feed import MAX_MESSAGE_BYTES, PERIOD_S, FeedPlan, normal_series
from jobs.simulate import CHANNELS

if TYPE_CHECKING:
    from connectors.kafka_client import Client
    from jobs.settings import Settings

# What is taken over from the user's `[kafka]`: how to connect, and nothing of what their own feed reads or writes.
_TAKEN: Final = {
    *("bootstrap", "commit_timeout_s", "security_protocol", "sasl_mechanism", "sasl_username"),
    *("ssl_ca", "ssl_certificate", "ssl_key", "allow_plaintext"),
}
_SECRET: Final = ("sasl_password", "ssl_key_password")
_TURN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Feed:
    """The topics and groups of a run. `storm` and `calm` read the same input and share nothing else."""

    prefix: str

    @property
    def input(self) -> str:
        """The topic that both runs read."""
        return f"{self.prefix}-in"

    def own(self, run: str) -> dict[str, str]:
        """Return the `[kafka]` options that are one run's own: its group and its topics."""
        topics = {f"{name}_topic": f"{self.prefix}-{run}-{name}" for name in ("alerts", "dead", "state")}
        return {"group": f"{self.prefix}-{run}", **topics}

    def create(self, client: Client, partitions: int, runs: Sequence[str] = ("storm", "calm")) -> None:
        """Create the topics of some runs, with as many copies as the cluster gives by itself."""
        from connectors.kafka_client import NewTopic
        from connectors.kafka_topics import create_topics

        client.create_topics([NewTopic(self.input, partitions)])
        for run in runs:
            own = self.own(run)
            state = {self.input: own["state_topic"]}
            create_topics(client, alerts_topic=own["alerts_topic"], dead_topic=own["dead_topic"], state_topics=state)

    def topics(self) -> list[str]:
        """Return every topic's name."""
        own = [self.own(run)[f"{name}_topic"] for run in ("storm", "calm") for name in ("alerts", "dead", "state")]
        return [self.input, *own]


def write_config(path: Path, feed: Feed, run: str, settings: Settings, kafka: Mapping[str, Any]) -> dict[str, str]:
    """Write a configuration for `midwatch run`; return the environment that goes with it, which has the secrets.

    Parameters
    ----------
    kafka : what is to stand in `[kafka]` besides how to connect and the run's own names.
    """
    known = settings.kafka.model_dump(mode="json", include=_TAKEN)
    kafka = {**known, **feed.own(run), "topic": feed.input, **kafka}
    tables: dict[str, Mapping[str, Any]] = {
        "feed": {"name": "pumps", "period_s": PERIOD_S, "channels": list(CHANNELS)},
        "mapping": {"time_unit": "ns", "max_bytes": MAX_MESSAGE_BYTES},
        "smoother": {"memory": 32, "span_s": 43200},
        "alert": {"update_every_s": 400},
        "source": {"type": "kafka"},
        "kafka": kafka,
        "history": {"enabled": False},
        "registry": {"root": str(path.parent / "models")},
        "train": {"members": ["pca"], "per_group": "fleet", "pca_window": 16, "pca_variance": 0.98, "percentile": 99.9},
        "run": {"device": "cpu"},
    }
    path.write_text("".join(_table(name, options) for name, options in tables.items()), encoding="utf-8")
    secrets = {name: getattr(settings.kafka, name).get_secret_value() for name in _SECRET}
    return {f"MIDWATCH_KAFKA__{name.upper()}": value for name, value in secrets.items() if value}


def _table(name: str, options: Mapping[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())


def fit_model(config: Path, plan: FeedPlan) -> None:
    """Fit a model on a stretch without faults and make it the champion: no gate, it is the machinery that is tried."""
    from jobs import build
    from jobs.config import specs
    from jobs.settings import load
    from models.calibration import CalibrationSpec, calibrate
    from models.fitting import fit_bundle

    settings = load(config, environ={}).settings
    series = normal_series(plan)
    cut = len(series[0].ts_ns) * 2 // 3
    fit = [replace(one, normal=np.arange(len(one.normal)) < cut) for one in series]
    fitted = fit_bundle(fit, specs.train_spec(settings))
    spec = CalibrationSpec(percentile=settings.train.percentile)
    bundle = calibrate(fitted, series, {one.asset: cut for one in series}, spec)
    known = build.registry(settings)
    known.promote(known.add(bundle, time.time_ns()).id, "for a trial of the machinery")


def send(client: Client, topic: str, rows: Iterator[tuple[bytes, bytes]], rate: float, over: Callable[[], bool]) -> int:
    """Send messages at a rate, behind which it falls while brokers are away; return how many were sent."""
    producer = client.producer(timeout_s=120.0)
    began, sent = time.monotonic(), 0
    try:
        while not over():
            due = int((time.monotonic() - began) * rate) - sent
            batch = [row for row, _ in zip(rows, range(due), strict=False)]
            if due and not batch:
                break
            for key, value in batch:
                producer.send(topic, value, key)
            producer.flush()
            sent += len(batch)
            time.sleep(_TURN_S)
    finally:
        producer.close()
    return sent
