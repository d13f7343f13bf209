import numpy as np
import pytest
import torch
from naive_engine import NaiveEngine, make_bundle, make_rows

from models.aggregation import aggregate, combine
from models.engine import HostEngine, open_engine
from models.fitting import fit_bundle
from models.residuals import channel_residuals
from models.scaling import scale
from models.series import Series
from models.train_spec import TrainSpec
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError, ShapeError, StateError
from pipeline.values import Continuity, Status

torch.set_num_threads(1)

PCA = MemberSpec("pca", 7)
DENSE = MemberSpec("dense", 4, params={"hidden": (12, 9), "latent": 3})
CONV = MemberSpec("conv", 6, params={"hidden": (7,), "latent": 3, "kernels": (5, 3)})
ENSEMBLES = {
    "pca": [PCA],
    "pca, whole window": [MemberSpec("pca", 7, error="window")],
    "dense": [DENSE],
    "dense, whole window": [MemberSpec("dense", 4, error="window", params=DENSE.params)],
    "dense, batch norm": [MemberSpec("dense", 4, params={**DENSE.params, "batch_norm": True, "dropout": 0.2})],
    "conv": [CONV],
    "conv, whole window": [MemberSpec("conv", 6, error="window", params=CONV.params)],
    "pca and dense": [PCA, DENSE],
    "three with other windows": [PCA, DENSE, CONV],
    "ztop": [MemberSpec("pca", 7, aggregate="ztop"), MemberSpec("dense", 4, "window", "ztop", DENSE.params)],
    "mahalanobis": [MemberSpec("pca", 7, aggregate="mahalanobis"), MemberSpec("conv", 6, "last", "mahalanobis")],
}


def pushed(bundle, rows, device=None):
    engine = open_engine(bundle, device or "cpu")
    slots = engine.allocate([f"a{i}" for i in range(int(rows.asset.max()) + 1)])
    return engine.push([(rows, slots[rows.asset])])[0]


