"""The history as SQL: DuckDB views over the Parquet folders and the labels, read only.

| view | one record is |
| --- | --- |
| `rows` | a row as decoded: place in the log, asset, time, a column per channel (null: not observed), `quality` |
| `scores` | a verdict on a frame; `position` is an offset of the push that brought it |
| `alerts` | a published change of an alert, once; `position` as above, or (historian) its offset in the alerts topic |
| `alerts_latest` | the newest change of each alert |
| `labels` | a label, as it was given |
| `labels_latest` | the newest label of one person on one target; shelving stands apart |
| `judgements` | what people say about a target now: the newest `verb`, and whether they disagree (`conflict`) |
| `confirmed` | a stretch of time that was a real fault, by the newest word on it |

`ts` is the event time `ts_ns` as a UTC timestamp. `feed` comes from the folder names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from connectors.history_tables import datasets
from connectors.labels import labels_table, read_labels
from pipeline.errors import ConfigError, SchemaError

_LATEST = """
CREATE VIEW alerts_latest AS
    SELECT * FROM alerts QUALIFY row_number() OVER (PARTITION BY id ORDER BY seq DESC, position DESC) = 1;
CREATE VIEW labels_latest AS
    SELECT *, if(alert_id <> '', alert_id, format('{}/{}/{}', asset, start_ns, end_ns)) AS target FROM labels
    QUALIFY row_number() OVER (PARTITION BY feed, target, who, verb = 'shelve' ORDER BY position DESC) = 1;
CREATE VIEW judgements AS
    SELECT feed, target, any_value(alert_id) AS alert_id, any_value(asset) AS asset,
        arg_max(verb, position) AS verb, count(DISTINCT verb) > 1 AS conflict,
        list({who: who, verb: verb, note: note} ORDER BY position) AS said,
        min(start_ns) AS start_ns, max(end_ns) AS end_ns
    FROM labels_latest WHERE verb <> 'shelve' GROUP BY feed, target;
CREATE VIEW confirmed AS
    SELECT j.feed, j.asset, j.alert_id, j.conflict,
        least(j.start_ns, a.start_ns) AS start_ns,
        coalesce(a.end_ns, greatest(j.end_ns, a.ts_ns)) AS end_ns
    FROM judgements j LEFT JOIN alerts_latest a ON a.id = j.alert_id
    WHERE j.verb = 'confirm';
"""


def open_history(root: Path, labels: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection in memory with the views, that can reach nothing outside `root`.

    Files that appear later are seen by the next query, except in a folder that had none. A history without any file
    is one of empty views.

    Parameters
    ----------
    labels : the file of labels; None: `labels.ndjson` under the root. Read once, now.

    Raises
    ------
    ConfigError : the path of the root has characters that stand for a pattern.
    SchemaError : the file of labels is damaged.
    """
    path = root.resolve().as_posix()
    if set(path) & set("*?[]{}"):
        raise ConfigError("history.root", path, "must not contain any of * ? [ ] { }")
    con = duckdb.connect(":memory:")
    con.execute(f"SET allowed_directories = [{_text(path)}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET enable_progress_bar = false")  # it would be drawn into what a command prints
    for name, dataset in datasets(()).items():
        if any((root / name).glob("feed=*/date=*/*.parquet")):
            con.execute(_view(name, f"{path}/{name}/*/*/*.parquet"))
        else:
            empty = dataset.schema.append(pa.field("feed", pa.string())).append(pa.field("ts", pa.timestamp("ns")))
            con.register(name, empty.empty_table())
    con.register("labels", labels_table(read_labels(labels or root / "labels.ndjson")))
    con.execute(_LATEST)
    con.execute("SET lock_configuration = true")
    return con


