from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.synthetic import Kind, correlation_break, drift, inject, level_shift, noise, spikes
from pipeline.errors import InputError, ShapeError, TooLittleHistory


def plant(n: int = 2000, channels: int = 4, seed: int = 0):
    """Channels that follow one another, with a scale of their own each."""
    rng = np.random.default_rng(seed)
    common = np.sin(2 * np.pi * np.arange(n) / 100)[:, None]
    scale = np.array([1.0, 10.0, 0.1, 5.0])[:channels]
    x = ((common + 0.1 * rng.normal(size=(n, channels))) * scale).astype(np.float32)
    return x, np.ones(x.shape, np.bool_), scale


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    a, b, c = (inject(*plant(), seed=s) for s in (1, 1, 2))
    assert a.x.tobytes() == b.x.tobytes()
    assert a.faults == b.faults
    assert a.faults != c.faults


def test_nothing_changes_outside_the_labelled_rows_and_the_input_stays():
    x, observed, scale = plant()
    kept = x.copy()
    out = inject(x, observed, scale, seed=3, times=2)
    assert np.array_equal(x, kept)
    changed = out.x != x
    assert not changed[~out.label].any()
    for fault in out.faults:
        others = np.delete(changed[fault.start : fault.stop], fault.channel, axis=1)
        assert not others.any()
        assert changed[fault.start : fault.stop, fault.channel].any()
    assert out.label.sum() == 60 * len(out.faults)
    assert out.intervals.tolist() == [[f.start, f.stop] for f in out.faults]


def test_every_kind_is_injected_as_often_as_asked():
    out = inject(*plant(), seed=4, times=3)
    assert {k: sum(f.kind == k for f in out.faults) for k in Kind} == dict.fromkeys(Kind, 3)
    assert out.skipped == dict.fromkeys(Kind, 0)


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40), quiet=st.integers(0, 40), times=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_faults_are_in_order_with_quiet_rows_before_each(seed, rows, quiet, times):
    out = inject(*plant(), seed=seed, rows=rows, quiet_rows=quiet, times=times)
    edges = [0, *out.intervals.ravel().tolist()]
    for end, start in zip(edges[::2], edges[1::2], strict=False):
        assert start - end >= quiet
    assert all(f.stop - f.start == rows for f in out.faults)
    assert edges[-1] <= 2000


def test_magnitude_is_in_units_of_the_channels_scale():
    x, observed, scale = plant()
    out = inject(x, observed, scale, seed=5, kinds=[Kind.LEVEL_SHIFT], times=8, magnitude=3.0)
    assert {f.channel for f in out.faults} == {0, 1, 2, 3}
    for f in out.faults:
        moved = (out.x - x)[f.start : f.stop, f.channel]
        assert np.abs(moved) == pytest.approx(3.0 * scale[f.channel], rel=1e-4)
        assert f.size == pytest.approx(3.0)


def test_shapes_of_the_faults():
    rng = np.random.default_rng(0)
    flat = np.zeros(1000)
    assert level_shift(flat, 2.0).tolist() == [2.0] * 1000
    ramp = drift(flat, 2.0)
    assert (ramp[0], ramp[-1]) == (0.002, 2.0)
    assert np.all(np.diff(ramp) > 0)
    assert noise(flat, 2.0, rng).std() == pytest.approx(2.0, rel=0.1)
    train = spikes(flat, 2.0, rng)
    assert np.count_nonzero(train) == 200
    assert set(train[train != 0].tolist()) == {-2.0, 2.0}
    assert np.count_nonzero(spikes(np.zeros(2), 2.0, rng)) == 1


def test_a_correlation_break_takes_the_channels_own_values_from_another_time():
    x, observed, scale = plant()
    out = inject(x, observed, scale, seed=6, kinds=[Kind.CORRELATION_BREAK], times=5)
    assert len(out.faults) == 5
    for f in out.faults:
        taken = out.x[f.start : f.stop, f.channel]
        own = np.lib.stride_tricks.sliding_window_view(x[:, f.channel], 60)
        assert (own == taken).all(axis=1).any()
        assert f.size >= 0.5
        together = np.corrcoef(taken, x[f.start : f.stop, (f.channel + 1) % 4])[0, 1]
        assert together < 0.9  # the plant's channels are at 0.97 and above


