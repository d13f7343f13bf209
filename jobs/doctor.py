"""`midwatch doctor`: look at everything the watch needs; each line says what is found and, if it is wrong, the fix."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jobs.config import specs
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

_FREE_BYTES = 2 << 30


class Finding(NamedTuple):
    """One line of the report. `fix` is empty where nothing is wrong."""

    what: str
    found: str
    fix: str = ""


def doctor(settings: Settings, console: Console) -> bool:
    """Print the findings; return whether nothing needs a fix."""
    found = [finding for check in _CHECKS for finding in _guarded(check, settings)]
    rows = [{"ok": not f.fix, "": "ok" if not f.fix else "!!", **f._asdict()} for f in found]
    console.rows(rows, ("", "what", "found", "fix"))
    return not any(f.fix for f in found)


def _guarded(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """Let one check fail without hiding what the others find."""
    try:
        yield from check(settings)
    except PipelineError as error:
        yield Finding(check.__name__.strip("_"), "not usable", str(error))


def _channels(settings: Settings) -> Iterator[Finding]:
    names = [c.name for c in specs.channels(settings)]
    specs.chain_spec(settings)
    yield Finding("channels", f"{len(names)}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}")


def _device(settings: Settings) -> Iterator[Finding]:
    from models.profiles import cuda_devices

    gpus = cuda_devices()
    yield Finding("device", f"{gpus} CUDA devices" if gpus else "no CUDA device: scores on the CPU")
    if settings.run.device.startswith("cuda") and not gpus:
        yield Finding(
            "run.device", settings.run.device, "no CUDA device is visible here: set run.device to auto or cpu"
        )


def _precision(settings: Settings) -> Iterator[Finding]:
    from models.profiles import choose, slow_here

    run = settings.run
    profile = choose(run.device, run.precision, run.priority)
    slow = slow_here(profile)
    yield Finding("profile", profile.name, slow and f"{slow}: set run.precision to float32")


def _folders(settings: Settings) -> Iterator[Finding]:
    places = {"history": settings.history.root, "models": settings.registry.root, "state": settings.run.state}
    for what, place in places.items():
        folder = _existing(Path(place))
        free = shutil.disk_usage(folder).free
        found = f"{place}, {free / 2**30:.1f} GiB free"
        if not os.access(folder, os.W_OK):
            yield Finding(what, found, f"{folder} is not writable: change its owner, or set another folder")
        elif free < _FREE_BYTES:
            yield Finding(what, found, "less than 2 GiB are free: make room, or set another folder")
        else:
            yield Finding(what, found)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def _model(settings: Settings) -> Iterator[Finding]:
    from jobs.build import champion

    bundle = champion(settings)
    if bundle is None:
        yield Finding("model", "no champion yet: the watch collects history", "")
        return
    wanted = tuple(c.name for c in specs.channels(settings))
    if bundle.channels != wanted:
        raise ConfigError("feed.channels", wanted, f"the champion {bundle.id} is for {bundle.channels}: train anew")
    yield Finding("model", f"{bundle.id}, calibrated for {', '.join(sorted(bundle.calibrations))}")


def _source(settings: Settings) -> Iterator[Finding]:
    if settings.source.type == "kafka":
        yield from _kafka(settings)
    elif not settings.source.path:
        yield Finding("source", "no file is named", 'set source.path, or source.type = "kafka"')
    elif not Path(settings.source.path).exists():
        yield Finding("source", settings.source.path, "there is no such file: correct source.path")
    else:
        yield Finding("source", settings.source.path)


def _kafka(settings: Settings) -> Iterator[Finding]:
    from connectors.kafka_client import has_crc32c
    from jobs.build import kafka_client
    from jobs.topics import fit_topics

    k = settings.kafka
    if k.client == "kafka-python" and not has_crc32c():
        yield Finding(
            "crc32c",
            "not installed",
            "kafka-python checks records in Python, 5 to 23 times slower: pip install 'kafka-python[crc32c]'",
        )
    client = kafka_client(settings)
    yield Finding("broker", f"{','.join(k.bootstrap)} answers, {len(client.topics())} topics, client {k.client}")
    found = fit_topics(settings, client)
    yield Finding("topics", ", ".join(f"{t.topic} ({t.partitions} partitions)" for t in found))


_CHECKS = (_channels, _device, _precision, _folders, _model, _source)
