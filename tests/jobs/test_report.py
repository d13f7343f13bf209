"""The report as a browser reads it: what is in it, and that it needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from jobs.report import Panel, Span, render
from pipeline.values import NS_PER_S

ROWS, CHANNELS = 1000, ("flow", "head", "heat")
TS_NS = (1_790_000_000 + np.arange(ROWS)) * NS_PER_S
SECOND_HALF = np.arange(ROWS) >= ROWS // 2
ODD = """<script>alert("x")</script> & 'so on'"""
VOID = {"meta", "rect", "path"}


class Page(HTMLParser):
    """Every element in order as (tag, attributes), every plot as those within it, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.plots, self.text, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        found = (tag, dict(attrs))
        self.elements.append(found)
        if tag == "svg":
            self.plots.append([])
        elif "svg" in self._open:
            self.plots[-1].append(found)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def panel(**changes):
    """Half a score of 0.5, then one of 2 that the second channel makes; it was expected at 10, and came as 0."""
    share = np.zeros((ROWS, 3), np.float32)
    share[:, 1] = 1
    made = Panel(
        title="leak on pump-01",
        note="told as anomaly",
        ts_ns=TS_NS,
        ratio=np.where(SECOND_HALF, 2, 0.5).astype(np.float32),
        share=share * SECOND_HALF[:, None],
        actual=np.zeros((ROWS, 3), np.float32),
        expected=np.full((ROWS, 3), 10, np.float32),
        channels=CHANNELS,
        shown=(1, 2),
        spans=(Span(int(TS_NS[500]), int(TS_NS[749]), "alert"), Span(int(TS_NS[500]), int(TS_NS[-1]), "fault")),
    )
    return replace(made, **changes)


def report(*panels, **changes):
    given = {"title": "a demo", "lead": "what came", "header": ("fault", "delay"), "rows": [("leak", "3 s")]}
    return render(**given | changes, panels=panels)


def line(plot, css):
    """Return a line of a plot: (n, 2) of x and y, y growing downwards."""
    (path,) = (attributes["d"] for tag, attributes in plot if attributes.get("class") == f"line {css}")
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path)[1:]]), path


def test_a_report_loads_nothing_from_anywhere():
    text = report(panel())
    page = Page(text)
    assert {name for _, attributes in page.elements for name in attributes} & {"src", "href", "xlink:href"} == set()
    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "use", "image"} == set()
    assert re.findall(r"https?:|//|url\(|@import|@font-face", text) == []


def test_a_panel_has_a_plot_of_the_score_one_for_each_channel_shown_and_a_heat_map():
    page = Page(report(panel(), panel(shown=())))
    assert len(page.plots) == (1 + 2 + 1) + (1 + 1)
    assert page.text.count("score / threshold") == 2
    assert page.text.count("leak on pump-01") == 2


def test_the_score_is_drawn_against_its_threshold():
    score = Page(report(panel())).plots[0]
    at, _ = line(score, "actual")
    threshold, _ = line(score, "threshold")
    (level,) = set(threshold[:, 1])
    half = at[:, 0].mean()
    assert set(at[at[:, 0] < half - 3, 1] > level) == {True}
    assert set(at[at[:, 0] > half + 3, 1] < level) == {True}


def test_what_was_expected_is_drawn_beside_what_was_measured():
    page = Page(report(panel()))
    for plot in page.plots[1:3]:
        (expected,), (actual,) = (set(line(plot, css)[0][:, 1]) for css in ("expected", "actual"))
        assert expected < actual, "10 lies above 0"


def first(rows, actual):
    """Return a panel of the first rows only, without marks."""
    none = np.zeros((rows, 3), np.float32)
    return panel(ts_ns=TS_NS[:rows], ratio=none[:, 0], share=none, actual=actual, expected=none, spans=())


@pytest.mark.parametrize("rows", [ROWS, 60])
@pytest.mark.parametrize("spike", [7, -7])
def test_a_line_shows_a_single_spike_however_many_rows_it_stands_for(rows, spike):
    actual = np.zeros((rows, 3), np.float32)
    actual[rows // 2, 1] = spike
    at, _ = line(Page(report(first(rows, actual))).plots[1], "actual")
    assert np.ptp(at[:, 1]) > 100, "it is as high as the plot"
    assert len(at) <= 421


def test_a_single_row_is_a_report_too():
    page = Page(report(first(1, np.ones((1, 3), np.float32))))
    assert len(line(page.plots[1], "actual")[0]) == 1


def test_a_gap_breaks_the_line_and_nothing_but_gaps_is_no_line():
    actual = np.zeros((ROWS, 3), np.float32)
    actual[300:400, 1] = np.nan
    actual[:, 2] = np.nan
    plots = Page(report(panel(actual=actual))).plots
    assert [line(plots[1], css)[1].count("M") for css in ("actual", "expected")] == [2, 1]
    assert len(line(plots[2], "actual")[0]) == 0


def test_the_heat_map_is_dark_where_a_channel_makes_a_high_score():
    share = panel().share.copy()
    share[::2] = np.nan
    for made in (panel(), panel(share=share)):
        plot = Page(report(made)).plots[-1]
        cells = [attributes for _, attributes in plot if attributes.get("class") == "cell"]
        (row,) = {float(cell["y"]) for cell in cells}
        flow, head, heat = (float(attributes["y"]) for tag, attributes in plot if tag == "text")
        assert flow < row < head < row + 13 < heat
        assert {cell["opacity"] for cell in cells} == {"1.00"}
        x = [float(cell["x"]) for cell in cells]
        assert len(x) > 200
        assert min(x) > 120 + (960 - 120 - 12) / 2 - 3


def test_alerts_and_faults_are_marked_where_they_were():
    score = Page(report(panel())).plots[0]
    (alert,) = (a for _, a in score if a.get("class") == "alert")
    (fault,) = (a["d"] for _, a in score if a.get("class") == "fault")
    wide = 960 - 120 - 12
    assert float(alert["x"]) == pytest.approx(120 + wide * 500 / 999, abs=0.1)
    assert float(alert["width"]) == pytest.approx(wide * 249 / 999, abs=0.1)
    assert [float(x) for x in re.findall(r"[MH]([\d.]+)", fault)] == pytest.approx([float(alert["x"]), 948], abs=0.1)


def test_text_is_escaped_wherever_it_comes_from():
    names = (ODD, "head", ODD)
    text = report(
        panel(title=ODD, note=ODD, channels=names, shown=(0,)), title=ODD, lead=ODD, header=(ODD,), rows=[(ODD,)]
    )
    assert "<script" not in text
    assert Page(text).text.count(ODD) == len(["title", "h1", "lead", "header", "cell", "h2", "note", "plot"]) + 2
