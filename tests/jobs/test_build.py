import json

import pytest
from io_cases import a_letter, an_alert

from jobs.build import file_sinks
from jobs.console import Console
from jobs.settings import load


def written(tmp_path, capsys, **sinks):
    """What reaches (alert file, dead-letter file, standard output, standard error)."""
    files = [tmp_path / "alerts.ndjson", tmp_path / "dead.ndjson"]
    settings = load(flags={f"sinks.{name}": value for name, value in sinks.items()}, environ={}).settings
    for sink in file_sinks(settings, Console(as_json=True)).values():
        sink.write([an_alert("a")], [a_letter(1)])
        sink.close()
    said = capsys.readouterr()
    return [len(path.read_text().splitlines()) if path.exists() else 0 for path in files] + [
        len([json.loads(line) for line in text.splitlines()]) for text in said
    ]


@pytest.mark.parametrize(
    ("alerts", "dead", "expected"),
    [
        ("alerts.ndjson", "dead.ndjson", [1, 1, 0, 0]),
        ("alerts.ndjson", "", [1, 0, 0, 0]),
        ("", "dead.ndjson", [0, 1, 0, 0]),
        ("-", "dead.ndjson", [0, 1, 1, 1]),
        ("-", "", [0, 0, 1, 1]),
        ("", "", [0, 0, 0, 0]),
    ],
)
def test_each_sink_takes_effect_by_itself(tmp_path, monkeypatch, capsys, alerts, dead, expected):
    monkeypatch.chdir(tmp_path)
    assert written(tmp_path, capsys, alerts=alerts, dead=dead) == expected
