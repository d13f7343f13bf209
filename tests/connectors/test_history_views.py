import duckdb
import pytest
from io_cases import SECOND, T0, a_push, an_alert

from connectors.history import ParquetHistory
from connectors.history_views import open_history, rows_of, scores_of, summary
from connectors.labels import Label, append_label
from pipeline.errors import ConfigError, SchemaError
from pipeline.values import NS_PER_DAY, Position

CHANNELS = ("temp", "vib.x", 'odd "name"')
ASSETS = ("a0", "a1")
VIEWS = ["rows", "scores", "alerts", "alerts_latest", "labels", "labels_latest", "judgements", "confirmed"]


def fill(root, feed="north", stop=40, alerts=(), first=0, offsets_per_file=16):
    history = ParquetHistory(root, feed, CHANNELS, offsets_per_file=offsets_per_file)
    rows, verdicts = a_push(range(first, stop))
    history.append("t", 0, ASSETS, [rows], [verdicts], alerts, (first, stop))
    history.close()


def label(root, verb, who, alert_id="x1", start_ns=T0, end_ns=T0 + 5 * SECOND, **changes):
    fields = {
        "feed": "north",
        "asset": "a0",
        "start_ns": start_ns,
        "end_ns": end_ns,
        "alert_id": alert_id,
        "when_ns": 0,
    }
    append_label(root / "labels.ndjson", Label(**{**fields, **changes}, verb=verb, who=who))


@pytest.mark.parametrize("view", VIEWS)
def test_an_empty_history_has_all_views_and_nothing_in_them(tmp_path, view):
    assert open_history(tmp_path / "nothing").sql(f"SELECT * FROM {view}").fetchall() == []


def test_an_empty_history_answers_every_question(tmp_path):
    con = open_history(tmp_path)
    assert rows_of(con, "north", CHANNELS).column_names[-4:] == [*CHANNELS, "quality"]
    assert len(scores_of(con, "north")) == 0
    assert len(summary(con, "north")) == 0


def test_rows_are_chosen_by_asset_and_event_time_and_come_in_log_order(tmp_path):
    fill(tmp_path)
    con = open_history(tmp_path)
    table = rows_of(con, "north", ["temp"], assets=["a1"], start_ns=T0 + 3 * SECOND, end_ns=T0 + 9 * SECOND)
    assert table["offset"].to_pylist() == [3, 5, 7]
    assert table["asset"].to_pylist() == ["a1"] * 3
    assert rows_of(con, "north", ["temp"])["offset"].to_pylist() == list(range(40))
    assert len(rows_of(con, "north", ["temp"], assets=[])) == 0
    assert scores_of(con, "north", assets=["a0"], end_ns=T0 + 4 * SECOND)["offset"].to_pylist() == [0, 2]


def test_feeds_are_kept_apart(tmp_path):
    fill(tmp_path, "north", 10)
    fill(tmp_path, "it's 100 %/south", 20)
    con = open_history(tmp_path)
    assert len(rows_of(con, "north", CHANNELS)) == 10
    assert len(rows_of(con, "it's 100 %/south", CHANNELS)) == 20


def test_a_channel_that_is_not_there_is_named_with_those_that_are(tmp_path):
    fill(tmp_path)
    with pytest.raises(SchemaError, match=r"no channel vib_y, only .*temp"):
        rows_of(open_history(tmp_path), "north", ["temp", "vib_y"])


def test_files_that_appear_later_are_seen_by_the_next_query(tmp_path):
    fill(tmp_path, stop=20)
    con = open_history(tmp_path)
    assert con.sql("SELECT count(*) FROM rows").fetchall() == [(20,)]
    fill(tmp_path, stop=33, first=20)
    assert con.sql("SELECT count(*) FROM rows").fetchall() == [(33,)]