@pytest.mark.parametrize("missing", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_scores_equal_those_of_the_slow_oracle(name, missing):
    bundle = make_bundle(ENSEMBLES[name], groups=2, seed=3)
    rows = make_rows(300, 5, assets=4, seed=4, missing=missing, restarts=0.01)
    got = pushed(bundle, rows)
    naive = NaiveEngine(bundle)
    want = naive.push(rows, naive.allocate([f"a{i}" for i in range(4)])[rows.asset])
    status, score, by_channel, expected, coverage = (np.array(column) for column in zip(*want, strict=True))
    assert (status == Status.CALIBRATED).sum() > 100
    np.testing.assert_array_equal(got.status, status)
    np.testing.assert_allclose(got.score, score, rtol=2e-4)
    np.testing.assert_allclose(got.by_channel, by_channel, atol=2e-4)
    np.testing.assert_allclose(got.expected, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.coverage, coverage, rtol=1e-6)


def test_shares_sum_to_one_and_leave_out_what_was_not_observed():
    rows = make_rows(400, 5, assets=3, missing=0.2)
    got = pushed(make_bundle(ENSEMBLES["pca and dense"]), rows)
    scored = got.status == Status.CALIBRATED
    np.testing.assert_allclose(got.by_channel[scored].sum(axis=1), 1, rtol=1e-6)
    assert (got.by_channel[~scored] == 0).all()
    assert (got.by_channel[~rows.observed] == 0).all()


def test_actual_is_the_row_as_it_came_and_expected_is_beside_it_where_it_was_observed():
    rows = make_rows(200, 5, assets=2, missing=0.1)
    got = pushed(make_bundle(ENSEMBLES["pca"]), rows)
    np.testing.assert_array_equal(got.actual, np.where(rows.observed, rows.x, np.nan))
    scored = got.status == Status.CALIBRATED
    np.testing.assert_array_equal(np.isfinite(got.expected), rows.observed & scored[:, None])


def test_a_window_that_is_not_full_is_warming_and_has_no_score():
    rows = make_rows(10, 5, assets=1)
    got = pushed(make_bundle([PCA]), rows)
    assert (got.status[:6] == Status.WARMING).all()
    assert np.isnan(got.score[:6]).all()
    assert (got.status[6:] == Status.CALIBRATED).all()
    assert np.isfinite(got.score[6:]).all()


@pytest.mark.parametrize("code", [Continuity.NEW_WINDOW, Continuity.FRESH])
def test_a_new_window_warms_up_again(code):
    rows = make_rows(20, 5, assets=1)
    rows.continuity[10] = code
    got = pushed(make_bundle([PCA]), rows)
    assert got.status.tolist() == [0] * 6 + [2] * 4 + [0] * 6 + [2] * 4


def test_a_row_with_nothing_observed_is_abstained_from():
    rows = make_rows(12, 5, assets=1)
    rows.observed[9], rows.x[9] = False, 0
    got = pushed(make_bundle([PCA]), rows)
    assert got.status.tolist() == [0] * 6 + [2] * 3 + [3] + [2] * 2
    assert np.isnan(got.score[9])


def test_a_window_that_is_mostly_unobserved_is_abstained_from():
    rows = make_rows(8, 6, assets=1)
    rows.observed[:] = True
    rows.observed[:, :3] = False  # exactly half is enough
    rows.observed[7, 3] = False  # one reading less is not
    rows.x[~rows.observed] = 0
    got = pushed(make_bundle([PCA], channels=6), rows)
    assert got.status.tolist() == [0] * 6 + [2, 3]
    assert got.coverage[6] == 0.5


def test_one_lost_channel_of_sixteen_keeps_every_window_scored():
    rows = make_rows(60, 16, assets=1)
    rows.observed[:, 3], rows.x[:, 3] = False, 0
    got = pushed(make_bundle(ENSEMBLES["pca and dense"], channels=16), rows)
    assert (got.status[6:] == Status.CALIBRATED).all()
    np.testing.assert_allclose(got.coverage, 15 / 16)


def test_an_asset_that_no_group_scores_is_collected_for_ever():
    engine = open_engine(make_bundle([PCA]))
    rows = make_rows(20, 5, assets=1)
    slots = engine.allocate(["stranger"])
    got = engine.push([(rows, slots[rows.asset])])[0]
    assert (got.status == Status.WARMING).all()
    assert np.isnan(got.score).all()
    np.testing.assert_array_equal(engine.dump(slots).x[0], rows.x[-7:])


def test_an_asset_that_was_not_trained_on_gets_the_default_group():
    rows = make_rows(20, 5, assets=1)
    bundle = make_bundle([PCA], groups=2, default_group=1)
    engine = open_engine(bundle)
    stranger, known = engine.allocate(["stranger"]), engine.allocate(["a1"])
    got = engine.push([(rows, stranger[rows.asset]), (rows, known[rows.asset])])
    np.testing.assert_array_equal(got[0].score, got[1].score)
    assert np.isfinite(got[0].score[-1])


def test_huge_readings_give_a_finite_score():
    rows = make_rows(20, 5, assets=1)
    rows.x[12] = [3e38, -3e38, 1e30, 0, 1]
    got = pushed(make_bundle(ENSEMBLES["three with other windows"]), rows)
    assert np.isfinite(got.score[6:]).all()
    assert got.score[12] > got.score[11]


def test_scores_carry_the_rows_they_belong_to_and_the_bundle():
    rows = make_rows(10, 5, assets=2)
    got = pushed(make_bundle([PCA]), rows)
    for name in ("partition", "asset", "ts_ns", "offset", "row", "continuity"):
        np.testing.assert_array_equal(getattr(got, name), getattr(rows, name))
    assert got.model_id == "b1"


def test_rows_of_other_channels_are_refused_and_nothing_is_taken():
    engine = open_engine(make_bundle([PCA]))
    slots = engine.allocate(["a0"])
    good, bad = make_rows(3, 5, assets=1), make_rows(3, 6, assets=1)
    with pytest.raises(ShapeError, match=r"\(3, 6\)"):
        engine.push([(good, slots[good.asset]), (bad, slots[bad.asset])])
    with pytest.raises(ShapeError, match="2 slots"):
        engine.fill([(good, np.zeros(2, np.int32))])
    assert engine.dump(slots).count.tolist() == [0]


def test_a_slot_that_was_dropped_is_refused():
    engine = open_engine(make_bundle([PCA]))
    slots = engine.allocate(["a0", "a1"])
    engine.drop(slots[1:])
    rows = make_rows(3, 5, assets=2)
    with pytest.raises(StateError, match=f"slot {slots[1]}"):
        engine.push([(rows, slots[np.array([0, 1, 0])])])
    assert engine.dump(slots[:1]).count.tolist() == [0]


def test_a_bundle_with_a_missing_or_misshapen_tensor_is_refused():
    for name in ("g0.m0.components", "g0.m1.encoder.0.weight", "g0.m2.agg.median", "g0.scaler.scale"):
        bundle = make_bundle([PCA, DENSE, MemberSpec("pca", 7, aggregate="ztop")])
        tensors = {n: t for n, t in bundle.tensors.items() if n != name}
        with pytest.raises(BundleError, match=name.rsplit(".", 1)[1]):
            open_engine(make_bundle(bundle.members, tensors=tensors))
        tensors[name] = np.zeros((2, 3), np.float32)
        with pytest.raises(BundleError, match=name.rsplit(".", 1)[1]):
            open_engine(make_bundle(bundle.members, tensors=tensors))


def test_auto_takes_the_cpu_where_the_bundle_has_no_other_calibration():
    engine = open_engine(make_bundle([PCA]), "auto")
    assert engine.profile == "cpu-float32"
    assert engine.model_id == "b1"
    assert engine.rows_kept == 7


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_a_configuration_error(device):
    with pytest.raises(ConfigError, match=device):
        open_engine(make_bundle([PCA]), device)


def test_members_keep_all_their_batch_sizes_on_this_machine():
    assert HostEngine(make_bundle(ENSEMBLES["three with other windows"])).fallbacks == ()


@pytest.mark.parametrize(("error", "aggregation"), [("last", "mahalanobis"), ("window", "ztop"), ("last", "mse")])
def test_a_fitted_bundle_is_scored_with_the_residuals_it_was_fitted_on(error, aggregation):
    rows = make_rows(400, 5, assets=1, seed=7, missing=0.005)
    fields = {name: getattr(rows, name) for name in ("ts_ns", "x", "observed", "continuity")}
    series = Series(asset="pump", normal=np.ones(400, np.bool_), **fields)
    names = tuple(f"c{c}" for c in range(5))
    sizes = {"pca_window": 8, "dense_window": 4, "dense_hidden": (12,), "conv_window": 6, "conv_hidden": (8,)}
    sizes |= {"min_windows": 100, "steps": 20, "error": error, "aggregate": aggregation}
    bundle = fit_bundle([series], TrainSpec(names, 1, ("pca", "dense", "conv"), "fleet", **sizes))
    engine = open_engine(bundle)
    slots = engine.allocate(["pump"])
    got = engine.push([(rows, slots[rows.asset])])[0]
    scaler = (bundle.tensor(0, "scaler", "loc"), bundle.tensor(0, "scaler", "scale"), bundle.soft_clip)
    ends = np.flatnonzero(got.status == Status.CALIBRATED)
    errors = []
    for m, member in enumerate(bundle.members):
        prefix = f"g0.m{m}."
        tensors = {n.removeprefix(prefix): t for n, t in bundle.tensors.items() if n.startswith(prefix)}
        own = {name: t for name, t in tensors.items() if not name.startswith("agg.")}
        agg = {name[4:]: t for name, t in tensors.items() if name.startswith("agg.")}
        scaled = scale(rows.x, rows.observed, *scaler)
        residual, _ = channel_residuals(member, own, scaled, rows.observed, ends)
        back = 1 if error == "last" else member.window
        weight = np.stack([rows.observed[end - back + 1 : end + 1].sum(axis=0) for end in ends]).astype(np.float32)
        errors.append(aggregate(aggregation, residual, weight, agg))
    assert len(ends) > 350
    np.testing.assert_allclose(got.score[ends], combine(errors), rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ENSEMBLES)
def test_cuda_scores_equal_those_of_the_cpu(name):
    bundle = make_bundle(ENSEMBLES[name], groups=2)
    rows = make_rows(600, 5, assets=4, missing=0.1)
    np.testing.assert_allclose(pushed(bundle, rows, "cuda").score, pushed(bundle, rows).score, rtol=1e-4)
