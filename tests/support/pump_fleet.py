"""A small simulated fleet as settings, files and a history: what the nightly jobs are tested on."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.history import ParquetHistory
from jobs.console import Console
from jobs.settings import alone
from jobs.simulate import CHANNELS, asset_name, simulate
from pipeline.values import NS_PER_S, Alert, Position, Quality, Rows

PUMPS, ROWS, PERIOD_S = 3, 6000, 60.0
START_NS = 1_780_000_020 * NS_PER_S


@functools.cache
def fleet(rows=ROWS, seed=5):
    return simulate(PUMPS, rows, PERIOD_S, START_NS, seed)


def settings(folder: Path, **flags):
    """The recipe, made small: a few steps of a small network, one group."""
    flags = {
        "feed.name": "pumps",
        "feed.channels": list(CHANNELS),
        "feed.period_s": PERIOD_S,
        "mapping.time_unit": "ns",
        "history.root": str(folder / "history"),
        "registry.root": str(folder / "models"),
        "labels.path": str(folder / "labels.ndjson"),
        "run.state": str(folder / "state"),
        "run.device": "cpu",
        "smoother.memory": 32,
        "smoother.span_s": 43_200,
        "train.per_group": "fleet",
        "train.pca_window": 16,
        "train.dense_window": 8,
        "train.dense_hidden": [32],
        "train.dense_latent": 6,
        "train.steps": 80,
        "train.guard_s": 600,
        **flags,
    }
    return alone(flags)


def write_parquet(path: Path, x=None, first=0, rows=ROWS, pumps=range(PUMPS), **columns):
    """Write rows `first` to `rows` of some pumps, in time order."""
    made = fleet(max(rows, ROWS))
    x = made.x if x is None else x
    n = rows - first
    table = {"ts": np.repeat(made.ts_ns[first:rows], len(pumps)), "asset": np.tile([asset_name(p) for p in pumps], n)}
    for c, name in enumerate(CHANNELS):
        table[name] = np.ascontiguousarray(x[list(pumps), first:rows, c].T).reshape(-1)
    pq.write_table(pa.table({**table, **columns}), path)
    return path


def rows_of(x, ts_ns):
    """Rows of all pumps in time order, as decoded."""
    pumps, n, channels = x.shape
    return Rows(
        partition=0,
        asset=np.tile(np.arange(pumps, dtype=np.int32), n),
        ts_ns=np.repeat(ts_ns, pumps),
        x=np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(-1, channels).astype(np.float32),
        observed=np.ones((n * pumps, channels), np.bool_),
        quality=np.full((n * pumps, channels), Quality.OK, np.uint8),
        offset=np.arange(n * pumps, dtype=np.int64),
        row=np.zeros(n * pumps, np.int32),
        continuity=np.zeros(n * pumps, np.uint8),
    )


def write_history(folder: Path, x=None, alerts=(), rows=ROWS, **options):
    """Write a history as the watch would have, of one partition."""
    made = fleet()
    x = made.x[:, :rows] if x is None else x
    history = ParquetHistory(folder / "history", "pumps", CHANNELS, **options)
    names = [asset_name(p) for p in range(x.shape[0])]
    one = rows_of(x, made.ts_ns[: x.shape[1]])
    history.append("readings", 0, names, [one], [], list(alerts), (0, len(one)))
    history.close()


def alert(name, asset, start, end, kind="anomaly"):
    """An alert over rows [start, end) of an asset; an end of None: still open."""
    ns = lambda row: START_NS + round(row * PERIOD_S) * NS_PER_S  # noqa: E731
    return Alert(
        id=name, seq=2, feed="pumps", asset=asset, kind=kind, state="open" if end is None else "resolved",
        reason="", severity="warning", ts_ns=ns(start if end is None else end), opened_ns=ns(start),
        start_ns=ns(start), onset_ns=ns(start), end_ns=None if end is None else ns(end), ratio=1.5, peak_ratio=2.0,
        threshold=1.0, coverage=1.0, top_channels=(), model_id="b" + 12 * "0", config_id="cfg",
        evidence=Position("readings", 0, start * PUMPS),
    )  # fmt: skip


def replace_alert(asset, kind, opened_ns):
    return replace(alert("a", asset, 0, None, kind), opened_ns=opened_ns, start_ns=opened_ns, onset_ns=opened_ns)


class Recorder(Console):
    """A console that keeps the records and warnings it is given."""

    def __init__(self):
        super().__init__(as_json=True, quiet=True)
        object.__setattr__(self, "records", [])
        object.__setattr__(self, "warnings", [])

    def record(self, record):
        self.records.append(dict(record))

    def warn(self, text):
        self.warnings.append(text)
