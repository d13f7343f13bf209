from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_engine import make_bundle, make_rows, soft_clip

from models.device_members import DeviceMember
from models.engine import open_engine
from models.fitting import fit_bundle
from models.pca import PrincipalComponents, q_statistic, reconstruct, scores, t_squared
from models.series import Series
from models.train_spec import TrainSpec
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError
from pipeline.values import Status

torch.set_num_threads(1)

CHANNELS, WINDOW = 5, 4
LIMIT = np.array([0.7, 9.0], np.float32)


def bundle_of(statistic, error="last"):
    made = make_bundle([MemberSpec("pca", WINDOW, error, params={"statistic": statistic})], channels=CHANNELS)
    return replace(made, tensors={**made.tensors, "g0.m0.limit": LIMIT})


def naive(bundle, rows, statistic):
    """Errors and shares of one asset's rows by the functions of `models.pca`, and by M^(1/2) as the paper writes it."""
    t = {n.removeprefix("g0.m0."): v.astype(np.float64) for n, v in bundle.tensors.items() if n.startswith("g0.m0.")}
    pca = PrincipalComponents(t["mean"], t["components"], t["variance"], float(t["noise"]))
    loc, scale = (bundle.tensor(0, "scaler", n).astype(np.float64) for n in ("loc", "scale"))
    x = np.where(rows.observed, soft_clip((rows.x.astype(np.float64) - loc) / scale, 3.0), 0)
    values, vectors = np.linalg.eigh(pca.components.T @ np.diag(1 / pca.variance) @ pca.components)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    errors, shares = np.full(len(x), np.nan), np.zeros((len(x), CHANNELS))
    last = bundle.members[0].error == "last"
    for i in range(WINDOW - 1, len(x)):
        part, seen = x[i - WINDOW + 1 : i + 1].reshape(1, -1), rows.observed[i - WINDOW + 1 : i + 1].reshape(1, -1)
        if not rows.observed[i].any() or seen.mean() < 0.5:
            continue
        found = scores(pca, part, seen)
        back = reconstruct(pca, found)
        at = slice(-CHANNELS if last else None, None)
        q = q_statistic(part[:, at], back[:, at], seen[:, at])[0]
        off = np.where(seen, part - back, 0)[:, at] ** 2
        of_q = off.reshape(-1, CHANNELS).sum(axis=0) / seen[:, at].sum()
        of_t = ((root @ (pca.components.T @ found[0])) ** 2).reshape(WINDOW, CHANNELS).sum(axis=0)
        np.testing.assert_allclose(of_t.sum(), t_squared(pca, found)[0], rtol=1e-6)
        if statistic == "t2":
            errors[i], both = t_squared(pca, found)[0], of_t
        else:
            errors[i], both = q / LIMIT[0] + t_squared(pca, found)[0] / LIMIT[1], of_q / LIMIT[0] + of_t / LIMIT[1]
        both = np.where(rows.observed[i], both, 0)
        shares[i] = both / both.sum()
    return errors, shares


@pytest.mark.parametrize("error", ["last", "window"])
@pytest.mark.parametrize("statistic", ["t2", "combined"])
@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_errors_and_shares_are_those_of_the_equations(statistic, error, missing):
    bundle = bundle_of(statistic, error)
    rows = make_rows(60, CHANNELS, assets=1, seed=3, missing=missing)
    engine = open_engine(bundle, "cpu")
    got = engine.push([(rows, np.zeros(60, np.int32) + engine.allocate(["a0"])[0])])[0]
    errors, shares = naive(bundle, rows, statistic)
    np.testing.assert_array_equal(np.isfinite(got.score), np.isfinite(errors))
    np.testing.assert_allclose(got.score, errors, rtol=2e-4)
    np.testing.assert_allclose(got.by_channel, shares, atol=2e-4)
    scored = got.status == Status.CALIBRATED
    assert scored.sum() > 20
    np.testing.assert_allclose(got.by_channel[scored].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("statistic", ["t2", "combined"])
def test_a_rows_bits_do_not_depend_on_the_batch(statistic):
    bundle = bundle_of(statistic)
    rows = make_rows(90, CHANNELS, assets=3, seed=4, missing=0.1)

    def run(pieces):
        engine = open_engine(bundle, "cpu")
        slots = engine.allocate(["a0", "a1", "a2"])
        parts = [rows.take(p) for p in np.array_split(np.arange(90), pieces)]
        said = [engine.push([(part, slots[part.asset])])[0] for part in parts]
        return [np.concatenate([getattr(s, name) for s in said]) for name in ("score", "by_channel")]

    for one, other in zip(run(1), run(90), strict=True):
        np.testing.assert_array_equal(one, other)


def test_t_squared_sees_what_q_does_not():
    n = 900
    random = np.random.default_rng(1)
    x = (random.normal(size=(n, 1)) @ np.ones((1, CHANNELS)) + 0.2 * random.normal(size=(n, CHANNELS))).astype(
        np.float32
    )
    x[-20:] += 8  # all channels together: within the model, and far from usual
    series = Series(
        "a", np.arange(n) * 1_000_000_000, x, np.ones(x.shape, np.bool_), np.zeros(n, np.uint8), np.arange(n) < 600
    )
    found = {}
    for statistic in ("q", "t2", "combined"):
        spec = TrainSpec(
            channels=tuple("abcde"), period_ns=1_000_000_000, members=("pca",), per_group="fleet", pca_window=2,
            pca_variance=0.8, pca_statistic=statistic,
        )  # fmt: skip
        bundle = fit_bundle([series], spec)
        assert ("g0.m0.limit" in bundle.tensors) == (statistic != "q")
        engine = open_engine(bundle, "cpu")
        rows = make_rows(n, CHANNELS, 1)
        rows = replace(rows, x=x, observed=series.observed, asset=np.zeros(n, np.int32), continuity=series.continuity)
        got = engine.push([(rows, np.full(n, engine.allocate(["a"])[0], np.int32))])[0].score
        found[statistic] = np.median(got[-18:]) / np.percentile(got[1:600], 99)
        if statistic == "combined":  # each part is about 1 at its limit
            assert 0.5 < np.percentile(got[1:600], 99) < 2.5
    assert found["q"] < 2
    assert found["t2"] > 3
    assert found["combined"] > 2


def test_what_cannot_be_served_is_refused():
    with pytest.raises(BundleError, match="needs one of"):
        open_engine(bundle_of("hotelling"), "cpu")
    lacking = bundle_of("t2")
    lacking = replace(lacking, tensors={n: t for n, t in lacking.tensors.items() if n != "g0.m0.limit"})
    with pytest.raises(BundleError, match="limit"):
        open_engine(lacking, "cpu")
    with pytest.raises(BundleError, match="the engine on CUDA knows the Q of a pca member, not 't2'"):
        DeviceMember(bundle_of("t2"), 0, 0, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match="pca_statistic"):
        TrainSpec(channels=("a", "b"), period_ns=1, pca_statistic="t2", aggregate="ztop")
    with pytest.raises(ConfigError, match="pca_statistic"):
        TrainSpec(channels=("a", "b"), period_ns=1, pca_statistic="T2")
