from contextlib import suppress
from dataclasses import replace

import numpy as np
import pump_fleet as pumps
import pytest

from connectors.labels import Label, append_label
from jobs.build import registry
from jobs.confirmed import read_confirmed
from jobs.nightly import nightly
from pipeline.errors import ConfigError, GateRefused, TooLittleHistory
from pipeline.values import NS_PER_S

PCA = {"train.members": ["pca"], "train.dismissed_share": 0.2}


def night(folder, recalibrate_only=False, as_of_ns=None, **flags):
    console = pumps.Recorder()
    nightly(
        settings=pumps.settings(folder, **{**PCA, **flags}),
        recalibrate_only=recalibrate_only,
        as_of_ns=as_of_ns,
        console=console,
    )
    (record,) = console.records
    return record


def at(row):
    return pumps.START_NS + round(row * pumps.PERIOD_S) * NS_PER_S


def say(folder, verb, **target):
    label = Label(verb=verb, feed="pumps", who="ann", when_ns=1, **{"asset": "pump-01", "start_ns": 0, **target})
    append_label(folder / "labels.ndjson", label)


def known(folder):
    return registry(pumps.settings(folder))


def test_a_night_promotes_and_the_same_night_again_changes_nothing(tmp_path):
    pumps.write_history(tmp_path)
    first = night(tmp_path)
    assert first["promoted"]
    assert known(tmp_path).champion() == first["id"]

    again = night(tmp_path)
    assert again["id"] == first["id"]
    assert not again["promoted"]
    assert len(known(tmp_path).moves()) == 1
    assert again["figures"]["champion_far"] == again["figures"]["far"]


def test_a_night_on_poisoned_history_is_refused_and_the_champion_stays(tmp_path):
    (tmp_path / "good").mkdir()
    pumps.write_history(tmp_path / "good")
    first = night(tmp_path / "good", **{"registry.root": str(tmp_path / "models")})

    x = pumps.fleet().x.copy()
    x[:, 4400:4800, ::2] += 8 * x.std((0, 1))[::2]  # a fault that nobody was told of, in the rows thresholds come from
    (tmp_path / "bad").mkdir()
    pumps.write_history(tmp_path / "bad", x=x)
    with pytest.raises(GateRefused, match=rf"injected faults are found.*champion {first['id']}") as refused:
        night(tmp_path / "bad", **{"registry.root": str(tmp_path / "models")})
    assert known(tmp_path).champion() == first["id"]
    assert "stays champion" in refused.value.__notes__[0]


def test_a_network_that_was_hardly_trained_is_refused_because_of_pca(tmp_path):
    pumps.write_history(tmp_path)
    with pytest.raises(GateRefused, match="PCA alone"):
        night(tmp_path, **{"train.members": ["dense"], "train.steps": 1})
    assert known(tmp_path).champion() is None


def test_rows_in_alerts_faults_and_guard_bands_are_left_out_and_counted(tmp_path):
    alerts = [
        pumps.alert("a" * 16, "pump-01", 500, 540),
        pumps.alert("b" * 16, "pump-02", 900, 930, kind="stuck"),
    ]
    x = pumps.fleet().x.copy()
    x[2, 100:120, 3] = np.nan
    pumps.write_history(tmp_path, alerts=alerts)
    found = read_confirmed(pumps.settings(tmp_path), None, 28)
    assert dict(found.left_out) == {"quality": 30, "in_alert": 40, "guard_band": 20}
    first, second, third = found.series
    assert np.flatnonzero(~first.normal).tolist() == list(range(490, 550))
    assert np.flatnonzero(~second.normal).tolist() == list(range(900, 930))
    assert third.normal.all()
    assert found.normal + 90 == sum(len(s) for s in found.series)


def test_what_the_gate_masks_is_left_out(tmp_path):
    x = pumps.fleet().x.copy()
    x[2, 100:400, 3] = 1.0
    pumps.write_history(tmp_path, x=x)
    found = read_confirmed(pumps.settings(tmp_path, **{"gate.stuck": 20}), None, 28)
    assert found.left_out == {"quality": 281}


def test_a_dismissed_alert_comes_back_and_a_confirmed_one_is_a_fault_to_find(tmp_path):
    alerts = [pumps.alert(c * 16, "pump-01", 500 + 300 * i, 540 + 300 * i) for i, c in enumerate("ab")]
    pumps.write_history(tmp_path, alerts=alerts)
    say(tmp_path, "dismiss", alert_id="a" * 16)
    say(tmp_path, "confirm", alert_id="b" * 16, start_ns=at(800), end_ns=at(840))
    found = read_confirmed(pumps.settings(tmp_path), None, 28)
    assert found.series[0].normal[490:550].all()
    assert not found.series[0].normal[790:850].any()
    assert found.taken_back == 60
    assert dict(found.left_out) == {"confirmed": 40, "guard_band": 20}
    assert [(f.asset, f.start_ns, f.end_ns) for f in found.faults] == [("pump-01", at(800), at(840))]


