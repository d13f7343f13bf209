import io
import json
import sys

import pytest

from jobs.console import Console


def test_data_go_to_standard_output_and_everything_else_to_standard_error(capsys):
    console = Console(verbose=True)
    console.line("a line")
    console.say("said")
    console.detail("in detail")
    console.warn("warned")
    out, err = capsys.readouterr()
    assert out == "a line\n"
    assert err == "said\nin detail\nwarned\n"


def test_quiet_leaves_warnings_and_data(capsys):
    console = Console(quiet=True)
    console.line("a line")
    console.say("said")
    console.detail("in detail")
    console.warn("warned")
    assert capsys.readouterr() == ("a line\n", "warned\n")


def test_a_record_is_lines_for_people_and_an_object_for_programs(capsys):
    record = {"id": "m1", "rows": 12, "share": 0.12345678, "note": None, "parts": ["a", 1]}
    Console().record(record)
    assert capsys.readouterr().out == 'id     m1\nrows   12\nshare  0.123457\nnote\nparts  ["a", 1]\n'
    Console(as_json=True).record(record)
    assert json.loads(capsys.readouterr().out) == record


def test_a_table_is_aligned_for_people_and_keeps_every_entry_for_programs(capsys):
    rows = [{"id": "long-one", "n": 1, "more": 1}, {"id": "b"}]
    Console().rows(rows, ("id", "n"))
    assert capsys.readouterr().out == "id        n\nlong-one  1\nb\n"
    Console(as_json=True).rows(rows, ("id", "n"))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_progress_is_shown_on_a_terminal_only(monkeypatch, terminal, quiet, shown):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Console(quiet=quiet).progress("training", total=2) as advance:
        advance(1)
        advance(1)
    assert ("training" in stream.getvalue()) == shown


def test_no_color_is_respected(monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return True

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with Console().progress("training", total=1) as advance:
        advance(1)
    assert "training" in stream.getvalue()
    assert "\x1b[3" not in stream.getvalue()
