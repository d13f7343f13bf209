"""Layers derived from a bundle's arrays, held against the torch modules of the same networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from modules import affine_of, convolutions_of, weights_of
from naive_engine import make_bundle

from models.autoencoders import build_module
from models.fitted_members import fitted_affine, fitted_convolutions
from models.networks import NETWORKS, default_latent, misfits, network_of, shapes_of
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError

torch.set_num_threads(1)

DENSE = [
    {},
    {"hidden": [], "latent": 2},
    {"hidden": [8], "latent": 3, "batch_norm": True, "dropout": 0.5, "linear_bottleneck": False},
    {"hidden": [9, 7], "latent": 2, "batch_norm": True},
]
CONV = [{}, {"hidden": [], "latent": 1, "kernels": [3], "strides": [3]}]
CONV += [{"hidden": [4, 5], "latent": 2, "kernels": [7, 5, 3], "strides": [2, 1, 3]}]
MEMBERS = [MemberSpec("dense", 5, params=p) for p in DENSE]
MEMBERS += [MemberSpec(kind, 13, params=p) for kind in ("conv", "stream") for p in CONV]


def name_of(member):
    return f"{member.kind} {dict(member.params)}"


def trained(member, channels):
    """Return its module with weights and statistics that are none of a fresh one."""
    torch.manual_seed(1)
    module = build_module(member, channels).eval()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else 0.4 * torch.randn_like(value))
    return module


def multiplied(layers, x):
    for weight, bias, relu in layers:
        x = x @ weight.T.astype(np.float64) + bias
        x = np.maximum(x, 0) if relu else x
    return x


def convolved(net, x):
    """One window (W, C), tap by tap."""
    x = np.concatenate([np.zeros((net.before, net.channels)), x])
    for weight, bias, stride, padding, relu, transposed in net.layers:
        steps = len(x) * stride if transposed else -(-len(x) // stride)
        out = np.tile(bias.astype(np.float64), (steps, 1))
        for t in range(steps):
            for tap in range(len(weight)):
                at, off = divmod(t + padding - tap, stride) if transposed else (t * stride - padding + tap, 0)
                if off == 0 and 0 <= at < len(x):
                    out[t] += x[at] @ weight[tap]
        x = np.maximum(out, 0) if relu else out
    return x[net.before :]


def test_every_kind_is_tried():
    assert {member.kind for member in MEMBERS} == set(NETWORKS)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_the_layers_say_what_the_module_says(member, channels):
    module = trained(member, channels)
    x = np.random.default_rng(0).normal(size=(member.window, channels))
    with torch.inference_mode():
        want = module.double()(torch.tensor(x)[None], torch.ones(1, *x.shape, dtype=torch.float64))[0].numpy()
    if member.kind == "dense":
        got = multiplied(affine_of(module.float(), x.size), x.reshape(1, -1)).reshape(x.shape)
        only = multiplied(affine_of(module, channels), x.reshape(1, -1))
        np.testing.assert_allclose(only[0], want[-1], rtol=1e-5, atol=1e-5)
    else:
        got = convolved(convolutions_of(module.float()), x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_tensors_have_the_names_and_shapes_of_the_module(member):
    weights = weights_of(build_module(member, 4))
    network = network_of(member, 4)
    assert shapes_of(network) == {name: value.shape for name, value in weights.items()}
    assert misfits(network, weights) == ""


@pytest.mark.parametrize("member", MEMBERS, ids=name_of)
def test_a_tensor_that_is_missing_misshapen_or_unknown_is_refused_by_name(member):
    bundle = make_bundle([replace(member, window=20)])
    fitted = (
        (lambda b: fitted_affine(b, 0, 0, 5)) if member.kind == "dense" else (lambda b: fitted_convolutions(b, 0, 0))
    )
    fitted(bundle)
    for name in shapes_of(network_of(bundle.members[0], 5)):
        full = f"g0.m0.{name}"
        missing = {n: t for n, t in bundle.tensors.items() if n != full}
        for tensors, said in (
            (missing, f"{name} is missing"),
            (missing | {full: np.zeros((2, 7, 1, 1), np.float32)}, rf"{name} is \(2, 7, 1, 1\), not"),
            ({**bundle.tensors, f"{full}s": np.zeros(1)}, f"{name}s is not known"),
        ):
            with pytest.raises(BundleError, match=said):
                fitted(replace(bundle, tensors=tensors))


def test_a_kind_or_parameter_that_is_not_known_is_refused_by_name():
    with pytest.raises(BundleError, match="conv, dense"):
        network_of(MemberSpec("transformer", 8), 2)
    with pytest.raises(BundleError, match="heads"):
        network_of(MemberSpec("dense", 8, params={"heads": 2}), 2)


def test_layers_are_copies():
    bundle = make_bundle([MemberSpec("dense", 4), MemberSpec("conv", 4)])
    before = {name: tensor.copy() for name, tensor in bundle.tensors.items()}
    for layer in (*fitted_affine(bundle, 0, 0, 20), *fitted_convolutions(bundle, 0, 1).layers):
        layer.weight[:] = 7
        layer.bias[:] = 7
    for name, tensor in before.items():
        np.testing.assert_array_equal(bundle.tensors[name], tensor)


def test_the_default_bottleneck_is_much_smaller_than_the_window():
    assert default_latent("dense", 16, 38) == 16
    assert default_latent("dense", 16, 8) == 16
    assert default_latent("dense", 16, 1) == 2
    assert default_latent("dense", 64, 50) == 64
    assert default_latent("conv", 32, 38) == 8
    assert default_latent("conv", 32, 1) == 1
