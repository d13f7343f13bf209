"""The wire form of alerts and dead letters: one JSON object each, and the headers that go beside it on Kafka.

The alert record is versioned (`schema_version`) and described by `schemas/alert.schema.json`, which
`python -m connectors.alert_json > connectors/schemas/alert.schema.json` writes. Within a version fields are only
added, and readers ignore those they do not know. Every time is there twice: nanoseconds for programs, RFC 3339 text
for people. JSON has no NaN and no infinity: both are null.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
import numpy as np

from pipeline.errors import SchemaError
from pipeline.values import Alert, DeadLetter, Place, Polled, Position, TopChannel

SCHEMA_VERSION: Final = 1
Headers = list[tuple[str, bytes]]


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of `AlertRecord.top_channels`."""

    name: str
    share: float | None
    expected: float | None
    actual: float | None


class EvidenceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the log the row lies that made this change."""

    topic: str
    partition: int
    offset: int
    row: int


class AlertRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An `Alert` as it is published; the order of the fields is the order on the wire."""

    schema_version: Literal[1]
    id: str
    seq: int
    feed: str
    asset: str
    kind: str
    state: Literal["open", "updated", "resolved"]
    severity: str
    reason: str
    ts: str
    ts_ns: int
    opened: str
    opened_ns: int
    start: str
    start_ns: int
    onset: str
    onset_ns: int
    end: str | None
    end_ns: int | None
    ratio: float | None
    peak_ratio: float | None
    threshold: float | None
    coverage: float | None
    top_channels: tuple[ChannelRecord, ...]
    model_id: str
    config_id: str
    evidence: EvidenceRecord


class DeadLetterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A `DeadLetter` in a file: the bytes as base64, and as text where they are UTF-8."""

    schema_version: Literal[1]
    topic: str
    partition: int
    offset: int
    row: int
    reason: str
    detail: str
    text: str | None
    value: bytes


_encoder = msgspec.json.Encoder()
_alert_decoder = msgspec.json.Decoder(AlertRecord)
_dead_decoder = msgspec.json.Decoder(DeadLetterRecord)


def rfc3339(ts_ns: int) -> str:
    """Return a time (ns since 1970-01-01 UTC) as RFC 3339 text with nine decimals, e.g. `2026-01-02T03:04:05.0...Z`."""
    return f"{np.datetime64(ts_ns, 'ns')}Z"


def encode_alert(alert: Alert) -> bytes:
    """Return an alert as one JSON object (UTF-8, no line end), fields in a fixed order."""
    return _encoder.encode(
        AlertRecord(
            schema_version=SCHEMA_VERSION,
            id=alert.id,
            seq=alert.seq,
            feed=alert.feed,
            asset=alert.asset,
            kind=alert.kind,
            state=alert.state,  # type: ignore[arg-type]  # checked by whoever decodes
            severity=alert.severity,
            reason=alert.reason,
            ts=rfc3339(alert.ts_ns),
            ts_ns=alert.ts_ns,
            opened=rfc3339(alert.opened_ns),
            opened_ns=alert.opened_ns,
            start=rfc3339(alert.start_ns),
            start_ns=alert.start_ns,
            onset=rfc3339(alert.onset_ns),
            onset_ns=alert.onset_ns,
            end=None if alert.end_ns is None else rfc3339(alert.end_ns),
            end_ns=alert.end_ns,
            ratio=_finite(alert.ratio),
            peak_ratio=_finite(alert.peak_ratio),
            threshold=_finite(alert.threshold),
            coverage=_finite(alert.coverage),
            top_channels=tuple(
                ChannelRecord(
                    name=c.name, share=_finite(c.share), expected=_finite(c.expected), actual=_finite(c.actual)
                )
                for c in alert.top_channels
            ),
            model_id=alert.model_id,
            config_id=alert.config_id,
            evidence=EvidenceRecord(
                topic=alert.evidence.topic,
                partition=alert.evidence.partition,
                offset=alert.evidence.offset,
                row=alert.evidence.row,
            ),
        )
    )


def decode_alert(body: bytes) -> Alert:
    """Return the alert that `encode_alert` wrote; equal to it, except that what was infinite is now NaN.

    Raises
    ------
    SchemaError : not JSON, a field is missing or of another type, or another schema version.
    """
    try:
        r = _alert_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"not an alert of schema version {SCHEMA_VERSION}: {error}; starts with {body[:80]!r}"
        ) from None
    return Alert(
        id=r.id,
        seq=r.seq,
        feed=r.feed,
        asset=r.asset,
        kind=r.kind,
        state=r.state,
        reason=r.reason,
        severity=r.severity,
        ts_ns=r.ts_ns,
        opened_ns=r.opened_ns,
        start_ns=r.start_ns,
        onset_ns=r.onset_ns,
        end_ns=r.end_ns,
        ratio=_or_nan(r.ratio),
        peak_ratio=_or_nan(r.peak_ratio),
        threshold=_or_nan(r.threshold),
        coverage=_or_nan(r.coverage),
        top_channels=tuple(TopChannel(c.name, _or_nan(c.share), c.expected, c.actual) for c in r.top_channels),
        model_id=r.model_id,
        config_id=r.config_id,
        evidence=Position(r.evidence.topic, r.evidence.partition, r.evidence.offset, r.evidence.row),
    )


def decode_polled(polled: Polled) -> list[Alert]:
    """Return the alerts that were read of an alerts topic, one a message.

    Raises
    ------
    SchemaError : a message is no alert; says which.
    """
    found = []
    for offset, value in zip(polled.offset.tolist(), polled.value, strict=True):
        try:
            found.append(decode_alert(value or b""))
        except SchemaError as error:
            raise SchemaError(f"{message_place((polled.topic, polled.partition), offset)}: {error}") from None
    return found


def message_place(place: Place, offset: int) -> str:
    """Return where a message is, for an error."""
    return f"topic {place[0]!r}, partition {place[1]}, offset {offset}"


def encode_dead_letter(dead: DeadLetter) -> bytes:
    """Return a dead letter as one JSON object (no line end): why, where, the bytes, and their text if they have one."""
    return _encoder.encode(
        DeadLetterRecord(
            schema_version=SCHEMA_VERSION,
            topic=dead.topic,
            partition=dead.partition,
            offset=dead.offset,
            row=dead.row,
            reason=dead.reason,
            detail=dead.detail,
            text=_text(dead.value),
            value=dead.value,
        )
    )


def decode_dead_letter(body: bytes) -> DeadLetter:
    """Return the dead letter that `encode_dead_letter` wrote.

    Raises
    ------
    SchemaError : not JSON, a field is missing or of another type, or another schema version.
    """
    try:
        r = _dead_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"not a dead letter of schema version {SCHEMA_VERSION}: {error}; starts with {body[:80]!r}"
        ) from None
    return DeadLetter(r.topic, r.partition, r.offset, r.row, r.reason, r.detail, r.value)


def cloud_event_headers(alert: Alert) -> Headers:
    """Return the headers of an alert in the binary mode of CloudEvents 1.0 on Kafka.

    `ce_time` is event time, never the wall clock: the same input gives the same record.
    """
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{alert.id}:{alert.seq}".encode()),
        ("ce_source", f"/midwatch/{quote(alert.feed, safe='')}".encode()),
        ("ce_type", f"io.midwatch.alert.{alert.state}".encode()),
        ("ce_subject", alert.asset.encode()),
        ("ce_time", rfc3339(alert.ts_ns).encode()),
        ("content-type", b"application/json"),
    ]


def dead_letter_headers(dead: DeadLetter) -> Headers:
    """Return the headers of a dead letter whose record value is the message as it came."""
    return [
        ("midwatch_reason", dead.reason.encode()),
        ("midwatch_detail", dead.detail.encode()),
        ("midwatch_topic", dead.topic.encode()),
        ("midwatch_partition", str(dead.partition).encode()),
        ("midwatch_offset", str(dead.offset).encode()),
        ("midwatch_row", str(dead.row).encode()),
    ]


def alert_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the alert record."""
    schema = msgspec.json.schema(AlertRecord)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:midwatch:alert:{SCHEMA_VERSION}"}
    return {**head, **schema}


def schema_text() -> bytes:
    """Return `alert_schema` as the text of `schemas/alert.schema.json`."""
    return msgspec.json.format(_encoder.encode(alert_schema()), indent=2) + b"\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


if __name__ == "__main__":
    sys.stdout.buffer.write(schema_text())
