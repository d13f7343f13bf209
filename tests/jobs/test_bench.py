"""Every bench runs, at sizes so small that its figures mean nothing; how fast it is, is no test."""

import json
import math
import sys

import numpy as np
import pytest

from jobs.bench import bench
from jobs.benches import pairs
from jobs.benches.catalogue import BENCHES, Bench
from jobs.benches.limits import LIMITS
from jobs.benches.measure import Result, Trial, against, result, rounds, worst
from jobs.benches.table import write_table
from jobs.console import Console
from pipeline.errors import ConfigError, Unavailable

QUICK = Trial(quick=True, device="cpu")
KEYS = {"name", "ratio", "yardstick", "low", "high", "better", "more"}


def of_ratio(ratio: float, better: str = "higher") -> Result:
    return Result("x", ratio, "y", ratio, ratio, better)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.kafka) if name.startswith("kafka") else name for name in BENCHES]
)
def test_a_bench_runs_and_says_what_it_was_asked(name, capsys):
    try:
        bench([name], QUICK, Console(as_json=True))
    except Unavailable as error:
        pytest.skip(str(error))
    (record,) = json.loads(capsys.readouterr().out)
    assert record.keys() == KEYS
    assert record["name"] == name
    assert record["better"] in ("higher", "lower")
    assert 0 < record["low"] <= record["ratio"] <= record["high"] < math.inf
    assert record["yardstick"]
    for more in record["more"]:
        assert math.isfinite(more["ratio"] if "ratio" in more else more["value"]), more


def test_contestants_take_turns_and_the_first_turn_does_not_count():
    called = []
    contestants = {name: lambda i, name=name: called.append((name, i)) for name in "ab"}
    taken = rounds(contestants, 2, 0.0)
    assert called == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: seconds.shape for name, seconds in taken.items()} == {"a": (2,), "b": (2,)}


def test_the_ratio_is_the_median_round_of_the_worst_size():
    lines = [against("small", np.array([1.0, 3.0, 2.0])), against("large", np.array([0.5, 9.0, 0.7]))]
    found = result("x", worst(lines), {"rows_per_s": 7})
    assert (found.ratio, found.low, found.high, found.yardstick) == (0.7, 0.5, 9.0, "large")
    assert found.more == [
        {"name": "to small", "ratio": 2.0, "low": 1.0, "high": 3.0},
        {"name": "rows_per_s", "value": 7.0},
    ]
    assert worst(lines, "lower")[0].yardstick == "small"


def test_where_a_ratio_stands():
    up, down = Bench("m:f", 0.8, 1.0), Bench("m:f", 0.2, 0.1)
    assert [up.stands(of_ratio(r)) for r in (0.79, 0.8, 1.0)] == ["below", "must", "goal"]
    assert [down.stands(of_ratio(r, "lower")) for r in (0.21, 0.2, 0.1)] == ["below", "must", "goal"]
    assert Bench("m:f").stands(of_ratio(1.0)) == ""


def test_a_name_that_is_no_bench_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"e2e\.jason.*e2e\.json\.dense"):
        bench(["e2e.jason"], QUICK, Console())


def test_what_cannot_run_here_is_left_out_unless_it_was_named(monkeypatch, capsys, tmp_path):
    def lacking(trial):
        raise Unavailable("no such device")

    import jobs.benches.floor as floor

    monkeypatch.setattr(floor, "lacking", lacking, raising=False)
    monkeypatch.setattr(floor, "there", lambda trial: of_ratio(2.0), raising=False)
    monkeypatch.setattr("jobs.bench.BENCHES", {"gone": Bench("floor:lacking"), "x": Bench("floor:there", 1.0, 3.0)})
    bench([], QUICK, Console(), out=tmp_path / "out.json")
    said = capsys.readouterr()
    assert "gone not measured: no such device" in said.err
    assert said.out.splitlines()[1].split() == ["x", "2", "2", "2", "1", "3", "must", "y"]
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["more"] == [{"name": "must", "value": 1.0}, {"name": "goal", "value": 3.0}]
    with pytest.raises(Unavailable):
        bench(["gone"], QUICK, Console())


def test_the_page_has_a_line_for_each_bench_and_what_limits_those_below_their_goal(tmp_path):
    results = [
        Result("e2e.overhead", 0.18, "the whole", 0.17, 0.2, "lower", [{"name": "us_per_row", "value": 5.123}]),
        Result("decode.json", 1.25, "structs", 1.1, 1.3, more=[{"name": "to it", "ratio": 2.0, "low": 1, "high": 3}]),
    ]
    write_table(tmp_path / "BENCH.md", results)
    page = (tmp_path / "BENCH.md").read_text()
    assert "| `e2e.overhead` | 0.18 | 0.17 – 0.2 | ≤ 0.2 | ≤ 0.1 | must | the whole |" in page
    assert "| `decode.json` | 1.25 | 1.1 – 1.3 | 0.9 | 1.2 | goal | structs |" in page
    assert "Not measured here:" in page
    assert "`e2e.overhead`: us_per_row 5.12." in page
    assert "`decode.json`: to it 2 (1 – 3)." in page
    limits = page.partition("## What limits")[2].partition("## More")[0]
    assert LIMITS["e2e.overhead"] in limits
    assert "decode.json" not in limits


def test_what_is_said_of_limits_is_about_benches_that_there_are():
    assert set(LIMITS) <= set(BENCHES)
    assert set(pairs.PAIRS) <= set(BENCHES)
    assert {pair.peer for some in pairs.PAIRS.values() for pair in some} <= set(pairs.PEERS)


def an_environment(folder, name, exit_code=None):
    """This interpreter in the place of a peer's; with an exit code, one that says so and ends."""
    python = folder / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    run = f'exec "{sys.executable}" "$@"' if exit_code is None else f"echo no such library >&2; exit {exit_code}"
    python.write_text(f"#!/bin/sh\n{run}\n")
    python.chmod(0o755)
    (folder / name / "ready").touch()


def test_a_peer_takes_turns_with_us_in_a_process_of_its_own(monkeypatch, tmp_path):
    pair = pairs.Pair("river", "trees", "river", 1.0, 2.0)
    monkeypatch.setattr(pairs, "PAIRS", {"e2e.default": (pair,)})
    an_environment(tmp_path, "river")
    (found,) = pairs.compare("e2e.default", tmp_path, QUICK)
    assert found["name"] == "to river"
    assert 0 < found["low"] <= found["ratio"] <= found["high"]
    assert (found["must"], found["goal"]) == (1.0, 2.0)
    assert pairs.compare("decode.json", tmp_path, QUICK) == []


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_what_of_ours_a_peer_is_held_against_runs(name):
    run, rows = pairs._OURS[name](QUICK)
    run(0)
    assert rows > 0


def test_a_peer_that_does_not_run_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(pairs, "PAIRS", {"e2e.default": (pairs.Pair("river", "trees", "river"),)})
    an_environment(tmp_path, "river", exit_code=3)
    with pytest.raises(Unavailable, match="peer river ended with 3: no such library"):
        pairs.compare("e2e.default", tmp_path, QUICK)
