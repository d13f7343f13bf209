"""What people said about alerts and stretches of time: an append-only file of labels, one JSON object a line.

Nothing is ever changed or removed. Of one person's labels on the same target the newest counts; what different
people say about it stands side by side, as a conflict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa

from connectors.durable import GrowingFile
from pipeline.errors import InputError, SchemaError

Verb = Literal["confirm", "dismiss", "known_event", "change_point", "shelve"]
_ABOUT_ALERTS = ("confirm", "dismiss", "shelve")


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """One label.

    The target is an alert (`alert_id`), or a stretch of event time of an asset. `confirm`: a real fault. `dismiss`:
    normal. `known_event`: maintenance and the like, neither. `change_point`: what is normal changed at `start_ns`.
    `shelve`: hide the alert until `end_ns`.
    """

    schema_version: Literal[1] = 1
    verb: Verb
    feed: str
    asset: str
    start_ns: int
    end_ns: int | None = None
    alert_id: str = ""
    who: str
    when_ns: int  # wall clock, as passed in by whoever took the label
    note: str = ""
    model_id: str = ""  # that was serving when the person said it


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Label)

LABELS = pa.schema(
    [
        ("position", pa.int64()),
        *((name, pa.string()) for name in ("verb", "feed", "asset", "alert_id")),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("who", pa.string()),
        ("when_ns", pa.int64()),
        ("note", pa.string()),
        ("model_id", pa.string()),
    ]
)


def append_label(path: Path, label: Label) -> None:
    """Add a label to the file; on disk when this returns. Several processes may add to one file.

    Raises
    ------
    InputError : the label lacks what its verb needs.
    SinkUnavailable : the disk did not take it.
    """
    _check(label)
    file = GrowingFile(path, wait=True)
    try:
        file.cut_unfinished_line()
        file.append(_encoder.encode(label) + b"\n")
        file.sync()
    finally:
        file.close()


def read_labels(path: Path) -> list[Label]:
    """Return all labels in the order in which they were added; none where there is no file yet.

    Raises
    ------
    SchemaError : a line is no label of this version.
    """
    if not path.exists():
        return []
    labels = []
    body = path.read_bytes()
    for number, line in enumerate(body[: body.rfind(b"\n") + 1].split(b"\n")[:-1], 1):  # the last may be half written
        try:
            labels.append(_decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path}, line {number}: not a label of schema version 1: {error}") from None
    return labels


def labels_table(labels: list[Label]) -> pa.Table:
    """Return labels as a table; `position` is a label's place in the file, from 0."""
    records = [{"position": i, **msgspec.structs.asdict(label)} for i, label in enumerate(labels)]
    return pa.Table.from_pylist([{name: r[name] for name in LABELS.names} for r in records], LABELS)


def _check(label: Label) -> None:
    if not label.who:
        raise InputError(f"{label.verb}: say who says so")
    if label.verb == "shelve" and not label.alert_id:
        raise InputError("shelve: name the alert to hide")
    if label.verb in ("known_event", "shelve") and label.end_ns is None:
        raise InputError(f"{label.verb}: say when it ends")
    if label.verb in _ABOUT_ALERTS and not label.alert_id and label.end_ns is None:
        raise InputError(f"{label.verb}: name an alert, or an end of the stretch of time")
    if label.verb == "change_point" and label.end_ns is not None:
        raise InputError("change_point: the new normal begins at its start and has no end")
    if label.end_ns is not None and label.end_ns < label.start_ns:
        raise InputError(f"{label.verb}: the end ({label.end_ns}) lies before the start ({label.start_ns})")
