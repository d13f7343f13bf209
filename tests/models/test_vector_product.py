import numpy as np
import pytest

from models.engine_buffers import aligned
from models.vector_product import RowProduct

RNG = np.random.default_rng(0)


def product_of(inputs, outputs):
    weight = RNG.standard_normal((outputs, inputs), np.float32)
    bias = RNG.standard_normal(outputs, np.float32)
    return weight, bias, RowProduct(weight, bias)


def run(product, x):
    laid = aligned(len(x), product.takes)
    laid[:, : x.shape[1]] = x
    return product.run(laid, aligned(len(x), product.gives))


@pytest.mark.parametrize("rows", [1, 3, 8, 97, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 16), (48, 33), (160, 64), (33, 48)])
def test_it_is_the_product(rows, inputs, outputs):
    weight, bias, product = product_of(inputs, outputs)
    x = RNG.standard_normal((rows, inputs), np.float32)
    want = x.astype(float) @ weight.T.astype(float) + bias
    np.testing.assert_allclose(run(product, x)[:, :outputs], want, rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_in_every_batch():
    _, _, product = product_of(50, 40)
    x = RNG.standard_normal((200, 50), np.float32)
    want = run(product, x)
    for n in (1, 5, 13, 199):
        order = RNG.permutation(200)[:n]
        assert run(product, x[order]).tobytes() == want[order].tobytes()


def test_inputs_without_weights_are_left_out():
    weight, bias, _ = product_of(40, 64)
    weight[:32, :9] = 0
    weight[32:, 30:] = 0
    x = RNG.standard_normal((5, 40), np.float32)
    np.testing.assert_allclose(run(RowProduct(weight, bias), x), x @ weight.T + bias, rtol=1e-4, atol=1e-4)
    nothing = run(RowProduct(np.zeros_like(weight), bias), x)
    np.testing.assert_array_equal(nothing, np.broadcast_to(bias, (5, 64)))


def test_what_is_not_a_number_stays_in_its_row():
    _, _, product = product_of(20, 32)
    x = RNG.standard_normal((13, 20), np.float32)
    want = run(product, x)
    x[5, 3] = np.nan
    found = run(product, x)
    assert np.isnan(found[5]).all()
    assert np.delete(found, 5, 0).tobytes() == np.delete(want, 5, 0).tobytes()
