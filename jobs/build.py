"""The composition root: settings -> the parts a program runs. Nothing here decides anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config import specs
from models.registry import Registry
from pipeline.chain import Chain
from pipeline.errors import ConfigError
from pipeline.protocols import Committer, History, Sink, Source

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings
    from pipeline.bundle import Bundle
    from pipeline.mapping import FieldMapping
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
    """Open an engine on the device that the settings ask for; one thread a worker, work is split by process."""
    import torch

    from models.engine import open_engine

    torch.set_num_threads(1)
    return open_engine(bundle, settings.run.device)


def chain_of(settings: Settings, mapping: FieldMapping) -> Chain:
    """Return the feed's chain for messages of that mapping, without a model yet."""
    return Chain(specs.chain_spec(settings, mapping.format))


def kafka_source(settings: Settings) -> Source:
    """Return this slot's partitions of the input topic."""
    from connectors.kafka_client import connect
    from connectors.kafka_source import KafkaSource

    k = settings.kafka
    client = connect(specs.kafka_settings(settings), k.client)
    return KafkaSource(client, [k.topic], k.group, slot=k.slot, slots=k.slots)


def history_of(settings: Settings) -> History | None:
    """Return the history that the watch writes, unless it is switched off."""
    if not settings.history.enabled:
        return None
    from connectors.history import ParquetHistory

    names = tuple(c.name for c in specs.channels(settings))
    h = settings.history
    return ParquetHistory(Path(h.root), settings.feed.name, names, offsets_per_file=h.range_rows)


def file_sinks(settings: Settings, console: Console) -> dict[str, Sink]:
    """Return where alerts go besides the commit itself."""
    from connectors.sinks import NdjsonSink, TextSink

    sinks: dict[str, Sink] = {}
    if settings.sinks.alerts == "-":
        sinks["stdout"] = TextSink(sys.stdout, sys.stderr, as_json=console.as_json)
    elif settings.sinks.alerts:
        dead = Path(settings.sinks.dead) if settings.sinks.dead else None
        sinks["ndjson"] = NdjsonSink(Path(settings.sinks.alerts), dead)
    return sinks


Told = Callable[[str], None]
_ = Committer
