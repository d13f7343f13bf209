import numpy as np
import torch
from naive_stream import stream_member

from models.autoencoders import build_module
from models.calibration import CalibrationSpec, calibrate
from models.fitting import fit_bundle
from models.residuals import fit_aggregation
from models.scaling import scale
from models.series import Series
from models.stream_fitting import stream_residuals, to_train
from models.stream_layers import averaged, member_span
from models.train_spec import TrainSpec, member_specs

torch.set_num_threads(1)

CHANNELS = ("flow", "head", "power", "heat", "speed")
C, MINUTE = len(CHANNELS), 60_000_000_000


def pump(asset, n=700, seed=0):
    g = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 9 + seed)
    x = np.stack([10 + wave, 50 - 3 * wave, wave * 0.1, wave**2, 2 * wave], axis=1) + g.normal(size=(n, C)) * 0.1
    return Series(
        asset=asset,
        ts_ns=np.arange(n, dtype=np.int64) * MINUTE,
        x=x.astype(np.float32),
        observed=np.ones((n, C), np.bool_),
        continuity=np.array([2] + [0] * (n - 1), np.uint8),
        normal=np.ones(n, np.bool_),
    )


def quick(**given):
    sizes = {"conv_hidden": (8,), "conv_latent": 2, "conv_window": 16, "steps": 30, "batch": 16, "min_windows": 150}
    return TrainSpec(CHANNELS, MINUTE, ("stream",), "fleet", **(sizes | given))


def test_the_window_of_a_streaming_member_is_all_that_a_score_rests_on():
    for error, rows in (("last", 1), ("window", 16)):
        (member,) = member_specs(quick(error=error))
        assert averaged(member) == rows
        assert member.window == member_span(member).rows(rows)


def test_rows_that_count_in_training_have_all_their_neighbours():
    (member,) = member_specs(quick())
    longer, counted = to_train(member, 16)
    span = member_span(member)
    assert counted.stop - counted.start == 16
    assert counted.start == span.back
    assert longer.window - counted.stop == span.lag


def test_residuals_are_those_of_the_whole_series_in_all_phases():
    member, n = stream_member((5, 5), (2, 2)), 160
    g = np.random.default_rng(0)
    scaled, observed = g.normal(size=(n, C)).astype(np.float32), g.random((n, C)) > 0.1
    scaled[~observed] = 0
    longer, _ = to_train(member, 8)
    torch.manual_seed(0)
    module = build_module(member, C).eval()
    tensors = {name: value.numpy() for name, value in module.state_dict().items()}
    ends = np.arange(longer.window - 1, n)
    residual, known = stream_residuals(longer, tensors, scaled, observed, ends)
    span = member_span(member)
    for end, left, seen in zip(ends, residual, known, strict=True):
        row = end - span.lag - end % span.hop
        first = end + 1 - longer.window - (-longer.window % span.hop)  # a module's windows end with a whole hop
        x = np.zeros((end + 1 - first, C), np.float32)
        x[-min(len(x), end + 1) :] = scaled[max(first, 0) : end + 1]
        module.window = len(x)
        with torch.inference_mode():
            back = module(torch.from_numpy(x)[None], torch.ones(1, *x.shape))[0].numpy()
        np.testing.assert_allclose(left, np.where(observed[row], scaled[row] - back[row - first], 0), atol=1e-5)
        np.testing.assert_array_equal(seen, observed[row])


def test_a_streaming_bundle_is_fitted_calibrated_and_the_same_again():
    fleet = [pump("north", seed=1), pump("south", seed=2)]
    first, second = (fit_bundle(fleet, quick(aggregate="ztop")) for _ in range(2))
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    told = first.provenance["fits"]["*"]["m0 stream"]
    assert told["loss"] < told["first_loss"]
    bundle = calibrate(first, fleet, {"north": 400, "south": 400}, CalibrationSpec(min_rows=100))
    calibration = bundle.calibration("cpu-float32")
    assert calibration.assets == ("north", "south")
    assert np.isfinite(calibration.threshold).all()
    assert calibration.rows == 600


def test_the_aggregation_rests_on_residuals_of_the_rows_that_are_scored():
    fleet = [pump("north", seed=1)]
    bundle = fit_bundle(fleet, quick())
    loc, spread = bundle.tensor(0, "scaler", "loc"), bundle.tensor(0, "scaler", "scale")
    scaled = scale(fleet[0].x, fleet[0].observed, loc, spread, bundle.soft_clip)
    longer, _ = to_train(bundle.members[0], 16)
    weights = {n.removeprefix("g0.m0."): t for n, t in bundle.tensors.items() if n.startswith("g0.m0.")}
    weights = {n: t for n, t in weights.items() if not n.startswith("agg.")}
    ends = np.arange(longer.window - 1, 700)
    fitted = fit_aggregation(*stream_residuals(longer, weights, scaled, fleet[0].observed, ends))
    for name, value in fitted.items():
        np.testing.assert_array_equal(bundle.tensor(0, 0, f"agg.{name}"), value)
