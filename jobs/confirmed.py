"""The history -> one series an asset, with its confirmed-normal rows marked and every other row counted by its reason.

Rows go through the same alignment and gate as the live watch, log by log. What people and alerts said comes from the
same folder; the wall clock says nothing, so that old data train as well as new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.config import specs
from jobs.gather import Gathered, gathered, merge
from models.judging import Stretch
from models.selection import AlertInterval, Label, Reason, Selection, Verb, select_normal
from models.series import Series
from pipeline.align import align
from pipeline.chain import front_columns
from pipeline.errors import TooLittleHistory
from pipeline.gate import gate
from pipeline.state import AssetTable
from pipeline.values import NS_PER_DAY, NS_PER_S, Bool, Int64

if TYPE_CHECKING:
    import duckdb

    from jobs.settings import Settings

_ANOMALY = "anomaly"


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What the history holds up to `as_of_ns`: series with their normal rows marked, and what was left out and why."""

    series: tuple[Series, ...]
    faults: tuple[Stretch, ...]  # that operators confirmed
    as_of_ns: int
    rows: int  # as decoded
    late: int
    left_out: Mapping[str, int]  # aligned rows by reason, all assets together
    taken_back: int  # rows that only a dismissal let in
    conflicts: int  # targets that people disagree about
    unmatched: int  # labels about alerts that the history does not have

    @property
    def normal(self) -> int:
        """How many rows may be learned from."""
        return sum(int(one.normal.sum()) for one in self.series)

    def told(self) -> dict[str, Any]:
        """Return this as JSON values, for a manifest or a record."""
        return {
            "source": "history",
            "as_of_ns": self.as_of_ns,
            "rows": self.rows,
            "late": self.late,
            "normal": self.normal,
            "left_out": dict(self.left_out),
            "taken_back": self.taken_back,
            "conflicts": self.conflicts,
            "unmatched_labels": self.unmatched,
        }


def read_confirmed(settings: Settings, as_of_ns: int | None, days: float) -> Confirmed:
    """Read the last `days` of the history, and select what may be learned from.

    Parameters
    ----------
    as_of_ns : rows from then on are not read; None: the end of the history.

    Raises
    ------
    TooLittleHistory : the history holds no row of this feed in that time.
    SchemaError : it has other channels, or the file of labels is damaged.
    InputError : two logs of the history hold rows of the same asset that overlap in time.
    """
    from connectors.history_views import open_history

    with open_history(Path(settings.history.root), Path(settings.labels.path)) as con:
        end_ns = _newest(con, settings.feed.name) + 1 if as_of_ns is None else as_of_ns
        found = _read_rows(con, settings, end_ns - round(days * NS_PER_DAY), end_ns)
        alerts, sensor_faults = _read_alerts(con, settings.feed.name)
        faults = _read_faults(con, settings.feed.name)
    labels = _read_labels(settings)
    chosen = [
        _select(one, bad, alerts, sensor_faults, labels, settings)
        for one, bad in zip(found.series, found.faulty, strict=True)
    ]
    reasons: Counter[Reason] = Counter()
    for one in chosen:
        reasons.update(one.counts)
    return Confirmed(
        series=tuple(replace(s, normal=c.mask) for s, c in zip(found.series, chosen, strict=True)),
        faults=faults,
        as_of_ns=end_ns,
        rows=found.rows,
        late=found.late,
        left_out={r.name.lower(): reasons[r] for r in Reason if r != Reason.SELECTED and reasons[r]},
        taken_back=sum(c.taken_back for c in chosen),
        conflicts=sum(len(c.conflicts) for c in chosen),
        unmatched=len({label for c in chosen for label in c.unmatched}),
    )


def _newest(con: duckdb.DuckDBPyConnection, feed: str) -> int:
    found = con.execute("SELECT max(ts_ns) FROM rows WHERE feed = ?", [feed]).fetchone()
    if found is None or found[0] is None:
        raise TooLittleHistory(0, 1, f"rows of feed {feed!r} in the history")
    return int(found[0])


