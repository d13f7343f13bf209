"""`midwatch init`: write a configuration file, guessed from a sample of the readings."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    from jobs.console import Console

_HEAD_ROWS = 5000
_HEAD_BYTES = 1 << 20
_TIME_NAMES = ("ts", "timestamp", "time", "datetime", "date", "ts_ns", "ts_ms", "event_time", "t")
_ASSET_NAMES = ("asset", "entity", "machine", "device", "unit", "pump", "id", "name")
_NOT_CHANNELS = ("label", "labels", "anomaly", "is_anomaly", "changepoint", "target")


class Guess(NamedTuple):
    """What a sample's columns seem to be."""

    asset: str  # "": no column names the asset
    time: str
    time_unit: str
    channels: tuple[str, ...]
    period_s: float


def init(sample: Path | None, source: str, out: Path, force: bool, console: Console) -> None:
    """Write `out`.

    Raises
    ------
    ConfigError : `out` is there already.
    SchemaError : the sample has no column that could be the time, or none that could be a channel.
    """
    if out.exists() and not force:
        raise ConfigError("--out", str(out), "is there already: choose another name, or overwrite it with --force")
    guess = Guess("asset", "ts", "ms", (), 1.0) if sample is None else guess_columns(_head(sample))
    out.write_text(_toml(guess, source, sample))
    console.say(f"wrote {out}: check it, then `midwatch config check` and `midwatch doctor`")
    console.record({"file": str(out), **guess._asdict()})


def guess_columns(table: pa.Table) -> Guess:
    """Return what the columns seem to be, by type first, by name second."""
    kinds = {f.name: f.type for f in table.schema}
    time = _first(kinds, _TIME_NAMES, lambda n: pa.types.is_temporal(kinds[n]) or n.lower() in _TIME_NAMES)
    if time is None:
        raise SchemaError(
            f"no column looks like a time; found {', '.join(kinds)}: name one of {', '.join(_TIME_NAMES)}"
        )
    asset = _first(kinds, _ASSET_NAMES, lambda n: n != time and _is_text(kinds[n])) or ""
    channels = tuple(
        n
        for n, t in kinds.items()
        if n not in (time, asset)
        and n.lower() not in _NOT_CHANNELS
        and (pa.types.is_floating(t) or pa.types.is_integer(t))
    )
    if not channels:
        raise SchemaError(f"no column looks like a channel: numbers are needed; found {', '.join(kinds)}")
    unit, ns = _time(table[time])
    return Guess(asset, time, unit, channels, _period_s(ns, table[asset] if asset else None))


def _first(kinds: dict[str, Any], names: tuple[str, ...], fits: Any) -> str | None:
    found = [n for n in kinds if fits(n)]
    by_name = [n for n in found if n.lower() in names]
    return next(iter(by_name or found), None)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _time(column: pa.ChunkedArray) -> tuple[str, np.ndarray]:
    """Return the unit of a time column and its values in ns."""
    if _is_text(column.type):
        column = pc.cast(pc.utf8_replace_slice(column, 19, 99, ""), pa.timestamp("s"))
        return "iso", column.cast(pa.timestamp("ns")).to_numpy().astype(np.int64)
    if pa.types.is_temporal(column.type):
        return "ns", column.cast(pa.timestamp("ns")).to_numpy().astype(np.int64)
    values = column.to_numpy().astype(np.float64)
    size = float(np.median(np.abs(values)))
    unit, factor = next(u for u in _UNITS if size >= u[0])[1:]
    return unit, (values * factor).astype(np.int64)


# Since 1970, today is 1.8e9 s; smaller numbers are steps, taken as seconds.
_UNITS = ((1e17, "ns", 1.0), (1e14, "us", 1e3), (1e11, "ms", 1e6), (-1.0, "s", 1e9))


def _period_s(ns: np.ndarray, asset: pa.ChunkedArray | None) -> float:
    if asset is not None:
        ns = ns[pc.equal(asset, asset[0]).to_numpy()]
    steps = np.diff(np.sort(ns))
    steps = steps[steps > 0]
    return float(np.median(steps) / 1e9) if len(steps) else 1.0


def _head(sample: Path) -> pa.Table:
    if sample.suffix == ".parquet":
        return pa.Table.from_batches([next(pq.ParquetFile(sample).iter_batches(_HEAD_ROWS))])
    with sample.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    head = head[: head.rfind(b"\n") + 1] or head
    try:
        if sample.suffix in (".ndjson", ".jsonl", ".json"):
            return pyarrow.json.read_json(io.BytesIO(head))
        return pyarrow.csv.read_csv(io.BytesIO(head))
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{sample} cannot be read as {sample.suffix or 'CSV'}: {error}") from None


def _toml(guess: Guess, source: str, sample: Path | None) -> str:
    channels = ",\n  ".join(json.dumps(c) for c in guess.channels)
    asset = f"asset = {json.dumps(guess.asset)}" if guess.asset else 'asset = ""\nasset_value = "asset-1"'
    path = json.dumps(str(sample)) if sample is not None and source == "file" else '""'
    return f"""# What is watched, and how. `midwatch config show` prints every option, `config schema` describes them.

[feed]
name = "feed"
period_s = {guess.period_s:g}  # s between two rows of an asset
channels = [
  {channels or '# "flow", "pressure"'}
]

[mapping]
{asset}
time = {json.dumps(guess.time)}
time_unit = "{guess.time_unit}"

[source]
type = "{source}"
path = {path}

# [kafka]
# bootstrap = ["127.0.0.1:9092"]
# topic = "readings"
"""
