"""The watch as a user has it: a file in, alerts, history and state out, through `run`, `replay` and `score`."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pump_fleet as pumps
import pytest

from connectors.file_commit import read_alerts, read_dead_letters
from jobs.alerts import label_alert, list_alerts
from jobs.build import registry
from jobs.console import Console
from jobs.demo import _belongs, _find
from jobs.doctor import doctor
from jobs.replay import replay
from jobs.run import run
from jobs.score import score
from jobs.simulate import CHANNELS, Fault, asset_name
from jobs.train import train
from models.device_engine import DeviceEngine
from models.engine import open_engine as host_engine
from models.profiles import FALLBACK, Profile
from pipeline.errors import BundleError, ConfigError, DeviceUnavailable, InputError, SchemaError
from pipeline.values import NS_PER_S

LIVE = 700  # rows of the faulty stretch, after those trained on


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a champion, fitted on the normal fleet."""
    folder = tmp_path_factory.mktemp("watch")
    train(
        settings=pumps.settings(folder), files=(pumps.write_parquet(folder / "normal.parquet"),), promote=True,
        console=Console(as_json=True, quiet=True),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def live(trained):
    """Messages of the rows after, with a shaken pump, a stuck sensor and one line of nonsense."""
    made = pumps.fleet(pumps.ROWS + LIVE)
    x = made.x[:, pumps.ROWS :].copy()
    x[0, 300:420, 10:12] += 6  # vibration
    x[1, 300:500, 4] = x[1, 300, 4]
    path = trained / "live.ndjson"
    with path.open("w") as file:
        for i in range(LIVE):
            if i == 200:
                file.write("not a message\n")
            for p in range(pumps.PUMPS):
                values = {c: round(float(v), 4) for c, v in zip(CHANNELS, x[p, i], strict=True)}
                file.write(json.dumps({"asset": asset_name(p), "ts": int(made.ts_ns[pumps.ROWS + i]), **values}) + "\n")
    return path


def watching(trained, folder, live, **flags):
    places = {"registry.root": str(trained / "models"), "source.path": str(live), "sinks.alerts": "", "sinks.dead": ""}
    return pumps.settings(folder, **{**places, **flags})


def plain(alerts):
    return [(a.id, a.seq, a.state, a.asset, a.kind, a.ratio) for a in alerts]


@pytest.fixture(scope="module")
def watched(trained, live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    counts = run(settings=watching(trained, folder, live), console=Console(quiet=True))
    return folder, counts


def test_the_watch_finds_the_fault_and_tells_the_stuck_sensor_apart(watched):
    folder, counts = watched
    alerts = list(read_alerts(folder / "state"))
    assert {(a.asset, a.kind) for a in alerts} >= {("pump-01", "anomaly"), ("pump-02", "stuck")}
    shaken = next(a for a in alerts if a.asset == "pump-01" and a.kind == "anomaly" and a.state == "open")
    told = [a for a in alerts if a.id == shaken.id][-1]
    shaken_most = {t.name: t for t in told.top_channels[:3]}
    assert shaken_most.keys() & {"vib_x_mms", "vib_y_mms"}
    assert sum(t.share for t in told.top_channels) <= 1 + 1e-6
    assert counts["rows"] == LIVE * pumps.PUMPS
    (letter,) = read_dead_letters(folder / "state")
    assert (letter.reason, letter.offset, letter.value) == ("not_json", 200 * pumps.PUMPS, b"not a message")


def test_scoring_the_file_tells_the_same_alerts_and_keeps_nothing(trained, live, watched, tmp_path):
    settings = watching(trained, tmp_path / "none", live)
    out = io.StringIO()
    with redirect_stdout(out):
        opened = score(
            settings=settings, path=live, out=tmp_path / "frames.parquet", bundle=None,
            console=Console(as_json=True, quiet=True),
        )  # fmt: skip
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    alerts = list(read_alerts(watched[0] / "state"))
    assert [(t["id"], t["seq"], t["state"], t["ratio"]) for t in told] == [
        (a.id, a.seq, a.state, pytest.approx(a.ratio)) for a in alerts
    ]
    assert opened == sum(a.state == "open" for a in alerts)
    assert not (tmp_path / "none").exists()
    import pyarrow.parquet as pq

    frames = pq.read_table(tmp_path / "frames.parquet")
    assert frames.num_rows == LIVE * pumps.PUMPS - pumps.PUMPS  # the last frame of each pump is not complete
    assert np.nanmax(frames["score_ratio"].to_numpy()) > 1


@pytest.fixture
def device_that_fails(monkeypatch):
    """A device, here the CPU, that is lost after so many batches of rows; returns what was opened."""
    opened = []

    def use(batches):
        def open_engine(bundle, *profile):
            opened.append(profile)
            if len(opened) > 1:
                return host_engine(bundle, *profile)
            engine = DeviceEngine(bundle, FALLBACK, (8, 64))
            left, push = iter(range(batches)), engine.push

            def fail(rows):
                out = push(rows)  # the rows are in its windows, and in no commit
                if next(left, None) is None:
                    raise DeviceUnavailable("device cuda failed")
                return out

            monkeypatch.setattr(engine, "push", fail)
            return engine

        monkeypatch.setattr("models.engine.open_engine", open_engine)
        return opened

    return use


@pytest.mark.parametrize("batches", [0, 3])
def test_a_device_that_is_lost_is_left_for_the_cpu_without_an_alert_more_or_less(
    trained, live, watched, tmp_path, device_that_fails, batches
):
    console = pumps.Recorder()
    opened = device_that_fails(batches)
    run(settings=watching(trained, tmp_path, live, **{"run.max_rows": 200}), console=console)
    assert opened == [("cpu", "float32", "throughput")] * 2
    assert "device cuda failed; the watch starts again from its last commit, as cpu-float32" in console.warnings
    found, want = (list(read_alerts(folder / "state")) for folder in (tmp_path, watched[0]))
    assert [key[:-1] for key in plain(found)] == [key[:-1] for key in plain(want)]
    np.testing.assert_allclose([a.ratio for a in found], [a.ratio for a in want], rtol=1e-5)


def test_a_device_that_is_lost_ends_the_watch_where_the_cpu_was_not_calibrated(
    trained, live, tmp_path, device_that_fails, monkeypatch
):
    device_that_fails(0)
    monkeypatch.setattr("models.profiles.FALLBACK", Profile("cpu", "int8"))
    with pytest.raises(DeviceUnavailable):
        run(settings=watching(trained, tmp_path, live), console=pumps.Recorder())


def stopped_and_gone_on(settings):
    """Stop at every second step, start again, to the end."""

    class Stopped(Exception):
        pass

    def stop(step):
        turns.append(step)
        if len(turns) == 2:
            raise Stopped

    for _ in range(10):
        turns = []
        try:
            run(settings=settings, console=Console(quiet=True), told=stop)
            break
        except Stopped:
            continue


def test_a_watch_that_is_stopped_goes_on_where_it_was_and_tells_what_one_run_tells(trained, live, watched, tmp_path):
    stopped_and_gone_on(watching(trained, tmp_path, live, **{"run.max_rows": 350}))
    assert plain(read_alerts(tmp_path / "state")) == plain(read_alerts(watched[0] / "state"))


def test_a_replay_gives_the_same_alerts_and_a_history_to_train_on(trained, live, watched, tmp_path):
    settings = watching(trained, tmp_path, live, **{"source.path": ""})
    console = pumps.Recorder()
    replay(settings=settings, path=live, speed=None, console=console)
    assert console.records[0]["rows"] == LIVE * pumps.PUMPS
    assert plain(read_alerts(tmp_path / "state")) == plain(read_alerts(watched[0] / "state"))


def test_a_streaming_model_is_trained_watches_stops_and_goes_on_and_needs_a_grid(live, tmp_path):
    flags = {"train.members": ["stream"], "train.conv_hidden": [16], "train.steps": 200}
    train(
        settings=pumps.settings(tmp_path, **flags), files=(pumps.write_parquet(tmp_path / "normal.parquet"),),
        promote=True, console=Console(as_json=True, quiet=True),
    )  # fmt: skip
    one = watching(tmp_path, tmp_path / "one", live, **flags)
    run(settings=one, console=Console(as_json=True, quiet=True))
    told = list(read_alerts(tmp_path / "one" / "state"))
    assert {(a.asset, a.kind) for a in told} >= {(asset_name(0), "anomaly"), (asset_name(1), "stuck")}
    shaken = next(a for a in told if a.asset == asset_name(0) and a.kind == "anomaly")
    fault_ns = int(pumps.fleet(pumps.ROWS + LIVE).ts_ns[pumps.ROWS + 300])
    assert abs(shaken.onset_ns - fault_ns) <= 5 * 60 * NS_PER_S
    assert shaken.opened_ns > shaken.onset_ns
    stopped_and_gone_on(watching(tmp_path, tmp_path / "parts", live, **flags, **{"run.max_rows": 350}))
    assert plain(read_alerts(tmp_path / "parts" / "state")) == plain(told)
    with pytest.raises(BundleError, match="needs rows on a grid"):
        score(
            settings=watching(tmp_path, tmp_path / "three", live, **{"align.mode": "none"}), path=live, out=None,
            bundle=None, console=Console(as_json=True, quiet=True),
        )  # fmt: skip


def test_without_a_champion_the_watch_collects_and_says_when_there_is_enough(live, tmp_path):
    said = []

    class Listening(Console):
        def warn(self, text):
            said.append(text)

    flags = {"source.path": str(live), "sinks.alerts": "", "sinks.dead": "", "run.max_rows": 500}
    counts = run(settings=pumps.settings(tmp_path, **flags, **{"train.min_rows": 100}), console=Listening())
    assert counts["scored"] == 0
    assert any("no champion yet" in s for s in said)
    assert any((tmp_path / "history" / "rows").glob("feed=pumps/date=*/*.parquet"))


def test_a_champion_for_other_channels_is_refused_and_the_watch_collects(trained, live, tmp_path):
    said = []

    class Listening(Console):
        def warn(self, text):
            said.append(text)

    counts = run(
        settings=watching(trained, tmp_path, live, **{"feed.channels": list(CHANNELS[:5])}), console=Listening()
    )
    assert counts["rows"] == LIVE * pumps.PUMPS
    assert counts["scored"] == 0
    assert any("is refused, nothing is scored" in s for s in said)


def test_alerts_are_listed_from_the_history_and_take_labels(trained, live, watched, capsys):
    settings = watching(trained, watched[0], live)
    assert list_alerts(settings, None, None, None, 50, Console(as_json=True, quiet=True)) > 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shaken = next(row for row in listed if row["asset"] == "pump-01" and row["kind"] == "anomaly")
    label_alert(settings, shaken["id"], "dismiss", "a test", "ann", Console(as_json=True, quiet=True))
    capsys.readouterr()
    list_alerts(settings, None, "pump-01", None, 50, Console(as_json=True, quiet=True))
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["said"] for row in again if row["id"] == shaken["id"]} == {"dismiss"}
    with pytest.raises(InputError, match="no alert 'nothing'"):
        label_alert(settings, "nothing", "confirm", "", "ann", Console(quiet=True))


def test_the_doctor_is_content_with_a_sound_feed_and_names_the_fix_for_a_missing_file(trained, live, tmp_path, capsys):
    assert doctor(watching(trained, tmp_path, live), Console(as_json=True))
    capsys.readouterr()
    assert not doctor(watching(trained, tmp_path, live, **{"source.path": "nowhere.csv"}), Console(as_json=True))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["fix"] for f in found if not f["ok"]] == ["there is no such file: correct source.path"]