def _read_rows(con: duckdb.DuckDBPyConnection, settings: Settings, start_ns: int, end_ns: int) -> Gathered:
    """Read rows in log order; align and gate each log as it was live, from its first row in that time on."""
    from connectors.history_tables import as_rows
    from connectors.history_views import rows_of

    spec = specs.chain_spec(settings)
    names = spec.mapping.channels
    table = rows_of(con, settings.feed.name, names, start_ns=start_ns, end_ns=end_ns)
    if not len(table):
        raise TooLittleHistory(0, 1, f"rows of feed {settings.feed.name!r} in that part of the history")
    source = table["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    partition = table["partition"].to_numpy()
    starts = np.flatnonzero(np.diff(source, prepend=-1) | np.diff(partition, prepend=-1))
    stops = [*starts[1:].tolist(), len(table)]
    parts = []
    for start, stop in zip(starts.tolist(), stops, strict=True):
        part = table.slice(start, stop - start)
        assets = AssetTable(front_columns(spec), spec.max_assets)
        codes = {name: assets.code(name) for name in part["asset"].unique().to_pylist()}
        aligned = align(as_rows(part, names, codes, int(partition[start])), assets, spec.align)
        framed = gate(aligned.rows, assets, spec.gate)
        parts.append(gathered(assets.names, [framed], rows=len(part), late=len(aligned.late)))
    return merge(parts)


def _read_alerts(con: duckdb.DuckDBPyConnection, feed: str) -> tuple[list[AlertInterval], list[AlertInterval]]:
    """Return alerts as they stand: anomalies, and sensor faults."""
    found = con.execute(
        "SELECT kind, id, asset, start_ns, end_ns FROM alerts_latest WHERE feed = ? ORDER BY start_ns, id", [feed]
    ).fetchall()
    both: tuple[list[AlertInterval], list[AlertInterval]] = ([], [])
    for kind, *rest in found:
        both[kind != _ANOMALY].append(AlertInterval(*rest))
    return both


def _read_faults(con: duckdb.DuckDBPyConnection, feed: str) -> tuple[Stretch, ...]:
    found = con.execute(
        "SELECT asset, start_ns, end_ns FROM confirmed WHERE feed = ? AND NOT conflict ORDER BY asset, start_ns", [feed]
    ).fetchall()
    return tuple(Stretch(*one) for one in found)


def _read_labels(settings: Settings) -> list[Label]:
    """Return what people said, as selection understands it; what only hides an alert says nothing about its rows."""
    from connectors.labels import read_labels

    out = []
    for said in read_labels(Path(settings.labels.path)):
        if said.feed != settings.feed.name or said.verb == "shelve":
            continue
        verb = Verb(said.verb)
        if said.alert_id:
            out.append(Label(verb, said.who, said.when_ns, alert_id=said.alert_id))
        else:
            stretch = {"asset": said.asset, "start_ns": said.start_ns, "end_ns": said.end_ns}
            out.append(Label(verb, said.who, said.when_ns, **stretch))  # type: ignore[arg-type]
    return out


def _select(
    series: Series,
    faulty: Bool,
    alerts: Sequence[AlertInterval],
    sensor_faults: Sequence[AlertInterval],
    labels: Sequence[Label],
    settings: Settings,
) -> Selection:
    own = [a for a in sensor_faults if a.asset == series.asset]
    return select_normal(
        series.ts_ns,
        series.asset,
        alerts,
        labels,
        faulty | _during(series.ts_ns, own),
        round(settings.train.guard_s * NS_PER_S),
        dismissed_share=settings.train.dismissed_share,
    )


def _during(ts_ns: Int64, alerts: Sequence[AlertInterval]) -> Bool:
    """Return (n,), True in the time of any of the alerts: what the gate masked live, by limits the bundle knew."""
    out = np.zeros(len(ts_ns), np.bool_)
    for alert in alerts:
        stop = len(ts_ns) if alert.end_ns is None else int(np.searchsorted(ts_ns, alert.end_ns))
        out[int(np.searchsorted(ts_ns, alert.start_ns)) : stop] = True
    return out
