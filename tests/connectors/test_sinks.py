import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest
from io_cases import a_letter, an_alert

import connectors
from connectors.alert_json import decode_alert, encode_alert
from connectors.durable import GrowingFile
from connectors.memory import ListSink
from connectors.sinks import NdjsonSink, TeeSink, TextSink, alert_line
from pipeline.errors import SinkUnavailable
from pipeline.values import TopChannel


def test_a_line_that_a_crash_cut_in_two_is_written_again_as_a_whole(tmp_path):
    path = tmp_path / "alerts.ndjson"
    path.write_bytes(encode_alert(an_alert("one")) + b"\n" + encode_alert(an_alert("two"))[:100])
    sink = NdjsonSink(path)
    sink.write([an_alert("one"), an_alert("two")], [])
    sink.close()
    assert [decode_alert(line).id for line in path.read_bytes().splitlines()] == ["one", "two"]


def test_a_full_disk_leaves_no_half_line_and_the_write_can_be_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "alerts.ndjson"
    sink = NdjsonSink(path)
    sink.write([an_alert("one")], [])
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _full)
        with pytest.raises(SinkUnavailable, match=r"alerts\.ndjson"):
            sink.write([an_alert("two")], [])
    assert path.read_bytes() == before
    sink.write([an_alert("two")], [])
    sink.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_a_write_that_stops_halfway_is_undone(tmp_path, monkeypatch):
    file = GrowingFile(tmp_path / "f")
    file.append(b"kept")
    real, calls = __import__("os").pwrite, []

    def short(fd, body, at):
        calls.append(at)
        return real(fd, body[:2], at) if len(calls) == 1 else _full()

    monkeypatch.setattr("os.pwrite", short)
    with pytest.raises(SinkUnavailable, match="make room"):
        file.append(b"lost")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"kept"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SinkUnavailable, match="cannot open"):
        NdjsonSink(tmp_path / "file" / "alerts.ndjson")


def test_a_file_that_another_process_writes_is_refused(tmp_path):
    path = tmp_path / "alerts.ndjson"
    program = "import sys, pathlib; from connectors.durable import GrowingFile; " + (
        "GrowingFile(pathlib.Path(sys.argv[1])); print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(connectors.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"has it\n"
        with pytest.raises(SinkUnavailable, match="in use by another process"):
            NdjsonSink(path)
        other.stdin.close()
        other.wait()
    NdjsonSink(path).close()


def test_people_get_one_line_for_each_alert_and_errors_apart():
    out, errors = io.StringIO(), io.StringIO()
    alert = an_alert(top_channels=(TopChannel("vib_x", 0.614, 1.0, 9.0), TopChannel("temp", 0.001, None, None)))
    TextSink(out, errors, as_json=False).write([alert], [a_letter(7, row=2)])
    assert out.getvalue() == (
        "2023-11-14T22:13:20.123Z  OPEN  pump-7  anomaly  warning  1.50x  vib_x 61%"
        "  since 2023-11-14T22:13:11.000Z  ab12\n"
    )
    assert errors.getvalue() == "dead letter: sensors[0] offset 7 row 2: byte 0: expected an object (not_json)\n"


def test_a_resolved_alert_says_its_peak():
    assert "RESOLVED" in alert_line(an_alert(state="resolved"))
    assert "peak 2.25x" in alert_line(an_alert(state="resolved"))


def test_a_reader_that_went_away_is_an_unavailable_sink():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(SinkUnavailable, match="Broken pipe"):
        TextSink(Gone(), io.StringIO(), as_json=True).write([an_alert()], [])


def test_one_failing_sink_does_not_keep_alerts_from_the_others():
    broken, good = ListSink(), ListSink()
    broken.fail_next(1, SinkUnavailable("no"))
    both = TeeSink([broken, good])
    with pytest.raises(SinkUnavailable, match="no"):
        both.write([an_alert()], [])
    both.write([an_alert()], [])
    assert good.alerts == broken.alerts == [an_alert()]


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
