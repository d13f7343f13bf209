"""`midwatch config`: check it, show every value with its origin, describe it to editors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from jobs.config.layers import HIDDEN, Path_, origin_of
from jobs.config.specs import chain_spec, kafka_settings, source_path
from jobs.console import Console
from jobs.settings import Loaded, Settings, config_id


def check(loaded: Loaded, console: Console) -> None:
    """Build everything that `run` would build from the configuration, without connecting anywhere.

    Raises
    ------
    ConfigError : the first key that cannot be used.
    """
    settings = loaded.settings
    chain_spec(settings)
    if settings.source.type == "kafka":
        kafka_settings(settings)
    else:
        source_path(settings)
    given = sorted({origin for origin in loaded.origins.values() if not origin.startswith("environment")})
    console.record(
        {
            "feed": settings.feed.name,
            "channels": len(settings.feed.channels),
            "source": settings.source.type,
            "config_id": config_id(settings),
            "read_from": given or ["default"],
        }
    )


def show(loaded: Loaded, console: Console) -> None:
    """Print every option, its value and where that came from; secrets are masked."""
    rows = [
        {"key": ".".join(map(str, path)), "value": value, "from": origin_of(path, loaded.origins)}
        for path, value in _options(loaded.settings, ())
    ]
    console.rows(rows, ("key", "from", "value"))


def schema(console: Console) -> None:
    """Print the JSON Schema of the configuration file."""
    console.line(json.dumps(Settings.model_json_schema(), indent=None if console.as_json else 2))


def _options(section: BaseModel, path: Path_) -> Iterator[tuple[Path_, Any]]:
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            yield from _options(value, (*path, key))
        elif isinstance(value, SecretStr):
            yield (*path, key), HIDDEN if value.get_secret_value() else ""
        else:
            yield (*path, key), section.model_dump(mode="json", include={key})[key]