def rows_of(
    con: duckdb.DuckDBPyConnection,
    feed: str,
    channels: Sequence[str],
    *,
    assets: Sequence[str] | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> pa.Table:
    """Return rows in log order, with a column for each channel; `start_ns` <= event time < `end_ns`.

    Raises
    ------
    SchemaError : the history has no such channel; the message lists those it has.
    """
    found = [name for name, *_ in con.execute("DESCRIBE rows").fetchall()]
    missing = [name for name in channels if name not in found]
    if missing and len(con.execute("SELECT 1 FROM rows WHERE feed = ? LIMIT 1", [feed]).fetchall()):
        raise SchemaError(f"the history has no channel {', '.join(missing)}, only {', '.join(found)}")
    columns = ["source", "partition", '"offset"', '"row"', "asset", "ts_ns"]
    columns += [f"CAST(NULL AS FLOAT) AS {_name(c)}" if c in missing else _name(c) for c in channels]
    select = f"SELECT {', '.join([*columns, 'quality'])} FROM rows"  # noqa: S608 - names are quoted
    return _selected(con, select, feed, assets, start_ns, end_ns)


def scores_of(
    con: duckdb.DuckDBPyConnection,
    feed: str,
    *,
    assets: Sequence[str] | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> pa.Table:
    """Return scores in log order; `start_ns` <= event time < `end_ns`."""
    return _selected(con, "SELECT * EXCLUDE (feed, ts) FROM scores", feed, assets, start_ns, end_ns)


def summary(con: duckdb.DuckDBPyConnection, feed: str) -> pa.Table:
    """Return one record per asset and day of event time: rows, frames, scored, breached, max_ratio, alerts opened."""
    return con.sql(
        """
        WITH r AS (SELECT asset, CAST(ts AS DATE) AS day, count(*) AS rows,
                          min(ts_ns) AS first_ns, max(ts_ns) AS last_ns
                   FROM rows WHERE feed = $feed GROUP BY ALL),
             s AS (SELECT asset, CAST(ts AS DATE) AS day, count(*) AS frames, count(ratio) AS scored,
                          CAST(count_if(breached) AS BIGINT) AS breached, max(ratio) AS max_ratio
                   FROM scores WHERE feed = $feed GROUP BY ALL),
             a AS (SELECT asset, CAST(ts AS DATE) AS day, count(*) AS alerts
                   FROM alerts WHERE feed = $feed AND state = 'open' GROUP BY ALL)
        SELECT asset, day, coalesce(rows, 0) AS rows, first_ns, last_ns, coalesce(frames, 0) AS frames,
            coalesce(scored, 0) AS scored, coalesce(breached, 0) AS breached, max_ratio, coalesce(alerts, 0) AS alerts
        FROM r FULL JOIN s USING (asset, day) FULL JOIN a USING (asset, day) ORDER BY asset, day
        """,
        params={"feed": feed},
    ).to_arrow_table()


def _selected(
    con: duckdb.DuckDBPyConnection,
    select: str,
    feed: str,
    assets: Sequence[str] | None,
    start_ns: int | None,
    end_ns: int | None,
) -> pa.Table:
    where = ["feed = $feed"]
    params: dict[str, object] = {"feed": feed}
    for clause, name, value in (
        ("list_contains($assets, asset)", "assets", None if assets is None else list(assets)),
        ("ts_ns >= $start_ns", "start_ns", start_ns),
        ("ts_ns < $end_ns", "end_ns", end_ns),
    ):
        if value is not None:
            where.append(clause)
            params[name] = value
    order = 'source, partition, "offset", "row"'
    return con.sql(f"{select} WHERE {' AND '.join(where)} ORDER BY {order}", params=params).to_arrow_table()


def _view(name: str, pattern: str) -> str:
    files = (
        f"read_parquet({_text(pattern)}, union_by_name = true, "
        "hive_partitioning = true, hive_types = {'feed': VARCHAR, 'date': VARCHAR})"
    )
    once = "QUALIFY row_number() OVER (PARTITION BY feed, id, seq ORDER BY position) = 1" if name == "alerts" else ""
    return f"CREATE VIEW {name} AS SELECT * EXCLUDE (date), make_timestamp_ns(ts_ns) AS ts FROM {files} {once}"  # noqa: S608


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
