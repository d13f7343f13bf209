"""`midwatch evaluate`: how well the scores of the history agree with a file of labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import specs
from jobs.gather import gather
from models import evaluation
from models.series import Series
from pipeline.errors import InputError
from pipeline.gate import GateSpec
from pipeline.values import NS_PER_DAY, Float64

if TYPE_CHECKING:
    import duckdb

    from jobs.console import Console
    from jobs.settings import Settings

_COLUMNS = ("asset", "rows", "unscored", *evaluation.FIGURES)


def evaluate(settings: Settings, labels_file: Path, label_column: str, console: Console) -> evaluation.Report:
    """Hold the history's scores against labels, and print every asset's figures, their means, and those of all rows.

    Labels are read through the feed's own mapping and put on its grid, then joined by asset and time. A labelled row
    that the history has no score for never alerts and ranks last: it is counted, not skipped. The threshold is the one
    that held when each row was scored.

    Parameters
    ----------
    labels_file : CSV, NDJSON or Parquet with the feed's asset and time columns.
    label_column : 1 where a row is anomalous, else 0; rows without a value are not judged.

    Raises
    ------
    InputError : labels other than 0 and 1, or none of an asset that the history knows.
    SchemaError : the file has no such column; the message lists those that it has.
    """
    from connectors.history_views import open_history

    feed, first = settings.feed.name, specs.channels(settings)[0].name
    found = []
    with open_history(Path(settings.history.root), Path(settings.labels.path)) as con:
        known = {name for (name,) in con.execute("SELECT DISTINCT asset FROM scores WHERE feed = ?", [feed]).fetchall()}
        labelled = _labels(settings, labels_file, label_column)
        for one in labelled:
            if one.asset in known:
                found.append(_evaluate_one(con, settings, one, first))
            else:
                console.warn(f"asset {one.asset!r} has labels, but no score in the history: it is left out")
    if not found:
        names = ", ".join(repr(one.asset) for one in labelled[:5]) or "no asset"
        raise InputError(
            f"{labels_file} has labels of {names}, the history of feed {feed!r} has scores of none of them"
        )
    done = evaluation.report(found)
    if console.as_json:
        console.record(done.to_json())
        return done
    console.rows([e.to_json() for e in found] + [{"asset": "mean", **done.mean}], _COLUMNS)
    console.record({f"{name} of all rows": value for name, value in done.micro.items()})
    return done


def _labels(settings: Settings, path: Path, column: str) -> list[Series]:
    """Return the labels as series of one channel, on the feed's grid."""
    from connectors.file_source import FileSource, message_format

    feed = specs.field_mapping(settings, message_format(path))
    mapping = replace(feed, channels=(column,), fields=(), low=(), high=(), layout="wide", values="")
    source = FileSource(path, mapping)
    spec = replace(
        specs.chain_spec(settings, mapping.format),
        mapping=mapping,
        gate=GateSpec(stuck_frames=(0,), max_step=(np.inf,)),
        learned_stuck=(),
    )
    series = gather(source, spec).series
    source.close()
    return sorted((one for one in series if one.observed.any()), key=lambda one: one.asset)


def _evaluate_one(
    con: duckdb.DuckDBPyConnection, settings: Settings, labels: Series, first_channel: str
) -> evaluation.Evaluation:
    from connectors.history_views import rows_of, scores_of

    there = labels.observed[:, 0]
    ts_ns, label = labels.ts_ns[there], labels.x[there, 0]
    wanted = {"assets": [labels.asset], "start_ns": int(ts_ns[0]), "end_ns": int(ts_ns[-1]) + 1}
    scores = scores_of(con, settings.feed.name, **wanted)  # type: ignore[arg-type]
    scored_ns = scores["ts_ns"].to_numpy()
    kept = np.isin(scored_ns, ts_ns)
    of_row = np.searchsorted(ts_ns, scored_ns[kept])
    score: Float64 = np.full(len(ts_ns), np.nan)
    threshold: Float64 = np.full(len(ts_ns), np.inf)
    score[of_row] = scores["smoothed"].to_numpy()[kept]
    threshold[of_row] = scores["threshold"].to_numpy()[kept]
    readings = rows_of(con, settings.feed.name, [first_channel], **wanted)  # type: ignore[arg-type]
    order = np.argsort(readings["ts_ns"].to_numpy(), kind="stable")
    channel = readings[first_channel].to_numpy()[order]
    return evaluation.evaluate(
        labels.asset,
        score,
        label,
        np.where(np.isnan(threshold), np.inf, threshold),
        evaluation.acf_window(channel),
        NS_PER_DAY / specs.period_ns(settings),
    )