def test_a_correlation_break_can_take_another_assets_values():
    x, observed, scale = plant()
    donor = np.full((100, 4), 7.0, np.float32)
    out = inject(x, observed, scale, 7, [Kind.CORRELATION_BREAK], donor=(donor, np.ones(donor.shape, np.bool_)))
    (fault,) = out.faults
    assert (out.x[fault.start : fault.stop, fault.channel] == 7.0).all()


def test_a_donor_with_gaps_or_too_few_rows_gives_nothing():
    rng = np.random.default_rng(0)
    short = np.ones((5, 1), np.float32)
    assert correlation_break(np.zeros(10), (short, short > 0), 0, rng) is None
    assert correlation_break(np.zeros(5), (short, short < 0), 0, rng) is None
    assert correlation_break(np.zeros(5), (short, short > 0), 0, rng).tolist() == [1.0] * 5


def test_a_constant_plant_cannot_break_its_correlation_and_says_so():
    x = np.ones((2000, 4), np.float32)
    out = inject(x, np.ones(x.shape, np.bool_), np.ones(4), seed=8, kinds=[Kind.CORRELATION_BREAK], times=2)
    assert out.faults == ()
    assert out.skipped == {Kind.CORRELATION_BREAK: 2}
    assert out.intervals.shape == (0, 2)


def test_unobserved_readings_stay_unobserved_zeros():
    x, observed, scale = plant()
    observed[np.random.default_rng(1).random(observed.shape) < 0.3] = False
    x[~observed] = 0.0
    out = inject(x, observed, scale, seed=9, kinds=[Kind.LEVEL_SHIFT, Kind.NOISE, Kind.SPIKES], times=3)
    assert len(out.faults) == 9
    assert (out.x[~observed] == 0.0).all()


def test_a_channel_that_is_mostly_unobserved_or_has_no_scale_is_left_alone():
    x, observed, scale = plant()
    observed[:, 1] = False
    out = inject(x, observed, scale * np.array([1, 1, 0, np.nan]), seed=10, times=2)
    assert {f.channel for f in out.faults} == {0}


def test_faults_keep_to_usable_rows():
    x, observed, scale = plant()
    usable = np.ones(2000, np.bool_)
    usable[200:1800:50] = False  # from here on no 60 rows in a row are usable
    out = inject(x, observed, scale, seed=11, times=2, usable=usable)
    assert len(out.faults) + sum(out.skipped.values()) == 10
    assert sum(out.skipped.values()) > 0
    assert all(usable[f.start : f.stop].all() for f in out.faults)


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(TooLittleHistory, match="500 held-out rows for 5 faults, 600 needed"):
        inject(*plant(500), seed=0)


@pytest.mark.parametrize(
    "options", [{"times": 0}, {"rows": 0}, {"magnitude": 0.0}, {"quiet_rows": -1}, {"kinds": []}], ids=str
)
def test_counts_that_are_not_positive_are_refused(options):
    with pytest.raises(InputError, match="must be positive"):
        inject(*plant(), seed=0, **options)


def test_arrays_that_do_not_fit_are_refused():
    x, observed, scale = plant()
    with pytest.raises(ShapeError, match="expected float32 and bool"):
        inject(x.astype(np.float64), observed, scale, seed=0)
    with pytest.raises(ShapeError, match=r"scale is \(3,\)"):
        inject(x, observed, scale[:3], seed=0)
    with pytest.raises(ShapeError, match="usable"):
        inject(x, observed, scale, seed=0, usable=np.ones(5, np.bool_))
    with pytest.raises(ShapeError, match="donor"):
        inject(x, observed, scale, seed=0, donor=(x[:, :2], observed[:, :2]))


def test_faults_are_plain_values():
    out = inject(*plant(), seed=1)
    assert {type(v) for f in out.faults for v in asdict(f).values()} == {Kind, int, float}