def test_the_summary_counts_by_asset_and_day_of_event_time(tmp_path):
    day = T0 // NS_PER_DAY
    alert = an_alert(asset="a0", evidence=Position("t", 0, 5))
    fill(tmp_path, stop=12_000, alerts=[alert], offsets_per_file=5_000)
    records = summary(open_history(tmp_path), "north").to_pylist()
    assert [(r["asset"], r["day"].isoformat()) for r in records] == [
        (asset, date) for asset in ASSETS for date in ("2023-11-14", "2023-11-15")
    ]
    first_day = sum(1 for i in range(12_000) if (T0 + i * SECOND) // NS_PER_DAY == day)
    assert sum(r["rows"] for r in records[::2]) == first_day
    assert sum(r["rows"] for r in records) == sum(r["frames"] for r in records) == 12_000
    assert sum(r["scored"] for r in records) == 9_600
    assert [r["alerts"] for r in records] == [1, 0, 0, 0]


def test_the_newest_change_of_an_alert_counts(tmp_path):
    changes = [an_alert("x1", 0), an_alert("x1", 1, state="resolved", end_ns=T0), an_alert("x2", 0)]
    fill(tmp_path, alerts=changes)
    found = open_history(tmp_path).sql("SELECT id, seq, state FROM alerts_latest ORDER BY id").fetchall()
    assert found == [("x1", 1, "resolved"), ("x2", 0, "open")]


def test_a_person_may_think_again_and_others_may_disagree(tmp_path):
    label(tmp_path, "confirm", "mia")
    label(tmp_path, "dismiss", "mia")
    label(tmp_path, "shelve", "mia")
    judgement = "SELECT target, verb, conflict, len(said) FROM judgements"
    assert open_history(tmp_path).sql(judgement).fetchall() == [("x1", "dismiss", False, 1)]
    label(tmp_path, "confirm", "noor")
    assert open_history(tmp_path).sql(judgement).fetchall() == [("x1", "confirm", True, 2)]


def test_what_was_confirmed_is_the_stretch_of_the_alert_as_it_went_on(tmp_path):
    ended = an_alert("x1", 1, state="resolved", start_ns=T0 - SECOND, end_ns=T0 + 60 * SECOND, asset="a0")
    going_on = an_alert("x2", 0, start_ns=T0, ts_ns=T0 + 9 * SECOND, asset="a1")
    fill(tmp_path, alerts=[ended, going_on])
    label(tmp_path, "confirm", "mia", "x1", start_ns=T0, end_ns=None)
    label(tmp_path, "confirm", "mia", "x2", start_ns=T0, end_ns=None, asset="a1")
    label(tmp_path, "confirm", "mia", "", start_ns=T0 + 100, end_ns=T0 + 200)
    label(tmp_path, "known_event", "mia", "", start_ns=T0 + 300, end_ns=T0 + 400)
    found = open_history(tmp_path).sql("SELECT asset, alert_id, start_ns, end_ns FROM confirmed ORDER BY end_ns")
    assert found.fetchall() == [
        ("a0", "", T0 + 100, T0 + 200),
        ("a1", "x2", T0, T0 + 9 * SECOND),
        ("a0", "x1", T0 - SECOND, T0 + 60 * SECOND),
    ]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO 'must_not_write.csv'",
        "ATTACH 'must_not_write.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
    ],
)
def test_a_query_reaches_nothing_outside_the_history(tmp_path, query):
    fill(tmp_path)
    with pytest.raises(duckdb.Error, match=r"(?i)cannot|disabled|locked"):
        open_history(tmp_path).execute(query)


def test_a_root_with_quotes_and_blanks_is_read_and_one_with_a_pattern_is_refused(tmp_path):
    fill(tmp_path / "it's here")
    assert len(rows_of(open_history(tmp_path / "it's here"), "north", CHANNELS)) == 40
    with pytest.raises(ConfigError, match=r"history\.root"):
        open_history(tmp_path / "what*")


def test_a_slow_query_draws_no_progress_bar_into_what_a_command_prints(tmp_path):
    con = open_history(tmp_path)
    assert con.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)
