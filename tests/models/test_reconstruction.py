import numpy as np
import pytest
import torch
from naive_engine import make_bundle

from models.engine_buffers import Workspace
from models.engine_members import build_member
from models.profiles import FALLBACK
from models.reconstruction import reconstruction
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError

torch.set_num_threads(1)

DENSE = {"hidden": (12, 9), "latent": 3, "batch_norm": True, "dropout": 0.2}
CONV = {"hidden": (7,), "latent": 3, "kernels": (5, 3)}
MEMBERS = [MemberSpec("pca", 7), MemberSpec("dense", 4, params=DENSE), MemberSpec("conv", 6, params=CONV)]
WHOLE = [MemberSpec(m.kind, m.window, "window", params=m.params) for m in MEMBERS]


@pytest.mark.parametrize("spec", MEMBERS + WHOLE, ids=lambda spec: f"{spec.kind} {spec.error}")
def test_a_module_reconstructs_what_the_serving_member_does(spec):
    bundle = make_bundle([MemberSpec("pca", 2), spec], groups=2)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(8, spec.window * 5)).astype(np.float32))
    space = Workspace(FALLBACK)
    with torch.inference_mode():
        got = reconstruction(bundle, 1, 1)(x)
    want = build_member(bundle, 1, 1, space).expect(x.numpy())
    assert got.shape == (8, 5 if spec.error == "last" else spec.window * 5)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_nothing_of_it_wants_a_gradient_and_the_random_state_stays():
    bundle = make_bundle(MEMBERS)
    before = torch.get_rng_state()
    for index in range(3):
        module = reconstruction(bundle, 0, index)
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["g0.m0.mean", "g0.m0.components", "g0.m1.encoder.0.weight", "g0.m2.decoder.0.bias"])
def test_a_tensor_that_is_missing_or_misshapen_is_refused(name):
    whole = make_bundle(MEMBERS)
    index = int(name[4])
    tensors = {n: t for n, t in whole.tensors.items() if n != name}
    with pytest.raises(BundleError, match=name.rsplit(".", 1)[1]):
        reconstruction(make_bundle(MEMBERS, tensors=tensors), 0, index)
    tensors[name] = np.zeros((2, 3), np.float32)
    with pytest.raises(BundleError, match=name.rsplit(".", 1)[1]):
        reconstruction(make_bundle(MEMBERS, tensors=tensors), 0, index)
