"""Every option of what is watched and how: data in, model, alert. Connections and folders are in `places`.

One option is one field: its type and limits check it, its description and unit become the JSON Schema, the
documented `default.toml`, and the second half of every error message. Times are seconds, as people write them; the
specs of `pipeline` get nanoseconds (`jobs.config.specs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import ConfigError

Auto = Literal["auto"]
Off = Literal["off"]
Seconds = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """One table of the configuration file: immutable, and without keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def option(default: Any, unit: str, description: str, **limits: Any) -> Any:
    """Declare an option. `unit` is "" for what has none."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


class Channel(Section):
    """One channel of a feed. A plain string is a channel of that name with nothing else known about it."""

    name: str = option(..., "", "what the channel is called in scores and alerts", min_length=1)
    field: str = option("", "", "where its value is found in a message, when that is another word than `name`")
    low: float | None = option(None, "input units", "readings below are out of range")
    high: float | None = option(None, "input units", "readings above are out of range")
    max_step: float | None = option(None, "input units", "a larger step between two rows is a jump", gt=0)
    stuck_frames: int | None = option(None, "rows", "this many equal readings in a row are stuck; 0: never", ge=0)
    unit: str = option("", "", "what it is measured in, for people")

    @model_validator(mode="after")
    def _range(self) -> Channel:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"feed.channels ({self.name}).low", self.low, f"must be below high ({self.high})")
        return self


def listed(value: Any) -> Any:
    """Read a list from text, as it comes from the environment or a flag: JSON, or words between commas."""
    if not isinstance(value, str):
        return value
    return _read_json(value) if value.lstrip().startswith("[") else [part.strip() for part in value.split(",") if part]


def tabled(value: Any) -> Any:
    """Read a table from text: JSON."""
    return _read_json(value) if isinstance(value, str) else value


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PydanticCustomError("json", "valid JSON: {why}", {"why": str(error)}) from None


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Channel = Annotated[Channel, BeforeValidator(_named, json_schema_input_type=str | Channel)]


class Feed(Section):
    """The sensors that are watched together: assets of one kind, each with the same channels."""

    name: Name = option("feed", "", "names the feed in alerts and in the history; alert ids derive from it")
    channels: Annotated[tuple[_Channel, ...], BeforeValidator(listed)] = option(
        (), "", "the channels, each a name or a table; without any, `score` takes every numeric column of its file"
    )
    period_s: float = option(1.0, "s", "time between two rows of an asset", gt=0)
    max_assets: int = option(1_000_000, "assets", "most assets of one partition; one more is an error", ge=1)

    @model_validator(mode="after")
    def _distinct(self) -> Feed:
        names = [c.name for c in self.channels]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("feed.channels", name, "is there twice: every channel needs a name of its own")
        return self


class MessageFields(Section):
    """Where a message keeps its asset, its time and its readings."""

    format: Literal["json", "arrow", "records"] = option(
        "json",
        "",
        "what a message is: a JSON object, an Arrow record batch, or packed records (int32, int64, float32s)",
    )
    layout: Literal["wide", "long"] = option(
        "wide", "", "wide: one row holds every channel; long: one row is one reading of one sensor"
    )
    asset: str = option("asset", "", "field with the asset's name; `@key`: the message key; empty: use asset_value")
    asset_value: str = option("", "", "the asset's name where messages carry none")
    time: str = option("ts", "", "field with the event time", min_length=1)
    time_unit: Literal["ns", "us", "ms", "s", "iso"] = option(
        "ms", "", "unit of the event time; iso: text in ISO 8601, UTC where it names no offset"
    )
    time_origin: AwareDatetime = option(
        datetime(1970, 1, 1, tzinfo=UTC), "", "what numeric times count from, with its offset from UTC"
    )
    values: str = option(
        "", "", "wide: field that holds the readings by name or as an array in channel order; empty: top level"
    )
    sensor: str = option("sensor", "", "long: field with the sensor's name", min_length=1)
    value: str = option("value", "", "long: field with the reading", min_length=1)
    max_ahead_s: Seconds | Off = option(
        3600.0, "s", "a row whose time is further ahead of its record's log time is a dead letter; off: never"
    )
    max_bytes: int = option(1_000_000, "bytes", "a larger message is a dead letter", ge=1)

    @model_validator(mode="after")
    def _some_asset(self) -> MessageFields:
        if not self.asset and not self.asset_value:
            raise ConfigError("mapping.asset_value", "", "must name the asset when mapping.asset is empty")
        return self


class Align(Section):
    """How rows are put on a common period, and how long an asset may be silent."""

    mode: Literal["grid", "none"] = option(
        "grid", "", "grid: rows go to multiples of feed.period_s; none: rows are taken as they come"
    )
    rounding: Literal["nearest", "floor"] = option("nearest", "", "to which multiple a row goes")
    lateness_s: Seconds = option(0.0, "s", "how long rows are held back for ones that come late; delays every score")
    max_gap_s: Annotated[float, Field(gt=0)] | Auto = option(
        "auto", "s", "a longer silence of an asset starts its window again; auto: 10 periods"
    )
    retire_after_s: Annotated[float, Field(gt=0)] | Auto = option(
        "auto", "s", "a longer silence makes the asset a new one; auto: a day, or 10 times the longest gap"
    )

    @model_validator(mode="after")
    def _longer(self) -> Align:
        gap, retire = self.max_gap_s, self.retire_after_s
        if isinstance(gap, float) and isinstance(retire, float) and retire <= gap:
            raise ConfigError("align.retire_after_s", retire, f"must be longer than align.max_gap_s ({gap})")
        return self


class Gate(Section):
    """The checks that look at one sensor over time. What fails them masks the reading and is told as such."""

    stuck: Annotated[int, Field(ge=2)] | Auto | Off = option(
        "auto", "rows", "this many equal readings in a row are stuck; auto: as learned for each channel in training"
    )
    missing_after_s: Seconds | Auto | Off = option(
        "auto", "s", "a channel that is absent for longer is missing; auto: 10 periods"
    )


class Smoother(Section):
    """The day-long yardstick of median and MAD, and the EWMA after it."""

    yardstick: bool = option(True, "", "hold errors against the asset's own recent ones")
    memory: int = option(128, "errors", "how many errors the yardstick keeps", ge=8, le=4096)
    span_s: float = option(86_400.0, "s", "event time that they are spread over", gt=0)
    admit_z: float = option(5.0, "MAD", "errors further out do not enter it", gt=0)
    mad_floor: float = option(1.0, "calibrated MAD", "least width of the yardstick", gt=0)
    ewma_span: int = option(15, "rows", "span of the exponential average; 1: none", ge=1)


class LifeCycle(Section):
    """When an alert opens, is published again, and resolves. All in event time."""

    min_duration_s: Seconds = option(0.0, "s", "how long it has lasted when it opens")
    frames: int = option(1, "rows", "this many of the last `of` rows are over the threshold by themselves", ge=1, le=32)
    of: int = option(1, "rows", "see `frames`", ge=1, le=32)
    merge_gap_s: Seconds = option(60.0, "s", "how long it is gone when it resolves; back within it, it never went")
    cooldown_s: Seconds = option(0.0, "s", "how long after it resolved no other opens on the asset")
    update_every_s: Seconds = option(3600.0, "s", "an open one is published again after this long; 0: never")


class QualityAlert(LifeCycle):
    """The life cycle of sensor faults: stuck, missing, out of range, jumping, not finite."""


class Alert(LifeCycle):
    """The life cycle of anomalies."""

    open_at: float = option(1.0, "thresholds", "ratio over which an alert opens", gt=0)
    close_at: float = option(0.8, "thresholds", "ratio under which it may resolve; at most open_at", gt=0)
    frames: int = option(2, "rows", "this many of the last `of` rows are over the threshold by themselves", ge=1, le=32)
    of: int = option(5, "rows", "see `frames`", ge=1, le=32)
    severity: Annotated[Mapping[str, float], BeforeValidator(tabled)] = option(
        {"warning": 1.0, "error": 2.0, "critical": 4.0},
        "thresholds",
        "severities, and the least peak ratio of each",
        min_length=1,
    )
    top: int = option(5, "channels", "how many channels an alert names", ge=1)
    quality: QualityAlert = QualityAlert()


__all__ = [
    "Alert",
    "Align",
    "Channel",
    "Feed",
    "Gate",
    "MessageFields",
    "QualityAlert",
    "Section",
    "Smoother",
    "listed",
    "option",
]