def test_scoring_without_a_model_says_what_to_run(live, tmp_path):
    with pytest.raises(ConfigError, match="midwatch train"):
        score(settings=pumps.settings(tmp_path), path=live, out=None, bundle=None, console=Console(quiet=True))


def test_a_file_without_the_mapped_columns_is_refused_with_those_it_has(trained, tmp_path):
    (tmp_path / "other.csv").write_text("when,who,flow\n1,a,2\n")
    with pytest.raises(SchemaError, match="found 'when', 'who', 'flow'"):
        score(
            settings=watching(trained, tmp_path, ""), path=tmp_path / "other.csv", out=None, bundle=None,
            console=Console(quiet=True),
        )  # fmt: skip


def touched(models, bundle):
    """Change one bit of a bundle's weights."""
    weights = models / "bundles" / bundle / "weights.safetensors"
    weights.chmod(0o644)
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(bytes(body))


def test_a_bundle_whose_weights_were_touched_is_refused(trained, live, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(trained / "models", models)
    champion = registry(pumps.settings(tmp_path)).champion()
    touched(models, champion)
    settings = watching(trained, tmp_path, live, **{"registry.root": str(models)})
    with pytest.raises(BundleError, match=r"sha256|hash"):
        score(settings=settings, path=live, out=None, bundle=None, console=Console(quiet=True))
    assert registry(settings).champion() == champion


def test_a_champion_that_is_promoted_and_damaged_is_refused_once_and_the_one_that_serves_goes_on(
    trained, live, watched, tmp_path, monkeypatch
):
    monkeypatch.setattr("jobs.run._LOOK_S", 0.0)
    models = tmp_path / "models"
    shutil.copytree(trained / "models", models)
    settings = watching(trained, tmp_path, live, **{"registry.root": str(models), "run.max_rows": 350})
    first = registry(settings).load(registry(settings).champion())
    console, steps = pumps.Recorder(), []

    def promote(step):
        steps.append(step)
        if len(steps) == 1:
            added = registry(settings).add(replace(first, provenance={**first.provenance, "night": 2}), 2)
            registry(settings).promote(added.id, "a night")
            touched(models, added.id)

    run(settings=settings, console=console, told=promote)
    second = registry(settings).champion()
    assert second != first.id
    (said,) = console.warnings
    assert said.startswith(f"model {second} is refused, {first.id} goes on: ")
    assert re.search(r"sha256|hash", said)
    told = list(read_alerts(tmp_path / "state"))
    assert plain(told) == plain(read_alerts(watched[0] / "state"))
    assert {a.model_id for a in told if a.kind == "anomaly"} == {first.id}
    assert len(steps) > 3


def test_a_fault_is_found_by_the_right_kind_on_the_right_asset_in_time():
    fault = Fault("leak", 1, 100.0, 500.0, 2)
    at = lambda s: 1_000 * NS_PER_S + s * NS_PER_S  # noqa: E731
    make = lambda asset, kind, s: pumps.replace_alert(asset, kind, at(s))  # noqa: E731
    right = make("pump-02", "anomaly", 150)
    others = [make("pump-01", "anomaly", 150), make("pump-02", "stuck", 150), make("pump-02", "anomaly", 99)]
    assert _find(fault, [*others, right], at(0)).alert is right
    assert _find(fault, [*others, right], at(0)).delay_s == 50
    assert _find(fault, others, at(0)).alert is None
    assert [_belongs(a, fault, at(0)) for a in (right, *others)] == [True, False, False, False]
