"""A deployed member against the serving engine, which has its own slow oracle."""

import numpy as np
import pytest
import torch
from naive_engine import make_bundle

from models.deployed import DeployedMember
from models.export import engine_errors, made_up_windows
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError

torch.set_num_threads(1)

DENSE = {"hidden": (12, 9), "latent": 3}
CONV = {"hidden": (7,), "latent": 3, "kernels": (5, 3)}
SPECS = [
    MemberSpec(kind, window, error, aggregate, params)
    for kind, window, params in (("pca", 7, {}), ("dense", 4, DENSE), ("conv", 6, CONV))
    for error in ("last", "window")
    for aggregate in ("mse", "ztop", "mahalanobis")
]


def deployed(spec, x, observed, channels=5):
    module = DeployedMember(make_bundle([MemberSpec("pca", 2), spec], channels, groups=2), 1, 1).eval()
    with torch.inference_mode():
        return {n: v.numpy() for n, v in module(torch.from_numpy(x), torch.from_numpy(observed)).items()}


@pytest.mark.parametrize("channels", [5, 17])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.kind} {s.error} {s.aggregate}")
def test_errors_are_those_of_the_serving_engine(spec, channels):
    bundle = make_bundle([MemberSpec("pca", 2), spec], channels, groups=2)
    x, observed = made_up_windows(bundle, 1, 1)
    want = engine_errors(bundle, 1, 1, x, observed)
    scored = np.isfinite(want)
    assert scored.sum() > 200
    assert not observed[scored].all()
    np.testing.assert_allclose(deployed(spec, x, observed, channels)["error"][scored], want[scored], rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS[::3], ids=lambda s: f"{s.kind} {s.error}")
def test_what_was_not_observed_is_never_looked_at(spec):
    bundle = make_bundle([MemberSpec("pca", 2), spec], groups=2)
    x, observed = made_up_windows(bundle, 1, 1)
    filled = np.where(observed, x, np.float32(np.nan))
    plain, odd = deployed(spec, x, observed), deployed(spec, filled, observed)
    assert all(plain[name].tobytes() == odd[name].tobytes() for name in plain)
    assert (plain["residual"][plain["weight"] == 0] == 0).all()


def test_expected_is_in_input_units_and_finite():
    spec = SPECS[0]
    x, observed = np.full((3, 7, 5), 3e38, np.float32), np.ones((3, 7, 5), np.bool_)
    got = deployed(spec, x, observed)
    assert np.isfinite(got["expected"]).all()
    assert np.isfinite(got["error"]).all()


def test_a_window_of_which_nothing_counts_has_no_error():
    x, observed = np.zeros((2, 7, 5), np.float32), np.ones((2, 7, 5), np.bool_)
    observed[1, -1] = False
    assert np.isnan(deployed(SPECS[0], x, observed)["error"]).tolist() == [False, True]


def test_an_aggregation_without_its_tensors_is_refused():
    whole = make_bundle([SPECS[1]])
    tensors = {n: t for n, t in whole.tensors.items() if n != "g0.m0.agg.mad"}
    with pytest.raises(BundleError, match=r"agg\.mad"):
        DeployedMember(make_bundle([SPECS[1]], tensors=tensors), 0, 0)
