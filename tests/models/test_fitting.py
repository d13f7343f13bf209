import json

import numpy as np
import pytest
import torch

from models.fitting import POOL, Progress, _Pool, fit_bundle, learn_stuck_frames
from models.scaling import fit_scale
from models.series import Series
from models.train_spec import TrainSpec
from pipeline.errors import ShapeError, TooLittleHistory, TrainingError
from pipeline.values import Continuity

CHANNELS = ("flow", "head", "power")
MINUTE = 60_000_000_000


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pump(asset, n=300, seed=0, first=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 9 + seed)
    x = np.stack([10 + wave, 50 - 3 * wave, wave * 0.1], axis=1) + rng.normal(size=(n, 3)) * [0.1, 0.3, 0.01]
    return Series(
        asset=asset,
        ts_ns=(first + np.arange(n, dtype=np.int64)) * MINUTE,
        x=x.astype(np.float32),
        observed=np.ones((n, 3), np.bool_),
        continuity=np.zeros(n, np.uint8),
        normal=np.ones(n, np.bool_),
    )


def changed(series, **arrays):
    fields = {name: getattr(series, name) for name in Series.__dataclass_fields__}
    return Series(**(fields | arrays))


def quick(**given):
    defaults = {"min_windows": 150, "pca_window": 8, "dense_window": 4, "dense_hidden": (8,), "steps": 20, "batch": 16}
    return TrainSpec(CHANNELS, MINUTE, **(defaults | given))


FLEET = [pump("north", seed=1), pump("south", seed=2), pump("young", n=100, seed=3)]


@pytest.fixture(scope="module")
def bundle():
    return fit_bundle(FLEET, quick())


def tensors_of(bundle, group):
    g = bundle.groups.index(group)
    return {name.split(".", 1)[1]: value for name, value in bundle.tensors.items() if name.startswith(f"g{g}.")}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_bundle_has_a_group_for_each_asset_with_history_and_one_for_the_rest(bundle):
    assert bundle.groups == ("north", "south", POOL)
    assert bundle.asset_group == {"north": 0, "south": 1, "young": 2}
    assert bundle.default_group == 2
    assert bundle.provenance["pooled_only"] == ["young"]
    assert (bundle.id, bundle.calibrations, bundle.window) == ("", {}, 8)


def test_tensors_have_the_agreed_names_and_shapes(bundle):
    named = tensors_of(bundle, "north")
    aggregation = {"agg.median": (3,), "agg.mad": (3,), "agg.location": (3,), "agg.precision": (3, 3)}
    k = len(named["m0.variance"])
    expected = {"scaler.loc": (3,), "scaler.scale": (3,)}
    expected |= {"m0.mean": (24,), "m0.components": (k, 24), "m0.variance": (k,), "m0.noise": ()}
    expected |= {"m1.encoder.0.weight": (8, 12), "m1.encoder.0.bias": (8,), "m1.encoder.2.weight": (1, 8)}
    expected |= {"m1.encoder.2.bias": (1,), "m1.decoder.0.weight": (8, 1), "m1.decoder.0.bias": (8,)}
    expected |= {"m1.decoder.2.weight": (12, 8), "m1.decoder.2.bias": (12,)}
    expected |= {f"m{m}.{name}": shape for m in (0, 1) for name, shape in aggregation.items()}
    assert {name: value.shape for name, value in named.items()} == expected
    assert {value.dtype.name for value in named.values()} == {"float32"}
    assert all(np.isfinite(value).all() for value in named.values())


def test_a_group_is_scaled_on_its_own_normal_rows(bundle):
    loc, spread = fit_scale(FLEET[0].x, FLEET[0].observed)
    named = tensors_of(bundle, "north")
    np.testing.assert_array_equal(named["scaler.loc"], loc)
    np.testing.assert_array_equal(named["scaler.scale"], spread)


def test_assets_on_levels_far_apart_keep_their_own_scale_and_one_at_rest_takes_theirs():
    levels = np.array([[0, 0, 0], [1e4, 0, 0], [1e5, 0, 0]], np.float32)
    fleet = [changed(pump(f"p{i}", seed=i), x=pump("", seed=i).x + level) for i, level in enumerate(levels)]
    fleet[2].x[:, 2] = 0.7
    made = fit_bundle(fleet, quick())
    for i, one in enumerate(fleet):
        own = tensors_of(made, f"p{i}")["scaler.scale"]
        moving = slice(0, 3 if i < 2 else 2)
        np.testing.assert_array_equal(own[moving], fit_scale(one.x, one.observed)[1][moving])
    others = [tensors_of(made, f"p{i}")["scaler.scale"][2] for i in range(2)]
    assert tensors_of(made, "p2")["scaler.scale"][2] == pytest.approx(np.median(others))


