import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.console import Console
from jobs.init import guess_columns, init
from pipeline.errors import ConfigError, SchemaError

TABLE = pa.table(
    {
        "machine": ["a", "b"] * 20,
        "when": pa.array(np.repeat(np.arange(20), 2) * 10_000_000, pa.timestamp("us")),
        "flow": np.random.default_rng(0).normal(size=40),
        "label": [0] * 40,
    }
)


def test_columns_are_told_apart_by_type_and_the_label_is_no_channel():
    guess = guess_columns(TABLE)
    assert (guess.asset, guess.time, guess.channels, guess.period_s) == ("machine", "when", ("flow",), 10.0)


@pytest.mark.parametrize(("scale", "unit"), [(1, "s"), (1000, "ms"), (10**6, "us"), (10**9, "ns")])
def test_the_unit_of_numeric_times_is_told_by_their_size(scale, unit):
    ts = (1_790_000_000 + np.arange(10)) * scale
    guess = guess_columns(pa.table({"ts": ts, "x": np.zeros(10)}))
    assert (guess.time_unit, guess.asset, guess.period_s) == (unit, "", 1.0)


def test_times_as_text_are_iso():
    guess = guess_columns(pa.table({"time": ["2026-01-01 00:00:00.5", "2026-01-01T00:00:05Z"], "x": [1, 2]}))
    assert (guess.time_unit, guess.period_s) == ("iso", 5.0)


@pytest.mark.parametrize("write", ["parquet", "csv", "ndjson"])
def test_the_file_it_writes_is_a_valid_configuration(tmp_path, write):
    from jobs.settings import load

    sample = tmp_path / f"sample.{write}"
    if write == "parquet":
        pq.write_table(TABLE, sample)
    elif write == "csv":
        sample.write_text("ts,asset,flow\n1790000000,p,1.5\n1790000002,p,2.5\n")
    else:
        sample.write_text(
            '{"ts": 1790000000, "asset": "p", "flow": 1.5}\n{"ts": 1790000002, "asset": "p", "flow": 2}\n'
        )
    out = tmp_path / "midwatch.toml"
    init(sample, "file", out, False, Console(quiet=True))
    settings = load(out, environ={}).settings
    assert [c.name for c in settings.feed.channels] == ["flow"]
    assert tomllib.loads(out.read_text())["source"]["path"] == str(sample)
    with pytest.raises(ConfigError, match="--force"):
        init(sample, "file", out, False, Console(quiet=True))


def test_a_sample_without_a_time_names_the_columns_it_has():
    with pytest.raises(SchemaError, match="found x, y"):
        guess_columns(pa.table({"x": [1.0], "y": [2.0]}))
