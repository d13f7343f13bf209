"""Every option of where things come from and go to. None of them changes what the program says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from jobs.config.options import Off, Section, listed, option
from pipeline.errors import ConfigError


class Source(Section):
    """Where readings come from."""

    type: Literal["file", "kafka"] = option("file", "", "a file, or the topic of [kafka]")
    path: str = option("", "", "the file, or a folder of files in the order of their names")
    format: Literal["auto", "csv", "ndjson", "parquet"] = option("auto", "", "auto: by the file's suffix")
    speed: Annotated[float, Field(gt=0)] | Literal["max"] = option(
        "max", "times real time", "how fast a file is replayed; max: as fast as it goes"
    )
    follow: bool = option(False, "", "wait for more at the end of the file")


class Kafka(Section):
    """The brokers and topics. Secrets: better as MIDWATCH_KAFKA__SASL_PASSWORD_FILE than in this file."""

    bootstrap: Annotated[tuple[str, ...], BeforeValidator(listed)] = option(
        ("127.0.0.1:9092",), "", "brokers to ask first, as host:port", min_length=1
    )
    client: Literal["kafka-python", "confluent"] = option(
        "kafka-python", "", "which client library; confluent carries 8 to 12 times the rows per CPU-second"
    )
    topic: str = option("readings", "", "the topic that readings come from")
    group: str = option("midwatch", "", "the consumer group; transactional ids derive from it", min_length=1)
    assignment: Literal["group", "fixed"] = option(
        "group", "", "who shares out the partitions: the consumer group, or slot numbers (p mod slots = slot)"
    )
    slot: int = option(0, "", "this worker's number; two live workers never share one", ge=0)
    slots: int = option(1, "workers", "how many workers there are at most; the same for all", ge=1)
    alerts_topic: str = option("midwatch.alerts", "", "where alerts go", min_length=1)
    dead_topic: str = option("midwatch.dead", "", "where messages go that cannot be used", min_length=1)
    state_topic: str = option("midwatch.state", "", "compacted; where the state is kept", min_length=1)
    scores_topic: str = option(
        "", "", "where scores go, for `midwatch historian`, which then writes the history; empty: nowhere"
    )
    scores_top: int = option(0, "channels", "each score tells about so many, the worst; 0: about all", ge=0)
    start: Literal["earliest", "latest"] = option("earliest", "", "where a group begins that never committed")
    session_s: float = option(
        6.0, "s", "a worker silent for that long loses its partitions; brokers allow 6 and more by default", gt=0
    )
    snapshot_every: int = option(
        32, "commits", "an asset's state is written in full once in so many; between, only what changed", ge=1
    )
    max_record_bytes: int = option(
        1_000_000,
        "bytes",
        "largest record that is written; above the default, the topics' max.message.bytes must follow",
        ge=10_000,
        le=16_000_000,
    )
    aged_out: Literal["stop", "resume"] = option(
        "stop", "", "what to do where unread messages have expired: stop, or tell how many and go on without them"
    )
    commit_timeout_s: float = option(15.0, "s", "a transaction that takes longer ends the process; it recovers", gt=0)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = option(
        "PLAINTEXT", "", "with or without TLS (SSL) and a password (SASL)"
    )
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = option("", "", "how the password is sent")
    sasl_username: str = option("", "", "who logs in")
    sasl_password: SecretStr = option(SecretStr(""), "", "their password")
    ssl_ca: str = option("", "", "PEM file of the authorities to trust; empty: those of the system")
    ssl_certificate: str = option("", "", "PEM file of this client's certificate, where brokers want one")
    ssl_key: str = option("", "", "PEM file of its key")
    ssl_key_password: SecretStr = option(SecretStr(""), "", "password of that key")
    allow_plaintext: bool = option(False, "", "send the password over a connection without TLS all the same")

    @model_validator(mode="after")
    def _known_slot(self) -> Kafka:
        if self.slot >= self.slots:
            raise ConfigError("kafka.slot", self.slot, f"must be below kafka.slots ({self.slots}): slots count from 0")
        return self


class Sinks(Section):
    """Where alerts and dead letters of a file go. Those of Kafka go to the topics of [kafka]."""

    alerts: str = option("var/alerts.ndjson", "", "file that alerts are added to; empty: none; `-`: standard output")
    dead: str = option("var/dead.ndjson", "", "file that dead letters are added to; empty: none")


class History(Section):
    """The Parquet files that nightly jobs read; `run` writes them, or the historian where kafka.scores_topic is set."""

    enabled: bool = option(True, "", "keep a history")
    root: str = option("var/history", "", "its folder, one for all workers of the feed", min_length=1)
    range_rows: int = option(131_072, "offsets", "one file holds so many of a partition; do not change it later", ge=1)
    pending_rows: int = option(524_288, "rows", "most that wait in the journal before they become Parquet", ge=1)
    keep_days: Annotated[float, Field(gt=0)] | Off = option(
        "off",
        "days",
        "with each `nightly`, files go in which all rows or scores are older; alerts stay; off: none goes",
    )


class Registry(Section):
    """Where models are kept."""

    root: str = option("var/models", "", "its folder", min_length=1)


class Run(Section):
    """How the program runs."""

    device: str = option(
        "auto",
        "",
        "cpu, cuda or cuda:N; auto: the best that the model was calibrated for",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    precision: Literal["float32", "tf32", "bfloat16", "int8"] = option(
        "float32", "", "of the models' products; int8: CPU only, tf32: CUDA only; thresholds are fitted for each"
    )
    priority: Literal["throughput", "latency"] = option(
        "throughput", "", "throughput: rows are scored in batches; latency: each by itself, on the CPU in float32"
    )
    max_rows: int = option(4096, "messages", "most that one poll takes", ge=1)
    commit_interval_s: float = option(0.2, "s", "how long a poll may gather before its outputs are committed", gt=0)
    state: str = option("var/state", "", "folder of the state when the source is a file", min_length=1)


class Labels(Section):
    """What people said about alerts."""

    path: str = option("var/labels.ndjson", "", "file that confirmations and dismissals are added to", min_length=1)
