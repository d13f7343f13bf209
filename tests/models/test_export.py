import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from naive_engine import make_bundle
from naive_stream import stream_member

from models.export import (
    TOLERANCE,
    check_archive,
    disagreement,
    engine_errors,
    export_member,
    load_program,
    made_up_windows,
    run_program,
    save_program,
)
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ShapeError

torch.set_num_threads(1)

MEMBERS = [
    MemberSpec("pca", 7, aggregate="mahalanobis"),
    MemberSpec("conv", 6, "window", "ztop", {"hidden": (7,), "latent": 3, "kernels": (5, 3)}),
]
BUNDLE = make_bundle(MEMBERS, groups=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    return [
        (folder / f"m{m}.pt2", save_program(export_member(BUNDLE, 1, m), folder / f"m{m}.pt2"))
        for m in range(len(MEMBERS))
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_a_program_that_was_read_back_agrees_with_the_engine_with_gaps_and_without(files, index):
    program = load_program(*files[index])
    x, observed = made_up_windows(BUNDLE, 1, index)
    found = disagreement(program, BUNDLE, 1, index, x, observed)
    assert found["windows"] > 200
    assert found["largest"] < TOLERANCE / 10
    quiet = observed.reshape(len(x), -1).all(axis=1)
    assert 0 < quiet.sum() < len(x)
    assert disagreement(program, BUNDLE, 1, index, x[quiet], observed[quiet])["largest"] < TOLERANCE / 10


def test_a_streaming_bundle_is_refused():
    with pytest.raises(BundleError, match="streaming"):
        export_member(make_bundle([stream_member((5, 5), (2, 2))]), 0, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_the_batch_is_dynamic_down_to_one_window(files, index):
    program = load_program(*files[index])
    x, observed = made_up_windows(BUNDLE, 1, index)
    whole = run_program(program, x, observed)
    assert {name: value.dtype.name for name, value in whole.items()} == {
        "expected": "float32",
        "residual": "float32",
        "weight": "float32",
        "error": "float64",
    }
    for n in (1, 2, 5):
        for name, value in run_program(program, x[-n:], observed[-n:]).items():
            np.testing.assert_allclose(value, whole[name][-n:], rtol=1e-5, atol=1e-5)


def test_nothing_in_the_file_is_a_pickle(files):
    for path, _ in files:
        with zipfile.ZipFile(path) as archive:
            records = {r.filename: archive.read(r) for r in archive.infolist()}
        assert [n for n in records if n.endswith(".pt")] == [n for n, c in records.items() if n[-3:] == ".pt" and not c]
        for name, content in records.items():
            assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), name


def test_an_archive_that_would_be_unpickled_is_refused_unread(files, tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("sprung",))

    trap = pickle.dumps(Trap())
    odd = {
        "data/sample_inputs/model.pt": "pickled example inputs",
        "data/weights/model.pt": "unknown record",
        "data/constants/opaque_obj_0": "unknown record",
    }
    for name, why in odd.items():
        with pytest.raises(BundleError, match=why):
            check_archive(rewritten(files[0][0], tmp_path / "odd.pt2", name, trap))
        with pytest.raises(BundleError, match="not the file that was exported"):
            load_program(tmp_path / "odd.pt2", files[0][1])
    with zipfile.ZipFile(files[0][0]) as archive:
        (config,) = [n for n in archive.namelist() if n.endswith("model_weights_config.json")]
        asks = archive.read(config).replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    name = config.partition("/")[2]
    with pytest.raises(BundleError, match="pickled"):
        check_archive(rewritten(files[0][0], tmp_path / "odd.pt2", name, asks))


def test_example_inputs_that_were_left_in_are_noticed_when_the_file_is_written(tmp_path):
    program = export_member(BUNDLE, 1, 1)
    program.example_inputs = ((torch.zeros(2, 6, 5), torch.ones(2, 6, 5, dtype=torch.bool)), {})
    with pytest.raises(BundleError, match="pickled example inputs"):
        save_program(program, tmp_path / "m1.pt2")


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "m0.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(BundleError, match="not an exported program"):
        check_archive(path)


def test_a_program_of_another_model_is_told_from_the_engine(files):
    program = load_program(*files[0])
    x, observed = made_up_windows(BUNDLE, 0, 0)
    with pytest.raises(BundleError, match="off the engine"):
        disagreement(program, BUNDLE, 0, 0, x, observed)
    with pytest.raises(BundleError, match="too few"):
        disagreement(program, BUNDLE, 1, 0, x[:5], observed[:5])


def test_windows_of_other_rows_are_refused():
    x, observed = made_up_windows(BUNDLE, 0, 0)
    with pytest.raises(ShapeError, match=r"takes \(n, 7, 5\)"):
        engine_errors(BUNDLE, 0, 0, x[:, 1:], observed[:, 1:])


def rewritten(path, to, name, content):
    """Copy an archive with one record put in another's place, or beside the others."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        for record in old.infolist():
            if record.filename != f"{top}/{name}":
                new.writestr(record, old.read(record))
        new.writestr(f"{top}/{name}", content)
    to.write_bytes(out.getvalue())
    return to
