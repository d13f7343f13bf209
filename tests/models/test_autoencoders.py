import numpy as np
import pytest
import torch

from models.autoencoders import ConvAutoencoder, DenseAutoencoder, build_module
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError, ShapeError

MEMBERS = [
    MemberSpec("dense", 16, params={"hidden": [32, 16], "latent": 4}),
    MemberSpec("dense", 7, params={"hidden": [], "latent": 2, "batch_norm": True, "dropout": 0.5}),
    MemberSpec("dense", 5, params={"hidden": [8], "latent": 3, "batch_norm": True, "linear_bottleneck": False}),
    MemberSpec("conv", 32, params={"hidden": [8], "latent": 2}),
    MemberSpec("conv", 13, params={"hidden": [], "latent": 1, "kernels": [3], "strides": [3]}),
    MemberSpec("conv", 9, params={"hidden": [4, 4], "latent": 2, "kernels": [7, 5, 3], "strides": [2, 2, 2]}),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def inputs(module, batch):
    shape, dtype = module.describe_inputs(batch)["x"]
    return torch.randn(shape, dtype=dtype), (torch.rand(shape) > 0.2).to(dtype)


@pytest.mark.parametrize("channels", [1, 3, 38])
@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: f"{m.kind}{m.window}")
def test_every_module_gives_back_the_shape_it_takes(member, channels):
    module = build_module(member, channels).eval()
    for batch in (0, 1, 5):
        x, observed = inputs(module, batch)
        assert module(x, observed).shape == x.shape == (batch, member.window, channels)
        assert module(x, observed).dtype == torch.float32


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: f"{m.kind}{m.window}")
def test_what_is_not_observed_cannot_be_read(member):
    module = build_module(member, 4).eval()
    x, observed = inputs(module, 3)
    hidden = torch.where(observed > 0, x, torch.full_like(x, 1e6))
    torch.testing.assert_close(module(hidden, observed), module(x, observed), rtol=0, atol=0)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: f"{m.kind}{m.window}")
def test_a_window_is_reconstructed_by_itself(member):
    module = build_module(member, 4).eval()
    x, observed = inputs(module, 6)
    one = module(x[2:3], observed[2:3])
    torch.testing.assert_close(module(x, observed)[2:3], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: f"{m.kind}{m.window}")
def test_weights_go_through_numpy_by_name(member):
    module, other = build_module(member, 2).eval(), build_module(member, 2).eval()
    named = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    other.load_state_dict({name: torch.from_numpy(value) for name, value in named.items()})
    x, observed = inputs(module, 2)
    torch.testing.assert_close(other(x, observed), module(x, observed), rtol=0, atol=0)


def test_no_hidden_layers_make_a_linear_autoencoder():
    module = DenseAutoencoder(4, 2, hidden=(), latent=3)
    a, b = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    seen = torch.ones(1, 4, 2)
    together = module(a + b, seen) + module(torch.zeros_like(a), seen)
    torch.testing.assert_close(together, module(a, seen) + module(b, seen))


def test_the_dense_bottleneck_is_linear_unless_asked():
    def latents(linear):
        module = DenseAutoencoder(4, 2, hidden=(8,), latent=6, linear_bottleneck=linear)
        return module.encoder(torch.randn(50, 8))

    assert (latents(True) < 0).any()
    assert not (latents(False) < 0).any()


def test_dropout_is_off_when_scoring():
    module = DenseAutoencoder(4, 2, hidden=(32,), latent=3, dropout=0.5)
    x, observed = inputs(module, 4)
    assert not torch.equal(module(x, observed), module(x, observed))
    module.eval()
    assert torch.equal(module(x, observed), module(x, observed))


def test_the_compression_ratio_counts_readings_per_latent_value():
    assert DenseAutoencoder(16, 38).compression_ratio == 38
    assert ConvAutoencoder(32, 38).compression_ratio == 19
    assert ConvAutoencoder(30, 38).compression_ratio == pytest.approx(30 * 38 / 64)


