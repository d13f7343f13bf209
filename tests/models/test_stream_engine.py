from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_engine import make_bundle
from naive_stream import FIRST, grid_rows, naive_stream, stream_member

from models.autoencoders import ConvAutoencoder
from models.engine import open_engine
from models.scaling import scale
from models.stream_engine import StreamEngine
from models.stream_layers import averaged, member_span
from pipeline.bundle import MemberSpec
from pipeline.errors import BundleError, ConfigError, ShapeError, StateError
from pipeline.protocols import RawWindows
from pipeline.values import NS_PER_S, Continuity, Status

torch.set_num_threads(1)

C = 5
MEMBERS = {
    "two strided layers": stream_member((5, 5), (2, 2)),
    "two strided layers, rows averaged": stream_member((7, 5), (2, 2), rows=9),
    "three strided layers": stream_member((7, 5, 3), (2, 2, 2), rows=3),
    "one layer, kernel as long as its stride": stream_member((3,), (3,)),
    "a stride of one": stream_member((5, 3), (3, 1), rows=2),
    "no stride at all": stream_member((3, 3), (1, 1)),
    "ztop": stream_member((5, 5), (2, 2), rows=4, aggregate="ztop"),
    "mahalanobis": stream_member((5, 5), (2, 2), aggregate="mahalanobis"),
}


def pushed(bundle, rows):
    engine = open_engine(bundle, "cpu")
    slots = engine.allocate([f"a{i}" for i in range(int(rows.asset.max()) + 1)])
    return engine.push([(rows, slots[rows.asset])])[0]


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("name", MEMBERS)
def test_scores_equal_those_of_the_slow_oracle(name, missing):
    bundle = make_bundle([MEMBERS[name]], C, groups=2, seed=3)
    rows = grid_rows(420, C, assets=3, seed=4, missing=missing, restarts=0.01)
    got = pushed(bundle, rows)
    status, score, by_channel, expected, actual, coverage = naive_stream(bundle, rows)
    assert (status == Status.CALIBRATED).sum() > 100
    np.testing.assert_array_equal(got.status, status)
    np.testing.assert_allclose(got.score, score, rtol=2e-4)
    np.testing.assert_allclose(got.by_channel, by_channel, atol=2e-4)
    np.testing.assert_allclose(got.expected, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got.actual, actual.astype(np.float32))
    np.testing.assert_allclose(got.coverage, coverage, rtol=1e-6)


@pytest.mark.parametrize("late_by", [0, 1, 5])
@pytest.mark.parametrize("name", [n for n in MEMBERS if "stride" in n])
def test_row_errors_are_those_of_the_torch_module_over_the_whole_series(name, late_by):
    member = replace(MEMBERS[name], window=member_span(MEMBERS[name]).rows(1))
    span, bundle = member_span(member), make_bundle([member], C)
    phase, n = (FIRST + late_by) % span.hop, 300
    rows = grid_rows(n, C, assets=1, seed=1)
    rows = replace(rows, ts_ns=(FIRST + late_by + np.arange(n)) * NS_PER_S)
    got = pushed(bundle, rows).score
    x = scale(rows.x, rows.observed, bundle.tensor(0, "scaler", "loc"), bundle.tensor(0, "scaler", "scale"), 3.0)
    whole = np.zeros((phase + n + -(phase + n) % span.hop, C), np.float32)
    whole[phase : phase + n] = x
    module = ConvAutoencoder(len(whole), C, **member.params).eval()
    weights = {k.removeprefix("g0.m0."): torch.tensor(v) for k, v in bundle.tensors.items() if k.startswith("g0.m0.")}
    module.load_state_dict({k: v for k, v in weights.items() if not k.startswith("agg.")})
    with torch.inference_mode():
        back = module(torch.from_numpy(whole)[None], torch.ones(1, *whole.shape))[0].numpy()[phase : phase + n]
    want = np.square(back - x).mean(axis=1)
    scored = np.flatnonzero(np.isfinite(got))
    assert scored.tolist() == list(range(member.window - 1, n))
    np.testing.assert_allclose(got[scored], want[scored - span.lag], atol=1e-6, rtol=1e-6)


def test_a_frame_carries_the_score_of_the_row_that_lies_the_lag_before_it():
    member = stream_member((5, 5), (2, 2))
    bundle, span = make_bundle([member], C), member_span(member)
    rows = grid_rows(200, C, assets=1)
    got = pushed(bundle, rows)
    assert got.lag_ns == span.lag * bundle.period_ns
    scored = np.flatnonzero(got.status == Status.CALIBRATED)
    np.testing.assert_array_equal(got.actual[scored], rows.x[scored - span.lag])
    assert len(np.unique(got.score[scored])) == len(scored)  # one of its own, though only each fourth ends a hop