def test_the_order_of_the_series_changes_nothing(bundle):
    again = fit_bundle(FLEET[::-1], quick())
    assert again.groups == bundle.groups
    assert again.provenance == bundle.provenance
    assert same(dict(again.tensors), dict(bundle.tensors))


def test_another_seed_gives_other_weights(bundle):
    other = fit_bundle(FLEET, quick(seed=1))
    assert not np.array_equal(
        tensors_of(other, "north")["m1.encoder.0.weight"], tensors_of(bundle, "north")["m1.encoder.0.weight"]
    )
    assert np.array_equal(tensors_of(other, "north")["m0.components"], tensors_of(bundle, "north")["m0.components"])


def test_the_weights_of_a_group_whose_channels_move_do_not_depend_on_other_assets(bundle):
    fewer = fit_bundle([FLEET[0], FLEET[2]], quick())
    assert same(tensors_of(fewer, "north"), tensors_of(bundle, "north"))
    assert not same(tensors_of(fewer, POOL), tensors_of(bundle, POOL))


def test_rows_that_are_not_normal_leave_no_trace(bundle):
    normal = np.ones(330, np.bool_)
    normal[300:] = False
    longer = pump("north", n=330, seed=1)
    x = longer.x.copy()
    x[:300], x[300:] = FLEET[0].x, 1e6
    tail = changed(longer, x=x, normal=normal)
    again = fit_bundle([tail, *FLEET[1:]], quick())
    assert same(tensors_of(again, "north"), tensors_of(bundle, "north"))
    assert again.stuck_frames == bundle.stuck_frames


def test_a_fleet_can_share_one_group():
    fleet = fit_bundle(FLEET, quick(per_group="fleet", members=("pca",)))
    assert fleet.groups == (POOL,)
    assert set(fleet.asset_group.values()) == {0}
    assert fleet.default_group == 0


def test_a_lone_asset_is_the_pool_and_is_fitted_once():
    told = []
    alone = fit_bundle(FLEET[:1], quick(members=("pca",)), told.append)
    assert (alone.groups, alone.asset_group) == ((POOL,), {"north": 0})
    assert len(told) == 1


def test_conv_members_and_several_seeds_of_one_kind_can_be_asked_for():
    spec = quick(per_group="fleet", members=("conv", "dense", "dense"), conv_window=10, conv_hidden=(4,))
    named = tensors_of(fit_bundle(FLEET, spec), POOL)
    assert named["m0.encoder.0.weight"].shape == (4, 3, 5)
    assert not np.array_equal(named["m1.encoder.0.weight"], named["m2.encoder.0.weight"])


def test_progress_names_member_and_group_to_the_last_step():
    told = []
    fit_bundle(FLEET[:2], quick(), told.append)
    assert {(p.member, p.group, p.step, p.steps) for p in told} == {
        (member, group, steps, steps)
        for member, steps in (("m0 pca", 1), ("m1 dense", 20))
        for group in ("north", "south", POOL)
    }
    assert all(isinstance(p, Progress) and np.isfinite(p.loss) for p in told)


def test_provenance_says_what_was_fitted_on_and_is_json(bundle):
    said = json.loads(json.dumps(bundle.provenance))
    assert said == bundle.provenance
    assert said["rows"] == {"north": 300, "south": 300, "young": 100}
    assert said["fit_range_ns"]["north"] == [0, 299 * MINUTE]
    assert (said["seed"], said["spec"]["dense_hidden"]) == (0, [8])
    assert set(said["versions"]) == {"python", "midwatch", "numpy", "numba", "torch"}
    dense = said["fits"]["north"]["m1 dense"]
    assert (dense["steps"], dense["stopped"], dense["windows"], dense["compression_ratio"]) == (20, "finished", 297, 12)
    assert np.isfinite([dense["loss"], dense["first_loss"]]).all()
    assert said["fits"]["north"]["m0 pca"]["windows"] == 293


def test_channels_that_were_never_observed_are_named():
    observed = np.ones((300, 3), np.bool_)
    observed[:, 1] = False
    north = changed(FLEET[0], x=np.where(observed, FLEET[0].x, np.float32(0)), observed=observed)
    fitted = fit_bundle([north, FLEET[1]], quick(members=("pca",)))
    assert fitted.provenance["fits"]["north"]["never_observed"] == ["head"]
    assert fitted.provenance["fits"]["south"]["never_observed"] == []
    assert all(np.isfinite(value).all() for value in fitted.tensors.values())


