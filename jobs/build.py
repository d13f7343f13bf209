"""The composition root: settings -> the parts a program runs. Nothing here decides anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobs import failpoints
from jobs.config import specs
from models.registry import Registry
from pipeline.chain import Chain
from pipeline.errors import BundleError, ConfigError
from pipeline.mapping import FieldMapping
from pipeline.protocols import Committer, Sink, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.history import ParquetHistory
    from connectors.kafka_client import Client
    from connectors.kafka_follow import KafkaFollower
    from connectors.scores_topic import ScoresTopic
    from jobs.console import Console
    from jobs.settings import Settings
    from models.profiles import Profile
    from pipeline.bundle import Bundle
    from pipeline.protocols import Engine


def registry(settings: Settings) -> Registry:
    """Return the registry of bundles."""
    return Registry(Path(settings.registry.root))


def champion(settings: Settings, bundle: str | None = None) -> Bundle | None:
    """Return the champion, or the bundle that was asked for; None: there is no champion yet."""
    known = registry(settings)
    wanted = bundle or known.champion()
    return None if wanted is None else known.load(wanted)


def require_champion(settings: Settings, bundle: str | None = None) -> Bundle:
    """Return what serves.

    Raises
    ------
    ConfigError : nothing was ever promoted.
    """
    found = champion(settings, bundle)
    if found is None:
        raise ConfigError("registry.root", settings.registry.root, "holds no champion: run `midwatch train FILE` first")
    return found


def engine_of(bundle: Bundle, settings: Settings) -> Engine:
    """Open an engine as the settings ask for it; one thread a worker, work is split by process."""
    from models.engine import open_engine
    from models.profiles import choose

    profile = choose(settings.run.device, settings.run.precision, settings.run.priority, bundle)
    if profile.needs_torch:
        import torch

        torch.set_num_threads(1)
    return open_engine(bundle, *profile)


def with_profile(settings: Settings, profile: Profile) -> Settings:
    """Return the settings with another serving profile."""
    return settings.model_copy(update={"run": settings.run.model_copy(update=profile._asdict())})


def chain_of(settings: Settings, mapping: FieldMapping, *, journal: bool = False) -> Chain:
    """Return the feed's chain for messages of that mapping, without a model yet."""
    return Chain(specs.chain_spec(settings, mapping.format), journal=journal)


class Feed(NamedTuple):
    """Where readings come from, and where what they lead to is committed."""

    source: Source
    committer: Committer


def open_feed(settings: Settings, console: Console) -> Feed:
    """Open the ends of the watch: a file and a folder, or Kafka topics."""
    if settings.source.type == "kafka":
        return _kafka_feed(settings)
    from connectors.file_commit import FileCommitter

    source, _ = file_source(settings)
    told = lambda name, error: console.warn(f"{name} does not take alerts for now, they are kept: {error}")  # noqa: E731
    return Feed(source, FileCommitter(Path(settings.run.state), file_sinks(settings, console), on_unsent=told))


def file_source(settings: Settings, path: Path | None = None) -> tuple[Source, FieldMapping]:
    """Return a file as a source, and the mapping for the messages it hands over.

    Raises
    ------
    ConfigError : no file is named, or nothing is there.
    """
    from connectors.file_source import FileSource

    s, mapping = settings.source, file_mapping(settings, path)
    where, kind = path or Path(s.path), "" if s.format == "auto" else s.format
    speed = 0.0 if s.speed == "max" else s.speed
    whole = path is not None
    source = FileSource(where, mapping, file_format=kind, speed=0.0 if whole else speed, follow=s.follow and not whole)
    return source, mapping


def file_mapping(settings: Settings, path: Path | None = None) -> FieldMapping:
    """Return the mapping for the messages that a file, by default the configured one, is handed over in.

    Raises
    ------
    ConfigError : no file is named.
    """
    from connectors.file_source import message_format

    s = settings.source
    if path is None and not s.path:
        raise ConfigError("source.path", "", 'name the file to watch, or set source.type = "kafka"')
    return specs.field_mapping(settings, message_format(path or s.path, "" if s.format == "auto" else s.format))


def kafka_client(settings: Settings) -> Client:
    """Return a client of the configured brokers; nothing is connected to yet."""
    from connectors.kafka_client import connect

    return connect(specs.kafka_settings(settings), settings.kafka.client)


