"""Dense members in int8 against plain integer arithmetic, one row at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import make_bundle, make_rows

from models.engine import open_engine
from models.engine_buffers import Workspace, aligned
from models.engine_int8 import Int8Dense
from models.networks import Affine
from models.profiles import Profile
from pipeline.bundle import MemberSpec

torch.set_num_threads(1)

INT8 = Profile("cpu", "int8")


def naive(x, layers):
    """Exact sums of integer codes, row by row; steps and what follows in float64."""
    for weight, bias, relu in layers:
        step = np.abs(weight).max(1) / 63
        step[step == 0] = 1
        codes = np.rint(weight / step[:, None]).astype(np.int64)
        out = []
        for row in x:
            scale = np.abs(row).max() / 127 or 1.0
            out.append((codes @ np.floor(row / scale + 0.5).astype(np.int64)) * step * scale + bias)
        x = np.maximum(out, 0) if relu else np.array(out)
    return x


def layers_of(sizes, seed):
    g = np.random.default_rng(seed)
    pairs = list(pairwise(sizes))
    return [
        (g.normal(size=(m, n)).astype(np.float32), g.normal(size=m).astype(np.float32), i < len(pairs) - 1)
        for i, (n, m) in enumerate(pairs)
    ]


def member(layers):
    return Int8Dense([Affine(*layer) for layer in layers], Workspace(INT8))


def expected(member, x):
    room = aligned(*x.shape)
    room[:] = x
    return member.expect(room).copy()


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([1e-3, 1, 50]),
    st.integers(0, 99),
)
def test_a_chain_of_layers_says_what_exact_integers_say(sizes, rows, spread, seed):
    layers = layers_of(sizes, seed)
    x = (spread * np.random.default_rng(seed).normal(size=(rows, sizes[0]))).astype(np.float32)
    want = naive(x.astype(np.float64), layers)
    # a code may fall on the other side of a half: one step of one input
    step = np.abs(want).max() / 127 + 1e-6
    np.testing.assert_allclose(expected(member(layers), x), want, atol=0.3 * step * len(layers), rtol=1e-3)


def test_the_largest_codes_do_not_overflow():
    """Every product at its limit: what CPUs without VNNI add up in 16 bits."""
    weight, bias = np.full((16, 512), 0.63, np.float32), np.zeros(16, np.float32)
    weight[1::2] *= -1
    x = np.full((8, 512), 2.54, np.float32)
    x[1::2] *= -1
    want = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(expected(member([(weight, bias, False)]), x), want, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-38])
def test_a_window_of_nothing_gives_the_biases(value):
    layers = layers_of((6, 4), 0)
    x = np.full((8, 6), value, np.float32)
    np.testing.assert_allclose(expected(member(layers), x), np.tile(layers[0][1], (8, 1)), atol=1e-6)


def test_a_layer_whose_weights_are_zero_gives_its_biases():
    weight, bias = np.zeros((3, 5), np.float32), np.array([1, -2, 3], np.float32)
    assert expected(member([(weight, bias, False)]), np.ones((8, 5), np.float32)).tolist() == [bias.tolist()] * 8


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_reduced_precision_scores_close_to_float32_and_is_not_the_same(precision):
    members = [MemberSpec("dense", 8, "window", params={"hidden": (32,), "latent": 8}), MemberSpec("conv", 8, "window")]
    bundle, rows = make_bundle(members, seed=5), make_rows(400, 5, assets=4, seed=6, missing=0.01)
    got, want = (pushed(open_engine(bundle, "cpu", p), rows) for p in (precision, "float32"))
    scored = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), scored)
    off = np.abs(got[scored] / want[scored] - 1)
    assert 0 < np.median(off) < 0.01
    assert off.max() < 0.1


def test_principal_components_stay_in_float32():
    bundle, rows = make_bundle([MemberSpec("pca", 8, "window")]), make_rows(200, 5, assets=4, missing=0.01)
    want = pushed(open_engine(bundle, "cpu"), rows)
    for precision in ("bfloat16", "int8"):
        assert pushed(open_engine(bundle, "cpu", precision), rows).tobytes() == want.tobytes()


def pushed(engine, rows):
    slots = engine.allocate([f"a{i}" for i in range(4)])
    return engine.push([(rows, slots[rows.asset])])[0].score
