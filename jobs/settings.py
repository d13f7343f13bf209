"""The configuration of one feed: read once, checked as a whole, frozen. The only reader of the environment.

Values come from flags, else the environment (`MIDWATCH_SECTION__KEY`, or `..._FILE` with the path of a file that
holds the value), else the project's file (`--config`, else ./midwatch.toml), else the user's file
(~/.config/midwatch/config.toml), else the defaults.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from jobs.config import options, places, training
from jobs.config.layers import Layer, Path_, environment_layers, file_layer, flag_layer, merge
from jobs.config.problems import config_errors
from pipeline.errors import ConfigError

PREFIX = "MIDWATCH_"
PROJECT_FILE = "midwatch.toml"

# What alerts depend on, given the readings and the model. `max_assets` only decides when to give up.
_SAID = {"feed": {"max_assets"}, "mapping": set(), "align": set(), "gate": set(), "smoother": set(), "alert": set()}


class Settings(BaseSettings):
    """Every option of midwatch, by section."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", enable_decoding=False, extra="forbid", frozen=True
    )

    feed: options.Feed = options.Feed()
    mapping: options.MessageFields = options.MessageFields()
    align: options.Align = options.Align()
    gate: options.Gate = options.Gate()
    train: training.Train = training.Train()
    smoother: options.Smoother = options.Smoother()
    alert: options.Alert = options.Alert()
    source: places.Source = places.Source()
    kafka: places.Kafka = places.Kafka()
    sinks: places.Sinks = places.Sinks()
    history: places.History = places.History()
    registry: places.Registry = places.Registry()
    labels: places.Labels = places.Labels()
    run: places.Run = places.Run()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given and nothing else: the layers were merged before, with their origins."""
        return (init_settings,)

    @model_validator(mode="after")
    def _grid(self) -> Settings:
        gap, period = self.align.max_gap_s, self.feed.period_s
        if self.align.mode == "grid" and gap != "auto" and gap < period:
            raise ConfigError("align.max_gap_s", gap, f"must be at least feed.period_s ({period})")
        return self

    @model_validator(mode="after")
    def _kept(self) -> Settings:
        kept, learned = self.history.keep_days, max(self.train.days, self.train.recalibrate_days)
        if kept != "off" and kept < learned:
            fix = f"must be at least train.days and train.recalibrate_days ({learned:g}), which are read every night"
            raise ConfigError("history.keep_days", kept, fix)
        return self


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and the origin of each value that is not a default."""

    settings: Settings
    origins: Mapping[Path_, str]


def load(
    config: Path | None = None, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Loaded:
    """Read and check the whole configuration.

    Parameters
    ----------
    config : the project's file; None: ./midwatch.toml, if there is one.
    flags : dotted key -> value, for what the command line says; None is a flag that was not given.
    environ : the environment; None: this process's.

    Raises
    ------
    ConfigError : the first key that cannot be used; the others are in its notes.
    """
    environ = os.environ if environ is None else environ
    return _checked([flag_layer(flags or {}), *environment_layers(environ, Settings), *_file_layers(config, environ)])


def alone(flags: Mapping[str, object]) -> Settings:
    """Return settings that no file and no environment of this machine has a say in: flags and defaults.

    Raises
    ------
    ConfigError : as in `load`.
    """
    return _checked([flag_layer(flags)]).settings


def _checked(layers: Sequence[Layer]) -> Loaded:
    values, origins = merge(layers)
    try:
        return Loaded(Settings(**values), origins)
    except ValidationError as error:
        first, *others = config_errors(error, Settings, origins)
        for other in others:
            first.add_note(str(other))
        raise first from None


def config_id(settings: Settings) -> str:
    """Return a short hash of every option that alerts depend on: the same file, the same id, on any machine."""
    said = {
        section: getattr(settings, section).model_dump(mode="json", exclude=skip) for section, skip in _SAID.items()
    }
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _file_layers(config: Path | None, environ: Mapping[str, str]) -> list[Layer]:
    layers = []
    if config is not None:
        layers.append(file_layer(config, "--config"))
    elif Path(PROJECT_FILE).exists():
        layers.append(file_layer(Path(PROJECT_FILE), "project file"))
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if "HOME" in environ else "")
    user = Path(home) / "midwatch" / "config.toml"
    if home and user.exists():
        layers.append(file_layer(user, "user file"))
    return layers
