import hashlib
import json

import numpy as np
import pump_fleet as pumps
import pytest
from safetensors.numpy import load_file

from jobs.build import registry
from jobs.export import export_bundle
from jobs.train import train
from models import export
from models.export import load_program, run_program
from pipeline.errors import BundleError, ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    path, console = pumps.write_parquet(folder / "normal.parquet"), pumps.Recorder()
    train(settings=pumps.settings(folder), files=(path,), promote=True, console=console)
    return folder, console.records[0]["id"], path


def run(trained, out, *files):
    folder, bundle, _ = trained
    console = pumps.Recorder()
    export_bundle(settings=pumps.settings(folder), bundle=bundle, out=out, files=files, console=console)
    return console.records[0]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    return out, run(trained, out, trained[2])


def test_a_trained_model_becomes_programs_that_agree_on_its_held_out_rows(exported, trained):
    out, record = exported
    told = json.loads((out / "export.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["calibration.safetensors", "export.json", "g0.m0.pt2", "g0.m1.pt2"]
    assert [(p["file"], p["kind"], p["window"]) for p in told["programs"]] == [
        ("g0.m0.pt2", "pca", 16),
        ("g0.m1.pt2", "dense", 8),
    ]
    for program in told["programs"]:
        content = (out / program["file"]).read_bytes()
        assert (program["bytes"], program["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        for tried in (program["agreement"]["held"], program["agreement"]["made_up"]):
            assert tried["windows"] > 200
            assert tried["largest"] <= program["agreement"]["tolerance"]
    assert record["programs"] == 2
    assert told["id"] == trained[1]
    assert told["bundle"]["smoother"]["memory"] == 32


def test_the_description_is_enough_to_score_a_window(exported, trained):
    out, _ = exported
    told = json.loads((out / "export.json").read_text())
    x = np.random.default_rng(0).normal(size=(3, 16, len(told["bundle"]["channels"]))).astype(np.float32)
    seen = np.ones(x.shape, np.bool_)
    errors = []
    for program in told["programs"]:
        rows = slice(-program["window"], None)
        got = run_program(
            load_program(out / program["file"], program["sha256"]),
            np.ascontiguousarray(x[:, rows]),
            np.ascontiguousarray(seen[:, rows]),
        )
        assert got.keys() == told["outputs"].keys()
        errors.append(got["error"])
    arrays = load_file(out / "calibration.safetensors")
    assert {n: list(a.shape) for n, a in arrays.items()} == told["calibration"]["arrays"]
    score = np.sqrt(errors[0] * errors[1])
    calibrated = (score - arrays["cal.cpu-float32.median"][0]) / arrays["cal.cpu-float32.mad"][0]
    bundle = registry(pumps.settings(trained[0])).load(trained[1])
    assert calibrated.shape == (3,)
    assert (calibrated > bundle.calibration("cpu-float32").threshold[0]).all()  # noise is no pump


def test_a_folder_with_something_in_it_is_left_alone(trained, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ConfigError, match="empty"):
        run(trained, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_program_that_differs_is_not_handed_out(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    console = pumps.Recorder()
    with pytest.raises(BundleError, match="off the engine"):
        export_bundle(
            settings=pumps.settings(trained[0]), bundle=trained[1], out=tmp_path / "m", files=(), console=console
        )
    assert list(tmp_path.iterdir()) == []
    assert any("made up" in said for said in console.warnings)  # no files were given, and there is no history


def test_a_bundle_that_is_not_there_is_refused(trained, tmp_path):
    with pytest.raises(BundleError):
        export_bundle(
            settings=pumps.settings(trained[0]), bundle="b000000000000", out=tmp_path / "m", files=(),
            console=pumps.Recorder(),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
