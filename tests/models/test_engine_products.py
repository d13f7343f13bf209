import numpy as np
import pytest

from models.engine_buffers import aligned
from models.engine_products import Product

SIZES = [(2048, 256), (256, 30), (33, 16), (5, 1)]  # inputs, outputs


def product_of(inputs, outputs, relu=False):
    weight = np.random.default_rng(0).normal(0, inputs**-0.5, (outputs, inputs)).astype(np.float32)
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    return weight, bias, Product(weight, bias, relu)


def run(product, x):
    wide = aligned(len(x), product.takes)
    wide[:, : x.shape[1]] = x
    out = aligned(len(x), product.gives)
    out[:] = np.nan
    return product.run(wide, out).copy()


def normal(rows, columns):
    return np.random.default_rng(1).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_product_with_zeros_beyond_its_outputs(size, relu):
    weight, bias, product = product_of(*size, relu)
    x = np.random.default_rng(0).normal(size=(7, size[0]))
    want = x.astype(np.float32).astype(np.float64) @ weight.astype(np.float64).T + bias
    got = run(product, x.astype(np.float32))
    np.testing.assert_allclose(got[:, : size[1]], np.maximum(want, 0) if relu else want, rtol=1e-4, atol=1e-5)
    assert (got[:, size[1] :] == 0).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(size):
    _, _, product = product_of(*size)
    x = normal(300, size[0])
    whole = run(product, x)
    for n in (1, 2, 3, 5, 8, 31, 64, 256):
        assert np.array_equal(run(product, x[20 : 20 + n]), whole[20 : 20 + n])


def test_not_a_number_stays_one_behind_a_relu():
    _, _, product = product_of(32, 16, relu=True)
    x = np.ones((3, 32), np.float32)
    x[1, 4] = np.nan
    assert np.isnan(run(product, x)).any(1).tolist() == [False, True, False]


def test_more_places_than_it_remembers_change_nothing():
    _, _, product = product_of(33, 16)
    x = normal(600, product.takes)
    out = np.empty((600, product.gives), np.float32)
    for i in range(600):
        product.run(x[i : i + 1], out[i : i + 1])
    assert np.array_equal(out, run(product, x[:, : product.takes]))
