from dataclasses import replace

import numpy as np
import pytest
from naive_engine import make_bundle

from models.fitted_members import fitted_affine, fitted_aggregation, principal, signature_of
from models.reconstruction import fitted_module
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError

DENSE = MemberSpec("dense", 4, aggregate="ztop", params={"hidden": (8,), "latent": 2})
BUNDLE = make_bundle([MemberSpec("pca", 4), DENSE], groups=2)


def without(name):
    return replace(BUNDLE, tensors={n: t for n, t in BUNDLE.tensors.items() if n != name})


def with_tensor(name, value):
    return replace(BUNDLE, tensors={**BUNDLE.tensors, name: np.asarray(value, np.float32)})


def test_components_that_lack_a_tensor_or_have_another_shape_are_refused_by_name():
    with pytest.raises(BundleError, match=r"lacks the tensors g1\.m0\.noise"):
        principal(without("g1.m0.noise"), 1, 0)
    for name in ("mean", "components", "variance", "noise"):
        with pytest.raises(BundleError, match=r"g1\.m0\.\{mean, components, variance, noise\} are"):
            principal(with_tensor(f"g1.m0.{name}", np.zeros(3)), 1, 0)
    assert principal(without("g1.m0.noise"), 0, 0).mean.shape == (20,)


def test_the_ridge_is_never_so_small_that_gaps_are_ill_posed():
    assert (principal(with_tensor("g0.m0.noise", 0), 0, 0).ridge == 1e-5).all()


def test_weights_that_lack_one_or_have_one_more_are_refused():
    for bundle in (without("g0.m1.encoder.0.bias"), with_tensor("g0.m1.more", np.zeros(1))):
        with pytest.raises(BundleError, match=r"tensors g0\.m1\.\* do not fit a dense member"):
            fitted_module(bundle, 0, 1)
        with pytest.raises(BundleError, match=r"tensors g0\.m1\.\* do not fit a dense member"):
            fitted_affine(bundle, 0, 1, 5)


def test_an_aggregation_is_a_copy_of_what_it_needs_in_float64():
    found = fitted_aggregation(BUNDLE, 1, 1)
    assert {name: array.dtype for name, array in found.items()} == {"median": np.float64, "mad": np.float64}
    np.testing.assert_array_equal(found["mad"], BUNDLE.tensor(1, 1, "agg.mad"))
    with pytest.raises(BundleError, match=r"needs agg\.mad"):
        fitted_aggregation(without("g1.m1.agg.mad"), 1, 1)


def test_members_of_equal_shapes_have_one_signature():
    assert signature_of(BUNDLE, 0, 1) == signature_of(BUNDLE, 1, 1) != signature_of(BUNDLE, 1, 0)
