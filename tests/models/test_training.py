import math

import numpy as np
import pytest
import torch
from torch import nn

from models.autoencoders import DenseAutoencoder
from models.training import LoopSpec, corrupt, masked_loss, train, training_device
from pipeline.errors import ConfigError, TooLittleHistory, TrainingError

WINDOW, CHANNELS = 4, 3
QUICK = LoopSpec(steps=60, batch=32, check_every=20)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(n=400, seed=0):
    """Three channels that follow one another, so that a hidden one can be told from the others."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 7) + 0.1 * rng.normal(size=n)
    x = np.stack([wave, -wave, 0.5 * wave], axis=1) + 0.05 * rng.normal(size=(n, 3))
    return x.astype(np.float32), np.ones((n, 3), np.bool_)


def dense():
    return DenseAutoencoder(WINDOW, CHANNELS, hidden=(16,), latent=2, dropout=0.1)


def fit(spec=QUICK, build=dense, x=None, observed=None, **more):
    if x is None:
        x, observed = rows()
    return train(build, x, observed, np.arange(WINDOW - 1, 300), WINDOW, spec, **more)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class FailsAt(nn.Module):
    """A linear autoencoder whose answer is no number from call `call` on."""

    def __init__(self, call):
        super().__init__()
        self.net = nn.Linear(WINDOW * CHANNELS, WINDOW * CHANNELS)
        self.left = call

    def forward(self, x, observed):
        self.left -= 1
        out = self.net((x * observed).reshape(len(x), -1)).reshape(x.shape)
        return out * float("nan") if self.left <= 0 else out


def test_rows_that_do_not_count_teach_nothing():
    x, observed = rows()
    other = x.copy()
    other[0::WINDOW] += 5  # windows of the test below start at these

    def taught(x):
        ends = np.arange(WINDOW - 1, 300, WINDOW)

        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(CHANNELS, CHANNELS)

            def forward(self, x, observed):
                return self.net(x * observed)

        return train(Last, x, observed, ends, WINDOW, QUICK, counted=slice(1, None))[0]

    assert same(taught(x), taught(other))


def test_the_same_seed_gives_the_same_weights_bit_by_bit():
    first, record = fit()
    again, _ = fit()
    other, _ = fit(LoopSpec(steps=60, batch=32, check_every=20, seed=1))
    assert same(first, again)
    assert not same(first, other)
    assert (record.seed, record.threads, record.device, record.stopped) == (0, 1, "cpu", "finished")


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, _ = fit()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert same(first, fit()[0])


def test_the_loss_falls_and_is_handed_back_step_by_step():
    _, record = fit(LoopSpec(steps=300, batch=64))
    assert record.loss.shape == (300,)
    assert record.loss[-20:].mean() < 0.3 * record.loss[:5].mean()
    assert record.weights_step == 300


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_even_a_few_steps_can_be_asked_for(steps, schedule):
    _, record = fit(LoopSpec(steps=steps, schedule=schedule))
    assert len(record.loss) == steps


def test_the_plateau_schedule_trains_too():
    _, record = fit(LoopSpec(steps=300, batch=64, schedule="plateau", learning_rate=3e-3))
    assert record.loss[-20:].mean() < 0.4 * record.loss[:5].mean()


def test_the_plateau_schedule_lowers_the_rate_when_nothing_gets_better():
    """Far too high a rate makes the held-out loss jump about; it can only settle if the rate falls."""
    held = np.arange(330, 400)
    _, record = fit(
        LoopSpec(steps=600, batch=64, schedule="plateau", learning_rate=0.3, check_every=10), held_ends=held
    )
    assert record.held_out[-5:].mean() < record.held_out[10:15].mean()
    assert np.ptp(record.held_out[-5:]) < 0.05 * np.ptp(record.held_out[10:15])


def test_progress_is_reported_at_every_check_and_at_the_end():
    told = []
    fit(LoopSpec(steps=50, check_every=20), report=lambda step, steps, loss: told.append((step, steps, loss)))
    assert [(step, steps) for step, steps, _ in told] == [(20, 50), (40, 50), (50, 50)]
    assert all(math.isfinite(loss) for _, _, loss in told)


def test_a_held_out_part_stops_training_early_and_gives_back_the_best_weights():
    x, observed = rows()
    x[330:] = np.random.default_rng(3).normal(size=(70, 3))  # nothing learnt elsewhere helps here
    spec = LoopSpec(steps=2000, batch=64, check_every=10, patience=3, schedule="plateau", learning_rate=1e-2)
    weights, record = fit(spec, x=x, observed=observed, held_ends=np.arange(333, 400))
    best = int(record.held_out.argmin())
    assert record.stopped == "early"
    assert len(record.loss) < 2000
    assert record.weights_step == 10 * (best + 1)
    until, _ = fit(
        LoopSpec(steps=record.weights_step, batch=64, check_every=10, schedule="plateau", learning_rate=1e-2),
        x=x,
        observed=observed,
        held_ends=np.arange(333, 400),
    )
    assert same(weights, until)


def test_early_stopping_without_a_held_out_part_is_refused():
    with pytest.raises(ConfigError, match="hold_out"):
        fit(LoopSpec(patience=3))


def test_numbers_that_are_not_finite_stop_training_and_the_last_sound_weights_come_back():
    spec = LoopSpec(steps=100, schedule="plateau")
    weights, record = fit(spec, build=lambda: FailsAt(33))
    sound, _ = fit(LoopSpec(steps=25, schedule="plateau"), build=lambda: FailsAt(1000))
    assert (record.stopped, record.weights_step, len(record.loss)) == ("non_finite", 25, 32)
    assert same(weights, sound)


def test_weights_that_overflow_are_never_handed_back():
    weights, record = fit(LoopSpec(steps=100, learning_rate=1e38))
    assert record.stopped == "non_finite"
    assert all(np.isfinite(value).all() for value in weights.values())


def test_a_last_step_that_overflows_is_taken_back():
    weights, record = fit(LoopSpec(steps=1, learning_rate=1e38, schedule="plateau", weight_decay=1e38))
    assert (record.stopped, record.weights_step) == ("non_finite", 0)
    assert all(np.isfinite(value).all() for value in weights.values())


def test_training_that_never_had_a_finite_loss_is_an_error():
    with pytest.raises(TrainingError, match="first loss was not finite"):
        fit(build=lambda: FailsAt(1))


def test_one_window_is_too_little():
    x, observed = rows()
    with pytest.raises(TooLittleHistory, match="1 normal windows of 4 rows, 2 needed"):
        train(dense, x, observed, np.array([10]), WINDOW, QUICK)


def test_only_observed_readings_count_in_the_loss():
    target, out = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    observed = (torch.rand(5, 4, 3) > 0.4).float()
    wild = torch.where(observed > 0, out, torch.full_like(out, 1e9))
    for spec in (LoopSpec(), LoopSpec(loss="huber", huber_delta=0.5)):
        expected = masked_loss(out, target, observed, spec)
        assert masked_loss(wild, target, observed, spec) == expected
    squares = ((out - target) ** 2)[observed > 0]
    torch.testing.assert_close(masked_loss(out, target, observed, LoopSpec()), squares.mean())


def test_huber_is_linear_where_mse_is_square():
    target, far = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 10.0)
    seen = torch.ones(1, 1, 1)
    assert masked_loss(far, target, seen, LoopSpec()) == 100
    assert masked_loss(far, target, seen, LoopSpec(loss="huber")) == 9.5


def test_a_batch_in_which_nothing_was_observed_has_no_loss():
    nothing = torch.zeros(2, 4, 3)
    assert masked_loss(torch.randn(2, 4, 3), nothing, nothing, LoopSpec()) == 0


def test_masking_hides_whole_channels_for_a_whole_window_from_the_encoder_alone():
    x, observed = torch.randn(4000, 4, 5), torch.ones(4000, 4, 5)
    kept_x, seen = corrupt(x, observed, LoopSpec(mask_share=0.3), torch.Generator().manual_seed(0))
    assert torch.equal(kept_x, x)
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert 1 - float(seen.mean()) == pytest.approx(0.3, abs=0.01)
    assert observed.all()


def test_masking_never_shows_what_was_not_observed():
    observed = torch.zeros(100, 4, 5)
    _, seen = corrupt(observed, observed, LoopSpec(), torch.Generator().manual_seed(0))
    assert not seen.any()


def test_a_lone_channel_is_never_hidden():
    x = torch.randn(100, 4, 1)
    _, seen = corrupt(x, torch.ones_like(x), LoopSpec(mask_share=0.9), torch.Generator().manual_seed(0))
    assert seen.all()


def test_noise_has_the_deviation_that_was_asked_for_and_leaves_the_target_alone():
    x = torch.randn(2000, 4, 3)
    before = x.clone()
    noisy, _ = corrupt(x, torch.ones_like(x), LoopSpec(noise=0.2, mask_share=0), torch.Generator().manual_seed(0))
    assert float((noisy - x).std()) == pytest.approx(0.2, rel=0.02)
    assert torch.equal(x, before)


def test_a_hidden_channel_is_told_from_the_others_after_training():
    x, _ = rows()
    weights, _ = fit(LoopSpec(steps=500, batch=64))
    module = dense()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    module.eval()
    window = torch.from_numpy(np.stack([x[e - WINDOW + 1 : e + 1] for e in range(320, 400)]))
    seen = torch.ones_like(window)
    seen[:, :, 1] = 0
    error = (module(window, seen)[:, :, 1] - window[:, :, 1]).square().mean()
    assert error < 0.25 * window[:, :, 1].square().mean()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("learning_rate", math.nan),
        ("clip_norm", 0.0),
        ("weight_decay", -0.1),
        ("mask_share", 1.0),
        ("noise", math.inf),
        ("schedule", "cosine"),
        ("loss", "bce"),
        ("compile", "maybe"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_key(field, value):
    with pytest.raises(ConfigError, match=f"train.{field} = "):
        LoopSpec(**{field: value})


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        training_device("cuda")
    with pytest.raises(ConfigError, match="'auto', 'cpu' or 'cuda'"):
        training_device("tpu")


def test_a_cpu_compiles_only_when_told_to():
    assert not fit()[1].compiled
    assert not fit(LoopSpec(steps=1, compile="off"))[1].compiled


def test_a_compiled_run_is_recorded_and_takes_the_same_steps(monkeypatch):
    """`aot_eager` goes the way of every compiler, without generated code: so the bits stay."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **given: compile_with(module, backend="aot_eager", **given))
    plain, _ = fit(LoopSpec(steps=5, batch=32))
    weights, record = fit(LoopSpec(steps=5, batch=32, compile="on"))
    assert record.compiled
    assert weights.keys() == plain.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, plain[name], rtol=1e-4, atol=1e-6)


def test_a_compiler_that_fails_is_a_configuration_error_where_it_was_asked_for(monkeypatch):
    def broken(module, **_):
        def forward(*_):
            raise RuntimeError("no compiler found")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match="no compiler found"):
        fit(LoopSpec(steps=5, compile="on"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_compiles_by_itself_and_learns_as_well():
    _, plain = fit(LoopSpec(steps=60, batch=32, compile="off"), device="cuda")
    _, record = fit(LoopSpec(steps=60, batch=32), device="cuda")
    assert record.compiled
    np.testing.assert_allclose(record.loss[-10:].mean(), plain.loss[-10:].mean(), rtol=0.05)