def test_a_score_knows_no_row_after_its_frame_and_none_before_its_window():
    member = stream_member((7, 5), (2, 2), rows=4)
    bundle = make_bundle([member], C)
    rows = grid_rows(200, C, assets=1)
    want = pushed(bundle, rows).score
    at = 120
    for changed in (slice(at + 1, None), slice(0, at + 1 - member.window)):
        x = rows.x.copy()
        x[changed] += 50
        assert pushed(bundle, replace(rows, x=x)).score[at] == want[at]
    for changed in (at - member_span(member).lag, at - member_span(member).lag - 3):
        x = rows.x.copy()
        x[changed] += 50
        assert pushed(bundle, replace(rows, x=x)).score[at] != want[at]


def test_a_new_window_warms_up_until_everything_that_a_score_rests_on_is_there():
    member = stream_member((5, 5), (2, 2), rows=3)
    bundle = make_bundle([member], C)
    rows = grid_rows(200, C, assets=1)
    for continuity in (Continuity.NEW_WINDOW, Continuity.FRESH):
        broken = replace(rows, continuity=rows.continuity.copy())
        broken.continuity[100] = continuity
        status = pushed(bundle, broken).status
        warming = [*range(member.window - 1), *range(100, 100 + member.window - 1)]
        assert np.flatnonzero(status == Status.WARMING).tolist() == warming


def test_a_row_that_does_not_follow_the_one_before_it_on_the_grid_starts_a_new_window():
    member = stream_member((5, 5), (2, 2))
    rows = grid_rows(200, C, assets=1)
    jumped = replace(rows, ts_ns=rows.ts_ns + np.where(np.arange(200) >= 100, NS_PER_S, 0))
    status = pushed(make_bundle([member], C), jumped).status
    assert np.flatnonzero(status[100:] == Status.WARMING).tolist() == list(range(member.window - 1))


def test_where_too_little_was_observed_nothing_is_said():
    member = stream_member((5, 5), (2, 2))
    bundle, lag = make_bundle([member], C), member_span(member).lag
    rows = grid_rows(200, C, assets=1)
    observed = rows.observed.copy()
    observed[100] = False
    got = pushed(bundle, replace(rows, observed=observed, x=np.where(observed, rows.x, 0).astype(np.float32)))
    assert np.flatnonzero(got.status == Status.ABSTAINED).tolist() == [100 + lag]
    observed[80:] = np.arange(C) < 2
    got = pushed(bundle, replace(rows, observed=observed, x=np.where(observed, rows.x, 0).astype(np.float32)))
    assert (got.status[150:] == Status.ABSTAINED).all()
    assert (got.status[81:90] == Status.CALIBRATED).all()


def test_an_asset_that_no_group_scores_is_collected_only():
    bundle = make_bundle([stream_member((5, 5), (2, 2))], C)
    engine, rows = open_engine(bundle, "cpu"), grid_rows(100, C, assets=1)
    slots = engine.allocate(["stranger"])
    got = engine.push([(rows, slots[rows.asset])])[0]
    assert (got.status == Status.WARMING).all()
    np.testing.assert_array_equal(engine.dump(slots).x[0], rows.x[-engine.rows_kept :])


def test_a_streaming_member_is_served_alone_and_on_the_cpu():
    member = stream_member((5, 5), (2, 2))
    with pytest.raises(BundleError, match="served alone"):
        open_engine(make_bundle([member, MemberSpec("pca", 6)], C), "cpu")
    with pytest.raises(ConfigError, match="cpu-float32 only"):
        open_engine(make_bundle([member], C), "cpu", priority="latency")
    short = replace(member, window=member.window - 1)
    with pytest.raises(BundleError, match=f"a window of {member.window} rows"):
        open_engine(make_bundle([short], C), "cpu")
    assert averaged(member) == 1


def test_weights_that_do_not_fit_are_refused():
    bundle = make_bundle([stream_member((5, 5), (2, 2))], C)
    tensors = {name: value for name, value in bundle.tensors.items() if name != "g0.m0.encoder.0.weight"}
    with pytest.raises(BundleError, match="do not fit a streaming member"):
        StreamEngine(replace(bundle, tensors=tensors))


def test_what_does_not_fit_is_refused_and_nothing_is_taken():
    engine = open_engine(make_bundle([stream_member((5, 5), (2, 2))], C), "cpu")
    slots, rows, wide = engine.allocate(["a0"]), grid_rows(30, C, assets=1), grid_rows(30, C + 1, assets=1)
    with pytest.raises(ShapeError):
        engine.push([(wide, slots[wide.asset])])
    with pytest.raises(StateError):
        engine.push([(rows, slots[rows.asset]), (rows, slots[rows.asset] + 1000)])
    assert engine.dump(slots).count.tolist() == [0]
    raw = engine.dump(slots)
    with pytest.raises(ShapeError):
        engine.load(slots, RawWindows(raw.x[:, 1:], raw.observed[:, 1:], raw.count))
