import json

import numpy as np
import pump_fleet as pumps
import pytest

from connectors.history import ParquetHistory
from jobs.console import Console
from jobs.evaluate import evaluate
from jobs.simulate import CHANNELS, asset_name
from models import evaluation
from pipeline.errors import InputError, SchemaError
from pipeline.values import Scores, Verdicts

ROWS = 400


@pytest.fixture
def scored(tmp_path):
    """A history of known scores: no score in the first 10 rows, high ones in rows 100 to 119 of pump 1."""
    made = pumps.fleet()
    rows = pumps.rows_of(made.x[:, :ROWS], made.ts_ns[:ROWS])
    rng = np.random.default_rng(0)
    smoothed = rng.uniform(0, 1, len(rows)).astype(np.float32)
    step = np.arange(len(rows)) // pumps.PUMPS
    smoothed[(rows.asset == 0) & (step >= 100) & (step < 120)] += 3
    smoothed[step < 10] = np.nan
    threshold = np.full(len(rows), 2, np.float32)
    nothing = np.zeros((len(rows), 12), np.float32)
    scores = Scores(
        0, rows.asset, rows.ts_ns, rows.offset, rows.row, rows.continuity, smoothed, nothing, nothing, nothing,
        np.ones(len(rows), np.float32), np.full(len(rows), 2, np.uint8), "b" + 12 * "0",
    )  # fmt: skip
    verdicts = Verdicts(scores, smoothed, smoothed / threshold, smoothed / threshold, smoothed > threshold, threshold)
    history = ParquetHistory(tmp_path / "history", "pumps", CHANNELS)
    names = [asset_name(p) for p in range(pumps.PUMPS)]
    history.append("readings", 0, names, [rows], [verdicts], [], (0, len(rows)))
    history.close()
    return smoothed.reshape(ROWS, pumps.PUMPS)


def labels(path, first=100, stop=130, rows=ROWS + 1, column="label", pumps_=(0, 1, 2)):
    """Labels of one row more than are judged: the last frame is not complete."""
    step = np.repeat(np.arange(rows), len(pumps_))
    pump = np.tile(pumps_, rows)
    label = ((step >= first) & (step < stop) & (pump == 0)).astype(np.int8)
    return pumps.write_parquet(path, rows=rows, pumps=pumps_, **{column: label}), label


def test_figures_are_those_of_the_history_and_the_labels_joined(tmp_path, scored, capsys):
    path, _ = labels(tmp_path / "labels.parquet")
    report = evaluate(pumps.settings(tmp_path), path, "label", Console(as_json=True))
    one = report.assets[0]
    truth = (np.arange(ROWS) >= 100) & (np.arange(ROWS) < 130)
    window = evaluation.acf_window(pumps.fleet().x[0, :ROWS, 0])
    assert one == evaluation.evaluate("pump-01", scored[:, 0].astype(float), truth, 2.0, window, 1440.0)
    assert one.confusion == evaluation.Confusion(tp=20, fp=0, fn=10, tn=ROWS - 30)
    assert one.unscored == 10
    assert json.loads(capsys.readouterr().out)["mean"]["event_recall"] == 1.0


def test_labelled_rows_without_a_score_are_missed_not_skipped(tmp_path, scored):
    path, _ = labels(tmp_path / "labels.parquet", first=0, stop=10, rows=ROWS + 21)
    one = evaluate(pumps.settings(tmp_path), path, "label", Console(quiet=True)).assets[0]
    assert one.rows == ROWS + 20
    assert one.mar == 1.0
    assert one.unscored == 30


def test_an_asset_that_the_history_does_not_know_is_told(tmp_path, scored):
    made = pumps.fleet().ts_ns[:50]
    path = tmp_path / "labels.csv"
    lines = [f"{name},{ts},0" for ts in made for name in ("pump-01", "pump-99")]
    path.write_text("\n".join(["asset,ts,label", *lines]) + "\n")
    console = pumps.Recorder()
    report = evaluate(pumps.settings(tmp_path), path, "label", console)
    assert [e.asset for e in report.assets] == ["pump-01"]
    assert "pump-99" in console.warnings[0]
    path.write_text("asset,ts,label\n" + "".join(f"pump-99,{ts},0\n" for ts in made))
    with pytest.raises(InputError, match="pump-99"):
        evaluate(pumps.settings(tmp_path), path, "label", console)


def test_a_missing_label_column_lists_those_there_are(tmp_path, scored):
    path, _ = labels(tmp_path / "labels.parquet", column="fault")
    with pytest.raises(SchemaError, match="fault"):
        evaluate(pumps.settings(tmp_path), path, "label", Console(quiet=True))


def test_a_table_for_people_has_a_row_for_the_mean(tmp_path, scored, capsys):
    path, _ = labels(tmp_path / "labels.parquet")
    evaluate(pumps.settings(tmp_path), path, "label", Console())
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("asset")
    assert any(line.startswith("mean") for line in out.splitlines())
