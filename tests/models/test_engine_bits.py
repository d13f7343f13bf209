"""The bits of a score depend on the asset's own rows alone: whatever is done to the batches, scores stay equal."""

from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import make_bundle, make_rows

from models.engine import HostEngine, open_engine
from pipeline.bundle import MemberSpec

torch.set_num_threads(1)

CHANNELS, ASSETS = 5, 6  # five channels: rows of a window are never aligned by luck
BUNDLE = make_bundle(
    [
        MemberSpec("pca", 7),
        MemberSpec("dense", 4, error="window", params={"hidden": (13, 9), "latent": 3}),
        MemberSpec("conv", 6, aggregate="mahalanobis", params={"hidden": (7,), "latent": 3}),
    ],
    CHANNELS,
    groups=2,
)
CASES = settings(deadline=None, max_examples=25)


ENGINE = HostEngine(BUNDLE)


@contextmanager
def slots_of(engine=ENGINE):
    """Slots that others have used before."""
    slots = engine.allocate([f"a{i}" for i in range(ASSETS)])
    yield slots
    engine.drop(slots)


@cache
def rows_of(seed, n=400, missing=0.02):
    return make_rows(n, CHANNELS, ASSETS, seed, missing, restarts=0.005)


@cache
def whole(seed, n=400):
    rows, engine = rows_of(seed, n), HostEngine(BUNDLE)
    slots = engine.allocate([f"a{i}" for i in range(ASSETS)])
    return engine.push([(rows, slots[rows.asset])])[0]


def same_bits(parts, want):
    for name in ("score", "by_channel", "expected", "actual", "coverage", "status"):
        got = np.concatenate([getattr(part, name) for part in parts])
        assert got.tobytes() == getattr(want, name).tobytes(), name


@CASES
@given(st.integers(0, 5), st.lists(st.integers(0, 400), max_size=8))
def test_cutting_the_input_into_other_batches_changes_no_bit(seed, cuts):
    rows = rows_of(seed)
    parts = [rows.take(slice(a, b)) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(rows)], strict=True)]
    with slots_of() as slots:
        same_bits([ENGINE.push([(part, slots[part.asset])])[0] for part in parts], whole(seed))


@pytest.mark.parametrize("asked", [("bfloat16",), ("int8",), ("float32", "latency")])
def test_every_profile_keeps_its_bits_however_the_input_is_cut(asked):
    engine, rows = open_engine(BUNDLE, "cpu", *asked), rows_of(1)
    assert engine.fallbacks == ()
    first, second = (engine.allocate([f"a{i}" for i in range(ASSETS)]) for _ in range(2))
    want = engine.push([(rows, first[rows.asset])])[0]
    cuts = np.cumsum([0, 1, 1, 7, 8, 9, 30, 100, 3, 241])
    parts = [rows.take(slice(a, b)) for a, b in pairwise(cuts.tolist())]
    same_bits([engine.push([(part, second[part.asset])])[0] for part in parts], want)


def test_one_row_at_a_time_changes_no_bit():
    rows = rows_of(0, 150)
    with slots_of() as slots:
        parts = [rows.take(slice(i, i + 1)) for i in range(len(rows))]
        same_bits([ENGINE.push([(part, slots[part.asset])])[0] for part in parts], whole(0, 150))


@CASES
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_spreading_assets_over_partitions_and_interleaving_them_changes_no_bit(seed, random):
    rows = rows_of(seed)
    turns = rows.asset.tolist()
    random.shuffle(turns)
    # each asset keeps the order of its own rows, but they come at other times
    place = np.empty(len(rows), np.int64)
    for asset in range(ASSETS):
        place[np.flatnonzero(np.array(turns) == asset)] = np.flatnonzero(rows.asset == asset)
    partition = np.array([random.randrange(3) for _ in range(ASSETS)])
    index = [place[partition[rows.asset[place]] == p] for p in range(3)]
    with slots_of() as slots:
        got = ENGINE.push([(part, slots[part.asset]) for part in (rows.take(at) for at in index)])
    back = np.argsort(np.concatenate(index))
    want = whole(seed)
    for name in ("score", "by_channel", "expected", "coverage", "status"):
        joined = np.concatenate([getattr(part, name) for part in got])[back]
        assert joined.tobytes() == getattr(want, name).tobytes(), name


@CASES
@given(st.integers(0, 5), st.integers(0, 400), st.lists(st.integers(0, ASSETS - 1), unique=True))
def test_saving_and_loading_windows_anywhere_changes_no_bit(seed, cut, moved):
    rows = rows_of(seed)
    first, second = rows.take(slice(0, cut)), rows.take(slice(cut, None))
    with slots_of() as slots:
        before = ENGINE.push([(first, slots[first.asset])])[0]
        raw = ENGINE.dump(slots[moved])
        with slots_of() as fresh:
            ENGINE.load(fresh[moved], raw)
            again = ENGINE.dump(fresh[moved])
            assert (again.x.tobytes(), again.observed.tobytes()) == (raw.x.tobytes(), raw.observed.tobytes())
            assert again.count.tolist() == raw.count.tolist()
            now = np.where(np.isin(np.arange(ASSETS), moved), fresh, slots)
            after = ENGINE.push([(second, now[second.asset])])[0]
    same_bits([before, after], whole(seed))


@CASES
@given(st.integers(0, 5), st.integers(0, 400))
def test_filling_and_then_scoring_equals_scoring_all_along(seed, cut):
    rows = rows_of(seed)
    first, second = rows.take(slice(0, cut)), rows.take(slice(cut, None))
    with slots_of() as slots:
        ENGINE.fill([(first, slots[first.asset])])
        got = ENGINE.push([(second, slots[second.asset])])[0]
    assert got.score.tobytes() == whole(seed).score[cut:].tobytes()


@pytest.mark.parametrize("neighbours", [0.0, 0.02, 0.3])
def test_a_row_has_the_same_bits_whatever_gaps_its_neighbours_have(neighbours):
    mine = make_rows(60, CHANNELS, 1, seed=1, missing=0.01)
    others = make_rows(600, CHANNELS, ASSETS - 1, seed=2, missing=neighbours)
    with slots_of() as slots:
        want = ENGINE.push([(mine, slots[mine.asset])])[0]
    with slots_of() as slots:
        for i in range(6):
            part, other = mine.take(slice(10 * i, 10 * i + 10)), others.take(slice(100 * i, 100 * i + 100))
            got = ENGINE.push([(other, slots[1 + other.asset]), (part, slots[part.asset])])[1]
            assert got.score.tobytes() == want.score[10 * i : 10 * i + 10].tobytes()