def _kafka_feed(settings: Settings) -> Feed:
    from connectors.kafka_client import Member
    from connectors.kafka_commit import KafkaCommitter, transactional_id
    from connectors.kafka_group_source import KafkaGroupSource
    from connectors.kafka_source import KafkaSource

    k = settings.kafka
    client = kafka_client(settings)
    source: KafkaSource | KafkaGroupSource
    if k.assignment == "group":
        member = Member(transactional_id(k.group, k.slot), k.session_s)
        source = KafkaGroupSource(client, [k.topic], k.group, member=member, start=k.start)
    else:
        source = KafkaSource(client, [k.topic], k.group, slot=k.slot, slots=k.slots, start=k.start)
    committer = KafkaCommitter(
        client,
        group=k.group,
        slot=k.slot,
        slots=k.slots,
        group_metadata=source.group_metadata if isinstance(source, KafkaGroupSource) else None,
        alerts_topic=k.alerts_topic,
        dead_topic=k.dead_topic,
        state_topics={k.topic: k.state_topic},
        snapshot_every=k.snapshot_every,
        resume=k.aged_out == "resume",
        scores=_scores_topic(settings),
        max_record_bytes=k.max_record_bytes,
        commit_timeout_s=k.commit_timeout_s,
        at_step=failpoints.read(os.environ),
    )
    return Feed(source, committer)


def require_room(settings: Settings, bundle: Bundle, state_bytes: int) -> None:
    """Check that one asset's state, with the windows of this bundle, can be saved.

    Raises
    ------
    BundleError : it takes more than a Kafka record; with the option to raise.
    """
    if settings.source.type != "kafka":
        return
    from connectors.kafka_records import asset_record_bytes

    need, k = asset_record_bytes(state_bytes), settings.kafka
    if need > k.max_record_bytes:
        raise BundleError(
            f"bundle {bundle.id} makes the state of an asset a record of up to {need} bytes, kafka.max_record_bytes is "
            f"{k.max_record_bytes}: raise it, and max.message.bytes of topic {k.state_topic!r} and the others that are "
            "written to, or train with shorter windows"
        )


def publishes_scores(settings: Settings) -> bool:
    """Return whether the watch hands its verdicts on to a topic; then the historian writes the history."""
    return settings.source.type == "kafka" and settings.kafka.scores_topic != ""


def _scores_topic(settings: Settings) -> ScoresTopic | None:
    if not publishes_scores(settings):
        return None
    from connectors.scores_topic import ScoresTopic

    k, names = settings.kafka, tuple(c.name for c in specs.channels(settings))
    return ScoresTopic(k.scores_topic, settings.feed.name, names, k.scores_top)


def follower_of(settings: Settings, name: str, options: Sequence[str]) -> KafkaFollower:
    """Return a reader of the topics of some options of [kafka]; its group is kafka.group with `name` added.

    Raises
    ------
    ConfigError : the feed does not come from Kafka.
    """
    if settings.source.type != "kafka":
        raise ConfigError("source.type", settings.source.type, 'must be "kafka": there is no topic to follow')
    from connectors.kafka_follow import KafkaFollower

    k = settings.kafka
    client = kafka_client(settings)
    topics = {f"kafka.{option}": getattr(k, option) for option in options}
    resume = k.aged_out == "resume"
    return KafkaFollower(client, topics, f"{k.group}-{name}", resume=resume, commit_timeout_s=k.commit_timeout_s)


def history_of(settings: Settings) -> ParquetHistory | None:
    """Return the history that the watch writes, unless it is switched off or the historian's."""
    if not settings.history.enabled or publishes_scores(settings):
        return None
    from connectors.history import ParquetHistory

    names = tuple(c.name for c in specs.channels(settings))
    h = settings.history
    return ParquetHistory(
        Path(h.root), settings.feed.name, names, offsets_per_file=h.range_rows, pending_rows=h.pending_rows
    )


def file_sinks(settings: Settings, console: Console) -> dict[str, Sink]:
    """Return where alerts go besides the commit itself."""
    from connectors.sinks import NdjsonSink, TextSink

    sinks: dict[str, Sink] = {}
    alerts, dead = settings.sinks.alerts, settings.sinks.dead
    if alerts == "-":
        sinks["stdout"] = TextSink(sys.stdout, sys.stderr, as_json=console.as_json)
        alerts = ""
    if alerts or dead:
        sinks["ndjson"] = NdjsonSink(Path(alerts) if alerts else None, Path(dead) if dead else None)
    return sinks