def reach_by_gradient(module):
    """Return per phase the (first, last) input row, relative to it, that moves a row in the middle of a long window."""
    x = torch.randn(1, module.window, module.channels, requires_grad=True)
    out = module.double()(x.double(), torch.ones(x.shape, dtype=torch.float64))
    middle = module.window // module.total_stride // 2 * module.total_stride
    found = []
    for row in range(middle, middle + module.total_stride):
        (grad,) = torch.autograd.grad(out[0, row].sum(), x, retain_graph=True)
        rows = torch.nonzero(grad[0].abs().sum(1)).flatten()
        found.append((int(rows[0]) - row, int(rows[-1]) - row))
    return found


@pytest.mark.parametrize(
    ("kernels", "strides"),
    [((5, 5), (2, 2)), ((7, 5), (2, 2)), ((3,), (1,)), ((3,), (3,)), ((9, 3, 5), (4, 1, 2)), ((5,), (4,))],
)
def test_receptive_field_and_delay_are_what_gradients_show(kernels, strides):
    hidden = (6,) * (len(kernels) - 1)
    module = ConvAutoencoder(240, 2, hidden, 5, kernels, strides)
    for layer in module.modules():  # keep every ReLU open, so that no path is cut by chance
        if isinstance(layer, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            torch.nn.init.uniform_(layer.weight, 0.1, 1.0)
            torch.nn.init.constant_(layer.bias, 1000.0)
    seen = reach_by_gradient(module)
    assert module.total_stride == np.prod(strides)
    assert module.receptive_field == max(last - first + 1 for first, last in seen)
    assert module.delay == max(last for _, last in seen)


def test_the_middle_of_a_long_window_is_reconstructed_alike_wherever_the_window_begins():
    module = ConvAutoencoder(80, 3).eval()
    longer = ConvAutoencoder(80 + 5 * module.total_stride, 3).eval()
    longer.load_state_dict(module.state_dict())
    x = torch.randn(1, longer.window, 3)
    part, whole = module(x[:, -80:], torch.ones(1, 80, 3)), longer(x, torch.ones_like(x))
    edge = module.receptive_field
    torch.testing.assert_close(part[:, edge:], whole[:, -80 + edge :], rtol=1e-5, atol=1e-6)


def test_a_window_that_is_no_multiple_of_the_stride_is_padded_at_its_old_end():
    short = ConvAutoencoder(30, 3).eval()
    full = ConvAutoencoder(32, 3).eval()
    full.load_state_dict(short.state_dict())
    x = torch.randn(2, 32, 3)
    observed = torch.ones_like(x)
    observed[:, :2] = 0
    torch.testing.assert_close(short(x[:, 2:], observed[:, 2:]), full(x, observed)[:, 2:], rtol=0, atol=0)


def test_an_unknown_kind_is_refused_with_those_that_are_known():
    with pytest.raises(BundleError, match="conv, dense"):
        build_module(MemberSpec("transformer", 8), 2)


def test_an_unknown_parameter_is_refused_by_name():
    with pytest.raises(BundleError, match="heads"):
        build_module(MemberSpec("dense", 8, params={"heads": 2}), 2)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((4, 5), (2, 2)), ((5, 5), (2, 0)), ((3, 3), (4, 2)), ((5,), (2,)), ((5, 5), (2,))]
)
def test_layers_that_would_crop_or_skip_rows_are_refused(kernels, strides):
    with pytest.raises(ConfigError, match="conv_kernels"):
        ConvAutoencoder(16, 2, (8,), 2, kernels, strides)


@pytest.mark.parametrize("shape", [(2, 15, 3), (2, 16, 4)])
def test_windows_of_another_shape_are_refused(shape):
    module = DenseAutoencoder(16, 3)
    with pytest.raises(ShapeError, match=r"\(B, 16, 3\)"):
        module(torch.zeros(shape), torch.zeros(shape))
