"""`midwatch alerts`: what was told, and what people say about it."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.promote import utc
from pipeline.errors import InputError

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

_COLUMNS = ("id", "state", "severity", "kind", "asset", "opened", "ratio", "channels", "said")
_TAIL_S = 0.5


def list_alerts(
    settings: Settings, since_ns: int | None, asset: str | None, state: str | None, limit: int, console: Console
) -> int:
    """Print the newest alerts of the history as they stand now; return how many."""
    rows = _latest(settings, since_ns, asset, state, limit)
    console.rows(rows, _COLUMNS)
    return len(rows)


def label_alert(settings: Settings, alert: str, verdict: str, note: str, by: str | None, console: Console) -> None:
    """Add a person's word on an alert to the labels.

    Raises
    ------
    InputError : the history has no such alert.
    """
    from connectors.labels import Label, append_label

    found = _one(settings, alert)
    label = Label(
        verb="confirm" if verdict == "confirm" else "dismiss",
        feed=settings.feed.name,
        asset=found["asset"],
        start_ns=found["start_ns"],
        end_ns=found["end_ns"],
        alert_id=alert,
        who=by or getpass.getuser(),
        when_ns=time.time_ns(),
        note=note,
        model_id=found["model_id"],
    )
    append_label(Path(settings.labels.path), label)
    console.record({"alert": alert, "asset": label.asset, "said": verdict, "by": label.who})


def tail_alerts(settings: Settings, console: Console) -> None:
    """Print alerts as they are committed, until interrupted."""
    from connectors.alert_json import encode_alert
    from connectors.sinks import alert_line

    for alert in _kafka_tail(settings) if settings.source.type == "kafka" else _file_tail(settings):
        console.line(encode_alert(alert).decode() if console.as_json else alert_line(alert))


def _file_tail(settings: Settings) -> Iterator[Any]:
    """Yield what is committed from now on. Read anew each time: the commit file alone says what counts."""
    from connectors.file_commit import read_alerts

    folder = Path(settings.run.state)
    told = sum(1 for _ in read_alerts(folder)) if folder.exists() else 0
    while True:
        time.sleep(_TAIL_S)
        new = list(read_alerts(folder))[told:] if folder.exists() else []
        yield from new
        told += len(new)


def _kafka_tail(settings: Settings) -> Iterator[Any]:
    from connectors.alert_json import decode_alert
    from connectors.kafka_source import KafkaSource
    from jobs.build import kafka_client

    k = settings.kafka
    source = KafkaSource(kafka_client(settings), [k.alerts_topic], f"{k.group}-tail", start="latest")
    while True:
        for polled in source.poll(500, _TAIL_S):
            yield from (decode_alert(value) for value in polled.value if value is not None)


def _latest(
    settings: Settings, since_ns: int | None, asset: str | None, state: str | None, limit: int
) -> list[dict[str, Any]]:
    from connectors.history_views import open_history

    con = open_history(Path(settings.history.root), Path(settings.labels.path))
    found = con.execute(
        """
        SELECT a.id, a.state, a.severity, a.kind, a.asset, a.opened_ns, a.end_ns, a.peak_ratio, a.json, j.verb
        FROM alerts_latest a LEFT JOIN judgements j ON j.alert_id = a.id AND j.feed = a.feed
        WHERE a.feed = $feed AND a.ts_ns >= $since AND ($asset IS NULL OR a.asset = $asset)
            AND ($state IS NULL OR (a.state = 'resolved') = ($state = 'resolved'))
        ORDER BY a.opened_ns DESC, a.id LIMIT $most
        """,
        {
            "feed": settings.feed.name,
            "since": -(2**63) if since_ns is None else since_ns,
            "asset": asset,
            "state": state,
            "most": limit,
        },
    ).fetchall()
    return [_row(*record) for record in found]


def _row(
    alert: str, state: str, severity: str, kind: str, asset: str, opened_ns: int, end_ns: int | None, peak: float,
    body: str, said: str | None,
) -> dict[str, Any]:  # fmt: skip
    from connectors.alert_json import decode_alert

    top = decode_alert(body.encode()).top_channels[:2]
    return {
        "id": alert,
        "state": state,
        "severity": severity,
        "kind": kind,
        "asset": asset,
        "opened": utc(opened_ns),
        "ended": None if end_ns is None else utc(end_ns),
        "ratio": round(peak, 3),
        "channels": " ".join(f"{t.name} {t.share:.0%}" for t in top),
        "said": said or "",
    }


def _one(settings: Settings, alert: str) -> dict[str, Any]:
    from connectors.history_views import open_history

    con = open_history(Path(settings.history.root), Path(settings.labels.path))
    found = con.execute(
        "SELECT asset, start_ns, coalesce(end_ns, ts_ns), model_id FROM alerts_latest WHERE feed = ? AND id = ?",
        [settings.feed.name, alert],
    ).fetchone()
    if found is None:
        raise InputError(
            f"the history of feed {settings.feed.name!r} has no alert {alert!r}: see `midwatch alerts list`"
        )
    return dict(zip(("asset", "start_ns", "end_ns", "model_id"), found, strict=True))
