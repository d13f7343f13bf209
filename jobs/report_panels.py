"""From the history to the panels of a report: what an asset did around a fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.report import Panel, Span
from jobs.simulate import Fault
from pipeline.values import NS_PER_S, Alert

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from jobs.settings import Settings

_MARGIN_NS = 3600 * NS_PER_S


def panel_of(settings: Settings, fault: Fault, alert: Alert | None, start_ns: int) -> Panel:
    """Return the panel of one fault: an hour before it to an hour after, with the channels that were named."""
    from connectors.history_views import open_history, rows_of, scores_of

    begin, end = (start_ns + round(s * NS_PER_S) for s in (fault.start_s, fault.end_s))
    first, last = begin - _MARGIN_NS, end + _MARGIN_NS
    names = tuple(c.name for c in settings.feed.channels)
    con = open_history(Path(settings.history.root), Path(settings.labels.path))
    scores = scores_of(con, settings.feed.name, assets=[fault.asset], start_ns=first, end_ns=last)
    rows = rows_of(con, settings.feed.name, names, assets=[fault.asset], start_ns=first, end_ns=last)
    ts_ns = scores["ts_ns"].to_numpy()
    actual = np.stack([rows[n].to_numpy().astype(np.float32) for n in names], axis=1)
    at = np.searchsorted(rows["ts_ns"].to_numpy(), ts_ns).clip(0, len(actual) - 1)
    spans = [Span(begin, end, "fault"), *_alert_spans(con, settings.feed.name, fault, begin, end)]
    named = [t.name for t in alert.top_channels[:2]] if alert else [names[fault.channel]]
    return Panel(
        title=f"{fault.kind.replace('_', ' ')} on {fault.asset}",
        note=f"told as {fault.event}; channels named: {', '.join(named)}",
        ts_ns=ts_ns,
        ratio=_floats(scores["ratio"]),
        share=_matrix(scores["by_channel"], len(names)),
        actual=actual[at],
        expected=_matrix(scores["expected"], len(names)),
        channels=names,
        shown=tuple(names.index(n) for n in named),
        spans=tuple(spans),
    )


def _alert_spans(con: DuckDBPyConnection, feed: str, fault: Fault, begin: int, end: int) -> list[Span]:
    found = con.execute(
        "SELECT start_ns, coalesce(end_ns, ts_ns) FROM alerts_latest WHERE feed = ? AND asset = ? AND kind = ?"
        " AND opened_ns BETWEEN ? AND ?",
        [feed, fault.asset, fault.event, begin, end + _MARGIN_NS],
    ).fetchall()
    return [Span(start, stop, "alert") for start, stop in found]


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), np.float32)


def _matrix(column: pa.ChunkedArray, channels: int) -> np.ndarray:
    """Return a column of lists as (n, C); a missing list is a row of NaN."""
    out = np.full((len(column), channels), np.nan, np.float32)
    for i, value in enumerate(column.to_pylist()):
        if value is not None:
            out[i] = [np.nan if v is None else v for v in value]
    return out
