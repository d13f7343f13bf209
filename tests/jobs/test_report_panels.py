import numpy as np
import pytest
from io_cases import SECOND, T0, a_push, an_alert

from connectors.history import ParquetHistory
from jobs.report import Span, render
from jobs.report_panels import panel_of
from jobs.settings import load
from jobs.simulate import Fault, asset_name
from pipeline.values import TopChannel

CHANNELS, ROWS = ("flow", "head", "heat"), 12_000
HOUR = 3600
FAULT = Fault("leak", 0, 5000.0, 5600.0, 2)


@pytest.fixture
def settings(tmp_path):
    """A history of two pumps, a row a second in turn, with an alert about the first one's fault and two others."""
    history = ParquetHistory(tmp_path / "history", "pumps", CHANNELS)
    rows, verdicts = a_push(range(ROWS))
    told = {"asset": asset_name(0), "kind": "anomaly", "feed": "pumps"}
    alerts = [
        an_alert("a1", **told, opened_ns=T0 + 5010 * SECOND, start_ns=T0 + 5002 * SECOND),
        an_alert(
            "a1", 1, **told, opened_ns=T0 + 5010 * SECOND, start_ns=T0 + 5002 * SECOND,
            state="resolved", end_ns=T0 + 5700 * SECOND,
        ),
        an_alert("a2", **told | {"asset": asset_name(1)}, opened_ns=T0 + 5010 * SECOND),
        an_alert("a3", **told | {"kind": "stuck"}, opened_ns=T0 + 5010 * SECOND),
    ]  # fmt: skip
    history.append("t", 0, [asset_name(0), asset_name(1)], [rows], [verdicts], alerts, (0, ROWS))
    history.close()
    flags = {"history.root": str(tmp_path / "history"), "labels.path": str(tmp_path / "labels.ndjson")}
    return load(None, {"feed.name": "pumps", "feed.channels": list(CHANNELS), **flags}, environ={}).settings


def test_a_panel_is_of_one_asset_from_an_hour_before_its_fault_to_an_hour_after(settings):
    rows, verdicts = a_push(range(5000 - HOUR, 5600 + HOUR))
    mine = rows.asset == 0
    panel = panel_of(settings, FAULT, None, T0)
    assert panel.ts_ns.tolist() == rows.ts_ns[mine].tolist()
    np.testing.assert_array_equal(panel.ratio, verdicts.ratio[mine])
    np.testing.assert_array_equal(panel.share, verdicts.scores.by_channel[mine])
    np.testing.assert_array_equal(panel.expected, verdicts.scores.expected[mine])
    np.testing.assert_array_equal(panel.actual, np.where(rows.observed, rows.x, np.nan)[mine])
    assert np.isnan(panel.ratio).any()
    assert np.isnan(panel.actual).any()


def test_it_marks_the_fault_and_the_alerts_that_tell_of_it_and_no_other(settings):
    assert panel_of(settings, FAULT, None, T0).spans == (
        Span(T0 + 5000 * SECOND, T0 + 5600 * SECOND, "fault"),
        Span(T0 + 5002 * SECOND, T0 + 5700 * SECOND, "alert"),
    )


def test_it_shows_the_channels_that_the_alert_names_or_the_one_that_was_broken(settings):
    named = an_alert(top_channels=tuple(TopChannel(n, 0.3, 1.0, 2.0) for n in ("heat", "flow", "head")))
    assert panel_of(settings, FAULT, named, T0).shown == (2, 0)
    silent = panel_of(settings, FAULT, None, T0)
    assert silent.shown == (2,)
    assert silent.note == "told as anomaly; channels named: heat"
    assert render("", "", (), (), [silent]).count("<svg") == 3