def test_shelving_and_other_feeds_say_nothing_about_rows(tmp_path):
    pumps.write_history(tmp_path, alerts=[pumps.alert("a" * 16, "pump-01", 500, 540)])
    say(tmp_path, "shelve", alert_id="a" * 16, end_ns=at(900))
    other = Label(verb="dismiss", feed="valves", asset="pump-01", start_ns=0, alert_id="a" * 16, who="ann", when_ns=1)
    append_label(tmp_path / "labels.ndjson", other)
    assert read_confirmed(pumps.settings(tmp_path), None, 28).left_out == {"in_alert": 40, "guard_band": 20}


def test_an_open_alert_keeps_out_all_that_follows(tmp_path):
    pumps.write_history(tmp_path, alerts=[pumps.alert("a" * 16, "pump-01", 500, None)])
    found = read_confirmed(pumps.settings(tmp_path), None, 28)
    assert np.flatnonzero(found.series[0].normal).tolist() == list(range(490))


def test_as_of_and_days_choose_the_rows(tmp_path):
    pumps.write_history(tmp_path)
    found = read_confirmed(pumps.settings(tmp_path), at(2000), 1)
    assert found.rows == 1440 * pumps.PUMPS
    assert found.series[0].ts_ns[0] == at(2000 - 1440)


def test_what_was_left_out_is_in_the_record_and_in_the_manifest(tmp_path):
    pumps.write_history(tmp_path, alerts=[pumps.alert("a" * 16, "pump-01", 500, 540)])
    record = night(tmp_path)
    made = known(tmp_path).load(record["id"]).provenance["data"]
    assert record["left_out"] == made["left_out"] == {"in_alert": 40, "guard_band": 20}
    assert made["as_of_ns"] == at(pumps.ROWS - 1) + 1


def test_a_history_that_is_kept_for_some_days_loses_older_files_and_the_night_is_the_same(tmp_path):
    nights = {}
    for keep, times in (("off", 1), (3.5, 2)):
        folder = tmp_path / str(keep)
        pumps.write_history(folder, alerts=[pumps.alert("a" * 16, "pump-01", 500, 540)], offsets_per_file=1000)
        flags = {"train.days": 3.5, "train.recalibrate_days": 1, "history.keep_days": keep}
        nights[keep] = [night(folder, **flags) for _ in range(times)]
    names = {keep: [p.stem for p in (tmp_path / str(keep)).glob("history/rows/*/*/*.parquet")] for keep in nights}
    ranges = {keep: sorted(int(name.rsplit("-", 2)[1]) for name in found) for keep, found in names.items()}
    assert ranges == {"off": list(range(18)), 3.5: list(range(2, 18))}, "3.5 days are the last 15,120 of 18,000 rows"
    assert len(list(tmp_path.glob("3.5/history/alerts/*/*/*.parquet"))) == 1
    assert nights[3.5][0] == nights["off"][0]
    assert nights[3.5][1]["id"] == nights[3.5][0]["id"]


def test_recalibration_keeps_the_weights_and_twice_is_once(tmp_path):
    pumps.write_history(tmp_path)
    trained = night(tmp_path, as_of_ns=at(4000))
    first = night(tmp_path, recalibrate_only=True)
    before, after = (known(tmp_path).load(one["id"]) for one in (trained, first))
    assert first["promoted"]
    assert after.provenance["recalibrated"]["from"] == before.id
    assert all(np.array_equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    old, new = (b.calibration("cpu-float32") for b in (before, after))
    assert not np.array_equal(old.threshold, new.threshold)
    assert night(tmp_path, recalibrate_only=True)["id"] == first["id"]


def test_recalibration_keeps_a_floor_of_the_threshold_as_trained(tmp_path):
    pumps.write_history(tmp_path)
    trained = night(tmp_path, as_of_ns=at(4000))
    bundle = known(tmp_path).load(trained["id"])
    made = bundle.calibration("cpu-float32")
    high = replace(bundle, calibrations={"cpu-float32": replace(made, threshold=made.threshold * np.float32(8))})
    raised = known(tmp_path).add(high, 1)
    known(tmp_path).promote(raised.id, "test")
    settings = pumps.settings(tmp_path, **PCA)
    thresholds = []
    for _ in range(2):
        console = pumps.Recorder()
        with suppress(GateRefused):
            nightly(settings=settings, recalibrate_only=True, as_of_ns=None, console=console)
        made_now = known(tmp_path).load(console.records[0]["id"]).calibration("cpu-float32")
        known(tmp_path).promote(console.records[0]["id"], "test")
        thresholds.append(made_now.threshold)
    assert np.array_equal(thresholds[0], thresholds[1])
    assert np.allclose(thresholds[0], made.threshold * 4)


def test_recalibration_without_a_champion_says_what_to_do(tmp_path):
    pumps.write_history(tmp_path, rows=50)
    with pytest.raises(ConfigError, match="midwatch train"):
        night(tmp_path, recalibrate_only=True)


def test_an_empty_history_says_so(tmp_path):
    with pytest.raises(TooLittleHistory, match="0 rows of feed 'pumps'"):
        night(tmp_path)
