import json
from types import SimpleNamespace

import pytest
from io_cases import a_letter, an_alert

from connectors.kafka_records import Count, asset_record_bytes, state_records
from jobs.build import file_sinks, open_feed, require_room
from jobs.console import Console
from jobs.settings import load
from pipeline.errors import BundleError, StateError
from pipeline.protocols import AssetState


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


def test_a_model_whose_windows_fit_no_record_is_refused_and_one_that_is_taken_can_be_saved():
    def settings(**options):
        return load(flags={"source.type": "kafka"} | {f"kafka.{k}": v for k, v in options.items()}, environ={}).settings

    def saved(state_bytes, most):
        asset = AssetState("n" * 256, b"c" * 1000, b"w" * (state_bytes - 1000))
        return list(state_records("state", 0, Count(1, 1), 0, [asset], None, most))

    bundle = SimpleNamespace(id="wide")
    fits = 1_000_000 - asset_record_bytes(0)
    require_room(settings(), bundle, fits)
    assert saved(fits, 1_000_000)
    with pytest.raises(
        BundleError, match=r"bundle wide .* 1000001 bytes, kafka\.max_record_bytes is 1000000: raise it"
    ):
        require_room(settings(), bundle, fits + 1)
    with pytest.raises(StateError, match=r"kafka\.max_record_bytes"):
        saved(fits + 1, 1_000_000)
    require_room(settings(max_record_bytes=1_100_000), bundle, fits + 1)
    require_room(load(flags={"source.type": "file"}, environ={}).settings, bundle, fits + 1)


def test_the_committer_of_a_feed_is_told_how_large_records_may_be(monkeypatch):
    told = {}
    monkeypatch.setattr("connectors.kafka_source.KafkaSource", lambda *_, **options: SimpleNamespace())
    monkeypatch.setattr("connectors.kafka_commit.KafkaCommitter", lambda _, **options: told.update(options))
    flags = {"source.type": "kafka", "kafka.assignment": "fixed", "kafka.max_record_bytes": 2_000_000}
    open_feed(load(flags=flags | {"feed.channels": ["a"]}, environ={}).settings, Console())
    assert told["max_record_bytes"] == 2_000_000