def test_too_little_history_says_how_much_there_is_and_how_much_is_needed():
    with pytest.raises(TooLittleHistory, match="93 windows of 8 confirmed-normal rows, 150 needed") as refused:
        fit_bundle(FLEET[2:], quick())
    assert (refused.value.have, refused.value.need) == (93, 150)


def test_short_assets_make_up_a_pool_together():
    fitted = fit_bundle([pump("a", n=100), pump("b", n=100, seed=4)], quick(members=("pca",)))
    assert fitted.groups == (POOL,)


def test_nothing_to_train_on_is_too_little_history():
    with pytest.raises(TooLittleHistory, match="0 windows"):
        fit_bundle([], quick())


def test_training_that_diverges_makes_no_bundle_and_says_which_member():
    with pytest.raises(TrainingError, match=r"m1 dense of 'north': .* lower train.learning_rate \(now 1e\+38\)"):
        fit_bundle(FLEET, quick(learning_rate=1e38))


def test_early_stopping_uses_the_part_that_is_held_out():
    fitted = fit_bundle(FLEET[:1], quick(members=("dense",), hold_out=0.2, patience=1, schedule="plateau", steps=2000))
    said = fitted.provenance["fits"][POOL]["m0 dense"]
    assert said["held_out_loss"] is not None
    assert said["windows"] == 238
    assert said["weights_step"] <= said["steps"]


def test_windows_to_train_on_and_held_out_ones_are_a_window_apart_in_every_series():
    series = (pump("a", n=60), pump("b", n=41, seed=1))
    x = np.concatenate([one.x for one in series])
    seen = np.ones(x.shape, np.bool_)
    pool = _Pool(series, x, seen, np.zeros(3, np.float32), np.ones(3, np.float32), np.ones(3, np.bool_))
    kept, held = pool.ends(5, 0.3)
    assert len(kept)
    assert len(held)
    for first, stop in ((0, 60), (60, 101)):
        mine = kept[(kept >= first) & (kept < stop)]
        theirs = held[(held >= first) & (held < stop)]
        assert mine.min() == first + 4
        assert theirs.min() - 5 + 1 == mine.max() + 5 + 1  # five rows lie between the two parts
        assert theirs.max() == stop - 1


def test_an_asset_may_come_in_several_series_and_no_window_spans_two():
    parts = [pump("north", n=180, seed=1), pump("north", n=180, seed=5, first=5000)]
    fitted = fit_bundle(parts, quick(members=("pca",)))
    assert fitted.provenance["rows"] == {"north": 360}
    assert fitted.provenance["fits"][POOL]["m0 pca"]["windows"] == 2 * (180 - 7)
    assert same(dict(fitted.tensors), dict(fit_bundle(parts[::-1], quick(members=("pca",))).tensors))


def test_stuck_frames_are_four_times_the_longest_run_of_any_asset():
    def held(runs):
        column = np.repeat(np.arange(len(runs)), runs).astype(np.float32)
        x = np.zeros((len(column), 3), np.float32)
        x[:, 0], x[:, 1] = column, np.arange(len(column))
        observed = np.ones(x.shape, np.bool_)
        observed[:, 2] = False
        base = pump("a", n=len(column))
        return changed(base, x=x, observed=observed)

    assert learn_stuck_frames([held([1, 3, 2]), held([2, 9])]) == (36, 5, 0)
    assert learn_stuck_frames([held([60, 1])]) == (240, 5, 0)
    assert learn_stuck_frames([held([61, 1])]) == (0, 5, 0)


def test_a_break_in_time_is_in_no_window():
    continuity = np.zeros(300, np.uint8)
    continuity[150] = Continuity.NEW_WINDOW
    fitted = fit_bundle([changed(FLEET[0], continuity=continuity)], quick(members=("pca",)))
    assert fitted.provenance["fits"][POOL]["m0 pca"]["windows"] == 2 * (150 - 7)


def test_series_with_other_channels_are_refused():
    with pytest.raises(ShapeError, match="'north' has 3 channels, the spec 2: flow, head"):
        fit_bundle(FLEET, TrainSpec(("flow", "head"), MINUTE))


def test_an_asset_named_like_the_pool_is_refused():
    with pytest.raises(TrainingError, match="rename it"):
        fit_bundle([pump(POOL), pump("b")], quick())
