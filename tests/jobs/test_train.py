import json
from contextlib import suppress

import pump_fleet as pumps
import pytest

from jobs.build import registry
from jobs.train import train
from pipeline.errors import ConfigError, GateRefused, TooLittleHistory


def run(folder, *files, promote=True, **flags):
    console = pumps.Recorder()
    train(settings=pumps.settings(folder, **flags), files=files, promote=promote, console=console)
    (record,) = console.records
    return record


def test_a_file_becomes_a_champion_and_again_the_same_one(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    record = run(tmp_path, path)
    known = registry(pumps.settings(tmp_path))
    assert record["promoted"]
    assert known.champion() == record["id"] == record["champion"]
    assert record["rows"] == 18000 == record["normal"] + pumps.PUMPS  # the last frames are not complete
    assert record["figures"]["normal_rows"] > 700
    assert record["figures"]["injected_faults"] >= 10
    assert known.load(record["id"]).calibrations.keys() == {"cpu-float32"}

    again = run(tmp_path, path)
    assert again["id"] == record["id"]
    assert not again["promoted"]
    assert len(known.moves()) == 1


def test_the_manifest_says_what_the_model_was_made_from(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    record = run(tmp_path, path, **{"train.members": ["pca"]})
    made = json.loads(json.dumps(registry(pumps.settings(tmp_path)).manifest(record["id"])))["bundle"]["provenance"]
    assert made["data"]["files"] == ["normal.parquet"]
    assert made["config_id"]
    parts = made["splits"]["pump-01"]
    assert parts["fit"]["range_ns"][1] < parts["calibration"]["range_ns"][0]
    assert parts["calibration"]["range_ns"][1] < parts["test"]["range_ns"][0]
    assert made["metrics"]["far"] == record["figures"]["far"]


def test_several_files_are_one_history(tmp_path):
    a = pumps.write_parquet(tmp_path / "a.parquet", rows=4000)
    b = pumps.write_parquet(tmp_path / "b.parquet", first=4000)
    record = run(tmp_path, b, a, **{"train.members": ["pca"]})
    assert record["rows"] == 18000


def test_a_first_model_that_is_worse_than_pca_is_registered_and_refused(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    flags = {"train.members": ["dense"], "train.steps": 1}
    console = pumps.Recorder()
    with pytest.raises(GateRefused, match="PCA alone") as refused:
        train(settings=pumps.settings(tmp_path, **flags), files=(path,), promote=True, console=console)
    known = registry(pumps.settings(tmp_path))
    record = console.records[0]
    assert known.champion() is None
    assert [entry.id for entry in known.list()] == [record["id"]]
    assert record["reasons"] == list(refused.value.reasons)
    assert f"midwatch models promote {record['id']}" in refused.value.__notes__[0]


def test_promote_false_registers_only(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    record = run(tmp_path, path, promote=False, **{"train.members": ["pca"]})
    assert record["passed"]
    assert not record["promoted"]
    assert registry(pumps.settings(tmp_path)).champion() is None


def test_without_a_test_part_the_record_says_that_false_alarms_were_not_measured(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    record = run(tmp_path, path, **{"train.members": ["pca"], "train.test_share": 0})
    assert any("not measured" in warning for warning in record["warnings"])


def test_too_little_history_says_how_much_there_is_and_how_much_is_needed(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet", rows=100)
    with pytest.raises(TooLittleHistory, match=r"29[0-9] normal rows.*2000 needed"):
        run(tmp_path, path)
    assert registry(pumps.settings(tmp_path)).list() == []


def test_without_files_the_history_is_trained_on(tmp_path):
    pumps.write_history(tmp_path)
    record = run(tmp_path, **{"train.members": ["pca"]})
    assert record["source"] == "history"
    assert record["promoted"]


def test_every_profile_that_is_asked_for_is_calibrated_and_its_flips_are_told(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    flags = {"train.members": ["dense"], "train.steps": 20, "train.profiles": ["cpu-int8"]}
    console = pumps.Recorder()
    with suppress(GateRefused):  # a network of 20 steps: what counts here is what is told of it
        train(settings=pumps.settings(tmp_path, **flags), files=(path,), promote=True, console=console)
    (record,) = console.records
    known = registry(pumps.settings(tmp_path))
    made = known.load(record["id"])
    assert made.calibrations.keys() == {"cpu-float32", "cpu-int8"}
    assert made.provenance["flips"].keys() == {"cpu-int8"}
    assert record["figures"]["flips cpu-int8"] == made.provenance["flips"]["cpu-int8"] <= 0.01


def test_a_profile_that_does_not_exist_is_refused_before_anything_is_fitted(tmp_path):
    path = pumps.write_parquet(tmp_path / "normal.parquet")
    with pytest.raises(ConfigError, match=r"train\.profiles.*cpu-int8"):
        run(tmp_path, path, **{"train.profiles": ["cpu-int4"]})
