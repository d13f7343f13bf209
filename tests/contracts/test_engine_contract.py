"""What every engine must do, whatever it scores with. A new engine is one more line in ENGINES."""

import numpy as np
import pytest
import torch
from naive_engine import make_bundle
from naive_stream import grid_rows, stream_member

from models.device_engine import DeviceEngine
from models.engine import open_engine
from models.profiles import Profile
from pipeline.bundle import MemberSpec
from pipeline.errors import PipelineError
from pipeline.protocols import RawWindows
from pipeline.values import Quality, Rows, Status

torch.set_num_threads(1)

BUNDLE = make_bundle([MemberSpec("pca", 6), MemberSpec("dense", 4, params={"hidden": (9,), "latent": 3})], groups=2)
STREAM = make_bundle([stream_member((3, 3), (2, 1), rows=2)], groups=2)
NAMES = ["a0", "a1", "stranger", "a2"]
ENGINES = [
    pytest.param((BUNDLE, "cpu"), id="torch on the CPU"),
    pytest.param((STREAM, "cpu"), id="streaming"),
    pytest.param((BUNDLE, "rings on a device"), id="device rings, on the CPU"),
    pytest.param(
        (BUNDLE, "cuda"),
        id="torch on CUDA",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
    ),
]


@pytest.fixture(params=ENGINES)
def engine(request):
    bundle, device = request.param
    if device == "rings on a device":
        return DeviceEngine(bundle, Profile("cpu"), (8, 64))
    return open_engine(bundle, device)


def rows(n=120, seed=0):
    return grid_rows(n, 5, len(NAMES), seed, missing=0.05, restarts=0.02)


def test_it_names_its_model_its_profile_and_the_rows_it_keeps(engine):
    assert engine.model_id == "b1"
    assert engine.profile.endswith("-float32")
    assert engine.rows_kept in (BUNDLE.window, STREAM.window)


def test_one_score_comes_back_per_row_in_order_with_agreed_shapes_and_dtypes(engine):
    slots = engine.allocate(NAMES)
    batches = [rows(50, 1), Rows.empty(3, 5), rows(70, 2)]
    got = engine.push([(batch, slots[batch.asset]) for batch in batches])
    for batch, scores in zip(batches, got, strict=True):
        n = len(batch)
        assert scores.partition == batch.partition
        for name in ("asset", "ts_ns", "offset", "row", "continuity"):
            np.testing.assert_array_equal(getattr(scores, name), getattr(batch, name))
        for name in ("score", "coverage"):
            assert getattr(scores, name).shape == (n,)
            assert getattr(scores, name).dtype == np.float32
        for name in ("by_channel", "expected", "actual"):
            assert getattr(scores, name).shape == (n, 5)
            assert getattr(scores, name).dtype == np.float32
            assert getattr(scores, name).flags.c_contiguous
        assert scores.status.dtype == np.uint8


def test_nothing_comes_of_nothing(engine):
    assert engine.push([]) == []
    engine.fill([])
    assert engine.allocate([]).tolist() == []


def test_there_is_a_score_exactly_where_the_status_says_so(engine):
    slots, batch = engine.allocate(NAMES), rows()
    got = engine.push([(batch, slots[batch.asset])])[0]
    scored = got.status == Status.CALIBRATED
    assert set(np.unique(got.status)) >= {Status.WARMING, Status.CALIBRATED}
    np.testing.assert_array_equal(np.isfinite(got.score), scored)
    assert (got.score[scored] >= 0).all()
    np.testing.assert_allclose(got.by_channel.sum(axis=1), scored.astype(float), atol=1e-5)
    assert ((got.coverage >= 0) & (got.coverage <= 1)).all()
    assert (got.status[batch.asset == NAMES.index("stranger")] == Status.WARMING).all()


def test_what_was_handed_in_is_not_written_to(engine):
    slots, batch = engine.allocate(NAMES), rows()
    for array in (batch.x, batch.observed, batch.continuity, slots):
        array.setflags(write=False)
    first = engine.push([(batch, slots[batch.asset])])[0]
    kept = first.score.copy()
    engine.push([(rows(seed=9), slots[rows(seed=9).asset])])
    np.testing.assert_array_equal(first.score, kept)


def test_windows_come_out_right_aligned_with_nothing_before_them(engine):
    slots, batch = engine.allocate(NAMES), rows(30)
    engine.fill([(batch, slots[batch.asset])])
    raw = engine.dump(slots)
    for code in range(len(NAMES)):
        mine = np.flatnonzero(batch.asset == code)
        starts = np.flatnonzero(batch.continuity[mine])
        mine = mine[starts[-1] :] if len(starts) else mine
        mine = mine[-engine.rows_kept :]
        assert raw.count[code] == len(mine)
        np.testing.assert_array_equal(raw.x[code, engine.rows_kept - len(mine) :], batch.x[mine])
        np.testing.assert_array_equal(raw.observed[code, engine.rows_kept - len(mine) :], batch.observed[mine])
        assert not raw.x[code, : engine.rows_kept - len(mine)].any()
        assert not raw.observed[code, : engine.rows_kept - len(mine)].any()


@pytest.mark.parametrize("cut", [0, 1, 17, 60, 119])
def test_windows_that_are_put_back_go_on_bit_by_bit(engine, cut):
    batch = rows()
    slots = engine.allocate(NAMES)
    want = engine.push([(batch, slots[batch.asset])])[0].score[cut:]
    first, second = batch.take(slice(0, cut)), batch.take(slice(cut, None))
    before, after = engine.allocate(NAMES), engine.allocate(NAMES)
    engine.push([(first, before[first.asset])])
    engine.load(after, engine.dump(before))
    got = engine.push([(second, after[second.asset])])[0].score
    assert got.tobytes() == want.tobytes()


def test_a_slot_that_was_freed_comes_back_empty(engine):
    slots, batch = engine.allocate(NAMES), rows()
    engine.fill([(batch, slots[batch.asset])])
    engine.drop(slots)
    again = engine.allocate(NAMES)
    assert set(again.tolist()) == set(slots.tolist())
    assert engine.dump(again).count.tolist() == [0] * len(NAMES)
    got = engine.push([(batch, again[batch.asset])])[0]
    assert got.status[0] == Status.WARMING


def test_assets_do_not_share_slots_however_many_come(engine):
    many = engine.allocate([f"a{i % 40}" for i in range(1000)])
    more = engine.allocate(NAMES)
    assert len(set(many.tolist()) | set(more.tolist())) == 1000 + len(NAMES)


def test_what_does_not_fit_is_refused_with_an_error_of_ours(engine):
    slots = engine.allocate(NAMES)
    wide = grid_rows(3, 7, 1)
    with pytest.raises(PipelineError):
        engine.push([(wide, slots[wide.asset])])
    with pytest.raises(PipelineError):
        engine.fill([(rows(3), np.array([0, 1, 99_999], np.int32))])
    raw = engine.dump(slots)
    with pytest.raises(PipelineError):
        engine.load(slots[:2], raw)
    with pytest.raises(PipelineError):
        engine.load(slots, RawWindows(raw.x[:, 1:], raw.observed[:, 1:], raw.count))


def test_quality_codes_are_none_of_its_business(engine):
    slots, batch = engine.allocate(NAMES), rows()
    other = batch.take(slice(None))
    other.quality[:] = Quality.STUCK
    first = engine.push([(batch, slots[batch.asset])])[0]
    again = engine.allocate(NAMES)
    second = engine.push([(other, again[other.asset])])[0]
    assert first.score.tobytes() == second.score.tobytes()
