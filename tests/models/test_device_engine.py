"""The engine of a device, run on the CPU: against the host engine, and bit by bit against itself."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import make_bundle, make_rows

import models.device_rings
import models.engine
from models.device_engine import DeviceEngine
from models.device_members import DeviceMember
from models.engine import HostEngine, open_engine
from models.profiles import Profile
from pipeline.bundle import MemberSpec
from pipeline.errors import DeviceUnavailable, ShapeError, StateError
from pipeline.values import Rows, Status

torch.set_num_threads(1)

DENSE = {"hidden": (13, 9), "latent": 3, "batch_norm": True}
CONV = {"hidden": (7,), "latent": 3, "kernels": (5, 3)}
ENSEMBLES = {
    "last rows": [MemberSpec("pca", 7), MemberSpec("dense", 4, params=DENSE), MemberSpec("conv", 6, params=CONV)],
    "whole windows": [
        MemberSpec("pca", 4, "window"),
        MemberSpec("dense", 7, "window", "ztop", DENSE),
        MemberSpec("conv", 6, "window", "mahalanobis", CONV),
    ],
}
HERE = Profile("cpu")
BUCKETS = (8, 64)
CHANNELS, ASSETS = 5, 6
NAMES = [f"a{i}" for i in range(ASSETS)]
CASES = settings(deadline=None, max_examples=10)
needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@cache
def bundle_of(name):
    return make_bundle(ENSEMBLES[name], CHANNELS, groups=2)


@cache
def device_engine(name="whole windows"):
    return DeviceEngine(bundle_of(name), HERE, BUCKETS)


@cache
def rows_of(seed, n=400, assets=ASSETS, missing=0.02):
    return make_rows(n, CHANNELS, assets, seed, missing, restarts=0.005)


def pushed(engine, rows, cuts=()):
    slots = engine.allocate(NAMES)
    parts = [rows.take(slice(a, b)) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    out = [engine.push([(part, slots[part.asset])])[0] for part in parts]
    engine.drop(slots)
    return {
        name: np.concatenate([getattr(scores, name) for scores in out])
        for name in ("score", "by_channel", "expected", "actual", "coverage", "status")
    }


def same_bits(got, want):
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)


@cache
def whole(seed):
    return pushed(device_engine(), rows_of(seed))


def close(got, want, rtol):
    np.testing.assert_array_equal(got["status"], want["status"])
    np.testing.assert_array_equal(got["coverage"], want["coverage"])
    np.testing.assert_array_equal(got["actual"], want["actual"])
    np.testing.assert_allclose(got["score"], want["score"], rtol=rtol)
    np.testing.assert_allclose(got["by_channel"], want["by_channel"], atol=rtol)
    np.testing.assert_allclose(got["expected"], want["expected"], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("missing", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_scores_equal_those_of_the_host_engine(name, missing):
    rows = rows_of(3, missing=missing)
    want = pushed(HostEngine(bundle_of(name)), rows)
    assert (want["status"] == Status.CALIBRATED).sum() > 100
    close(pushed(device_engine(name), rows), want, 1e-5)


def test_all_batch_sizes_stay_in_use_on_this_machine():
    assert device_engine().buckets == BUCKETS
    assert device_engine().fallbacks == ()


@CASES
@given(st.integers(0, 3), st.lists(st.integers(0, 400), max_size=6))
def test_cutting_the_input_into_other_batches_changes_no_bit(seed, cuts):
    same_bits(pushed(device_engine(), rows_of(seed), sorted(cuts)), whole(seed))


def test_one_row_at_a_time_changes_no_bit():
    same_bits(pushed(device_engine(), rows_of(0), range(1, 400)), whole(0))


def test_many_rows_of_one_asset_in_one_batch_are_scored_before_they_are_overwritten():
    """A device ring holds 14 rows, so that 400 rows of one asset take many pieces."""
    alone = make_rows(400, CHANNELS, 1, seed=5, missing=0.02)
    want = pushed(device_engine(), alone, range(1, 400))
    same_bits(pushed(device_engine(), alone), want)
    close(want, pushed(HostEngine(bundle_of("whole windows")), alone), 1e-5)


@pytest.mark.parametrize("cut", [0, 3, 7, 15, 200])
def test_windows_go_to_another_engine_and_back_without_a_bit_of_difference(cut):
    rows, engine, other = rows_of(1), device_engine(), HostEngine(bundle_of("whole windows"))
    first, second = rows.take(slice(0, cut)), rows.take(slice(cut, None))
    slots, there, back = engine.allocate(NAMES), other.allocate(NAMES), engine.allocate(NAMES)
    engine.push([(first, slots[first.asset])])
    other.load(there, engine.dump(slots))
    engine.load(back, other.dump(there))
    got = engine.push([(second, back[second.asset])])[0]
    assert got.score.tobytes() == whole(1)["score"][cut:].tobytes()
    engine.drop(slots)
    engine.drop(back)


def test_filling_and_then_scoring_equals_scoring_all_along():
    rows, engine = rows_of(2), device_engine()
    first, second = rows.take(slice(0, 150)), rows.take(slice(150, None))
    slots = engine.allocate(NAMES)
    engine.fill([(first, slots[first.asset])])
    got = engine.push([(second, slots[second.asset])])[0]
    engine.drop(slots)
    assert got.score.tobytes() == whole(2)["score"][150:].tobytes()


def test_rings_that_move_to_a_larger_table_keep_their_windows():
    rows, engine = rows_of(2), DeviceEngine(bundle_of("whole windows"), HERE, BUCKETS)
    first, second = rows.take(slice(0, 150)), rows.take(slice(150, None))
    slots = engine.allocate(NAMES)
    engine.push([(first, slots[first.asset])])
    engine.allocate([f"b{i}" for i in range(100)])
    got = engine.push([(second, slots[second.asset])])[0]
    assert got.score.tobytes() == whole(2)["score"][150:].tobytes()


def test_more_windows_with_gaps_than_a_piece_has_room_for(monkeypatch):
    rows = rows_of(4, missing=0.2)
    want = pushed(device_engine(), rows)
    monkeypatch.setattr(models.device_rings, "HOLES", 3)
    same_bits(pushed(DeviceEngine(bundle_of("whole windows"), HERE, BUCKETS), rows), want)


def test_several_partitions_come_back_in_order():
    engine, rows = device_engine(), rows_of(0)
    slots = engine.allocate(NAMES)
    got = engine.push([(rows.take(slice(0, 130)), slots[rows.asset[:130]]), (Rows.empty(1, CHANNELS), slots[:0])])
    assert [len(scores) for scores in got] == [130, 0]
    assert got[0].score.tobytes() == whole(0)["score"][:130].tobytes()
    engine.drop(slots)


def test_a_batch_size_with_other_bits_is_left_out(monkeypatch):
    compare = DeviceMember.compare

    def moody(self, x, last, into):
        compare(self, x, last, into)
        into += len(x) == 8

    monkeypatch.setattr(DeviceMember, "compare", moody)
    engine = DeviceEngine(bundle_of("last rows"), HERE, (8, 32, 64))
    assert engine.buckets == (32, 64)
    assert engine.fallbacks == ("8",)


def test_products_that_depend_on_the_place_are_made_row_by_row(monkeypatch):
    compare = DeviceMember.compare

    def moody(self, x, last, into):
        compare(self, x, last, into)
        into += 1e-3 * torch.arange(len(x))[:, None]

    rows = rows_of(0, 60)
    want = pushed(HostEngine(bundle_of("last rows")), rows)
    monkeypatch.setattr(DeviceMember, "compare", moody)
    engine = DeviceEngine(bundle_of("last rows"), HERE, BUCKETS)
    assert engine.buckets == (1,)
    close(pushed(engine, rows), want, 1e-5)


def test_bfloat16_rounds_the_networks_and_nothing_else():
    rows = rows_of(0)
    engine = DeviceEngine(bundle_of("last rows"), Profile("cpu", "bfloat16"), BUCKETS)
    assert engine.profile == "cpu-bfloat16"
    got, want = pushed(engine, rows), pushed(device_engine("last rows"), rows)
    assert got["score"].tobytes() != want["score"].tobytes()
    close(got, want, 0.1)
    pca = make_bundle([MemberSpec("pca", 7)], CHANNELS)
    both = [pushed(DeviceEngine(pca, Profile("cpu", p), BUCKETS), rows) for p in ("bfloat16", "float32")]
    same_bits(*both)


@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_device_that_is_lost_or_full_says_so_and_windows_can_still_be_saved(monkeypatch, error):
    engine, rows = DeviceEngine(bundle_of("last rows"), HERE, BUCKETS), rows_of(0, 50)
    slots = engine.allocate(NAMES)
    engine.push([(rows, slots[rows.asset])])
    want = engine.dump(slots)

    def lost(*_):
        raise error("device-side assert")

    monkeypatch.setattr(DeviceMember, "compare", lost)
    with pytest.raises(DeviceUnavailable, match="device cpu failed"):
        engine.push([(rows.take(slice(0, 0)), slots[:0]), (rows, slots[rows.asset])])
    assert engine.dump(slots).x.shape == want.x.shape


def test_what_does_not_fit_is_refused_before_anything_is_taken():
    engine = device_engine()
    slots = engine.allocate(NAMES)
    with pytest.raises(ShapeError):
        engine.push([(make_rows(3, 7, 1), slots[:3])])
    engine.drop(slots[:1])
    with pytest.raises(StateError):
        engine.push([(rows_of(0, 20), slots[rows_of(0, 20).asset])])
    assert engine.dump(slots[1:]).count.tolist() == [0] * (ASSETS - 1)
    engine.drop(slots[1:])


def test_cuda_is_served_by_it(monkeypatch):
    opened = []
    monkeypatch.setattr(models.engine, "choose", lambda *_: Profile("cuda", "tf32"))
    monkeypatch.setattr("models.device_engine.DeviceEngine", lambda *given: opened.append(given))
    open_engine(bundle_of("last rows"), "cuda", "tf32")
    assert opened == [(bundle_of("last rows"), Profile("cuda", "tf32"))]


@pytest.mark.parametrize(
    ("precision", "rtol"),
    [pytest.param(p, t, marks=needs_cuda) for p, t in (("float32", 1e-4), ("tf32", 0.05), ("bfloat16", 0.1))],
)
@pytest.mark.parametrize("name", ENSEMBLES)
def test_cuda_agrees_with_the_host_engine_and_graphs_with_what_they_captured(name, precision, rtol):
    rows = rows_of(3)
    engine = DeviceEngine(bundle_of(name), Profile("cuda", precision), BUCKETS)
    first = pushed(engine, rows, range(50, 400, 50))  # plain, captured, replayed
    close(first, pushed(HostEngine(bundle_of(name)), rows), rtol)
    same_bits(pushed(engine, rows), first)
