"""Why messages and rows become dead letters: the reasons, and sentences that say what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.mapping import FieldMapping

_SHOWN = 60  # characters of what was found that a detail repeats


class Fault(NamedTuple):
    """Why a message (`row` -1), or a row of it, cannot be used: what becomes a dead letter, with its bytes."""

    row: int
    reason: str
    detail: str
    value: bytes


class Unusable(InputError):  # noqa: N818 - reads as the fact it states
    """Carries a fault's reason and detail to where its row and bytes are known; never leaves decoding."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def fault(self, row: int, value: bytes) -> Fault:
        """Return what becomes a dead letter."""
        return Fault(row, self.reason, self.detail, value)


def body(message: bytes | None, mapping: FieldMapping) -> bytes:
    """Return a message that is worth reading.

    Raises
    ------
    Unusable : it has no body, or one that is too long.
    """
    if not message:
        raise Unusable("empty", "the message has no body: there is nothing to read, its sender may leave it out")
    if len(message) > mapping.max_bytes:
        raise Unusable(
            "too_large",
            f"{len(message)} bytes, {mapping.max_bytes} are allowed: send smaller messages, or raise max_bytes",
        )
    return message


def no_rows() -> Unusable:
    """Return the fault of a message that is well-formed and holds nothing."""
    return Unusable("empty", "the message holds no rows: its sender may leave it out")


def no_asset(what: str) -> Unusable:
    """Return the fault of a row whose asset is not known."""
    return Unusable("no_asset", f"{what}: send the asset's name, or map the field that holds it")


def no_time(what: str) -> Unusable:
    """Return the fault of a row without a time."""
    return Unusable("no_time", f"{what}: send the event time, or map the field that holds it")


def bad_time(what: str, mapping: FieldMapping) -> Unusable:
    """Return the fault of a row whose time cannot be read, or lies outside of what fits."""
    if mapping.time_unit == "iso":
        wanted = "an RFC 3339 time like 2026-01-31T23:59:59.5Z"
    else:
        wanted = f"a number of {mapping.time_unit}"
    return Unusable("bad_time", f"{what}, not {wanted} between the years 1823 and 2116: correct it, or set time_unit")


def future(ts_ns: int, latest_ns: int, mapping: FieldMapping) -> Unusable:
    """Return the fault of a row from the future, as the log sees it."""
    ahead_s = (ts_ns - latest_ns + (mapping.max_ahead_ns or 0)) / 1e9
    return Unusable(
        "future",
        f"the row is {ahead_s:.3f} s ahead of the time the log took it: check the sender's clock and time_unit",
    )


def unknown_sensor(what: str) -> Unusable:
    """Return the fault of a row of a sensor that is no channel."""
    return Unusable("unknown_sensor", f"{what}: add it to the channels, or keep it out of the feed")


def shown(value: Any) -> str:
    """Return what was found, cut to a length that a sentence can hold."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def key_asset(key: bytes | None) -> str:
    """Return the asset that a message key names.

    Raises
    ------
    Unusable : there is no key, or it is no UTF-8 text.
    """
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError:
        raise no_asset(f"the message key {shown(key)} is not UTF-8") from None
    if not name:
        raise no_asset("the message has no key")
    return name
