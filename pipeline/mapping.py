"""How the fields of a message map to asset, time and channels: `FieldMapping`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import ConfigError

MESSAGE_KEY = "@key"  # as the asset field: the asset is the message's key
MAX_TS_NS = 1 << 62  # times from 1823 to 2116: the difference of any two of them is an int64 too
UNIT_DIGITS = {"ns": 0, "us": 3, "ms": 6, "s": 9}  # one unit is 10**digits nanoseconds
_OPTIONS = {  # what an attribute is called in the configuration, where not mapping.<attribute>
    "channels": "feed.channels",
    "fields": "feed.channels.field",
    "low": "feed.channels.low",
    "high": "feed.channels.high",
    "columns": "mapping",
    "time_origin_ns": "mapping.time_origin",
    "max_ahead_ns": "mapping.max_ahead_s",
}

Format = Literal["json", "arrow", "records"]


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """Which field (JSON) or column (Arrow) holds what.

    Attributes
    ----------
    channels : names of the C channels, in the order of every array that follows.
    fields : the field, sensor or column of each channel in the messages; () means the channel names themselves.
    format : `json`, `arrow`, or `records` (`pipeline.decode_records`: packed, of one size; a name for the asset says
        that records have its number, the other names are not looked at).
    layout : `wide` (a message or row holds all channels) or `long` (it holds one sensor's value).
    asset : field with the asset's name or number; `@key`: the message key; "": every row is of `asset_value`.
    asset_value : the asset of all rows where `asset` is "".
    time : field with the event time.
    time_unit : of numeric times: `ns`, `us`, `ms` or `s` since 1970 plus `time_origin_ns`; or `iso`: RFC 3339 text
        (without an offset: UTC). Arrow timestamps bring their own unit.
    time_origin_ns : added to numeric times, for clocks that count from something else than 1970.
    values : wide JSON only. "": channels are fields of the message; else the field with an object of name -> number,
        or an array of C numbers in channel order.
    sensor, value : long only: the fields with the sensor's name and its value.
    low, high : physical limits per channel, inclusive, in input units; () means none.
    max_ahead_ns : a row whose time is further than this ahead of the time the log took its message is refused
        (None: none is; nor where the log has no time).
    max_bytes : a longer message is refused unread.

    Raises
    ------
    ConfigError : names the key, its value and the fix.
    """

    channels: tuple[str, ...]
    fields: tuple[str, ...] = ()
    format: Format = "json"
    layout: Literal["wide", "long"] = "wide"
    asset: str = "asset"
    asset_value: str = ""
    time: str = "ts"
    time_unit: Literal["ns", "us", "ms", "s", "iso"] = "ns"
    time_origin_ns: int = 0
    values: str = ""
    sensor: str = "sensor"
    value: str = "value"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    max_ahead_ns: int | None = None
    max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_names(self)
        _check_limits(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The C field, sensor or column names of the channels."""
        return self.fields or self.channels

    @property
    def columns(self) -> tuple[str, ...]:
        """Every top-level field or column that a message or row should have, asset and time first."""
        asset = () if self.asset in ("", MESSAGE_KEY) else (self.asset,)
        if self.layout == "long":
            return (*asset, self.time, self.sensor, self.value)
        return (*asset, self.time, *((self.values,) if self.values else self.names))


def mapping_problem(columns_found: Sequence[str], mapping: FieldMapping) -> str | None:
    """Return what the mapping asks for that is not among the columns found, and the fix; None where all is there."""
    missing = [name for name in mapping.columns if name not in columns_found]
    if not missing:
        return None
    return (
        f"no column {_quoted(missing)}: found {_quoted(columns_found)}; "
        "put the names as they are there into the mapping (asset, time, channels or fields)"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _check_choices(m: FieldMapping) -> None:
    for key, choices in (
        ("format", get_args(Format)),
        ("layout", ("wide", "long")),
        ("time_unit", (*UNIT_DIGITS, "iso")),
    ):
        _refuse_unless(getattr(m, key) in choices, m, key, f"must be one of {', '.join(choices)}")
    _refuse_unless(not m.values or m.layout == "wide", m, "values", "a long message has no values field: leave it out")
    _refuse_unless(
        not m.values or m.format == "json", m, "values", "channels of other formats have places: leave it out"
    )
    packed = m.format == "records"
    _refuse_unless(not packed or m.layout == "wide", m, "layout", "a record holds all channels: set wide")
    _refuse_unless(not packed or m.time_unit != "iso", m, "time_unit", "a record's time is a number: name its unit")
    _refuse_unless(bool(m.asset) != bool(m.asset_value), m, "asset_value", 'needed where asset = "", and only there')
    _refuse_unless(bool(m.time), m, "time", "name the field that holds the event time")


def _check_names(m: FieldMapping) -> None:
    _refuse_unless(bool(m.channels), m, "channels", "name at least one channel")
    _refuse_unless(len(set(m.channels)) == len(m.channels), m, "channels", "names must differ from one another")
    _refuse_unless(
        len(m.names) == len(m.channels), m, "fields", f"must name {len(m.channels)}, one per channel, or none"
    )
    _refuse_unless(len(set(m.names)) == len(m.names), m, "fields", "names must differ from one another")
    for key, names in (
        ("channels", m.channels),
        ("fields", m.names),
        ("asset", m.columns),
        ("asset_value", (m.asset_value,)),
    ):
        _refuse_unless(all(is_text(name) for name in names), m, key, "must be valid Unicode text")
    _refuse_unless(all((*m.channels, *m.columns, *m.names)), m, "channels", 'a name may not be ""')
    _refuse_unless(len(set(m.columns)) == len(m.columns), m, "columns", "a field can have one meaning only")


def _check_limits(m: FieldMapping) -> None:
    for key in ("low", "high"):
        limits = getattr(m, key)
        _refuse_unless(len(limits) in (0, len(m.channels)), m, key, f"must name {len(m.channels)} limits, or none")
        _refuse_unless(not any(map(math.isnan, limits)), m, key, "NaN is no limit: use -inf or inf for none")
    ordered = all(low <= high for low, high in zip(m.low, m.high, strict=False))
    _refuse_unless(ordered, m, "low", f"must not be above high = {m.high!r}")
    _refuse_unless(abs(m.time_origin_ns) <= MAX_TS_NS, m, "time_origin_ns", "must lie between 1823 and 2116")
    _refuse_unless(
        m.time_unit != "iso" or not m.time_origin_ns, m, "time_origin_ns", "leave it out where time_unit is iso"
    )
    _refuse_unless(m.max_ahead_ns is None or m.max_ahead_ns >= 0, m, "max_ahead_ns", "must be 0 or more, or none")
    _refuse_unless(m.max_bytes > 0, m, "max_bytes", "must be more than 0")


def is_text(name: str) -> bool:
    """Whether a string can be written as UTF-8; JSON escapes can make ones that cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _refuse_unless(fits: bool, mapping: FieldMapping, name: str, fix: str) -> None:
    if not fits:
        raise ConfigError(_OPTIONS.get(name, f"mapping.{name}"), getattr(mapping, name), fix)
