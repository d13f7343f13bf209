"""The bits of a streamed score depend on the asset's own rows alone: whatever is done to the batches."""

from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import make_bundle
from naive_stream import grid_rows, stream_member

from models import stream_network
from models.stream_engine import StreamEngine

torch.set_num_threads(1)

C, ASSETS, N = 5, 6, 400  # five channels: rows are never aligned by luck
BUNDLE = make_bundle([stream_member((5, 5), (2, 2), rows=3)], C, groups=2)
ENGINE = StreamEngine(BUNDLE)
CASES = settings(deadline=None, max_examples=25)


@contextmanager
def slots_of(engine=ENGINE):
    """Slots that others have used before."""
    slots = engine.allocate([f"a{i}" for i in range(ASSETS)])
    yield slots
    engine.drop(slots)


@cache
def rows_of(seed):
    return grid_rows(N, C, ASSETS, seed, missing=0.02, restarts=0.004)


@cache
def whole(seed):
    rows, engine = rows_of(seed), StreamEngine(BUNDLE)
    slots = engine.allocate([f"a{i}" for i in range(ASSETS)])
    return engine.push([(rows, slots[rows.asset])])[0]


def same_bits(parts, want):
    for name in ("score", "by_channel", "expected", "actual", "coverage", "status"):
        got = np.concatenate([getattr(part, name) for part in parts])
        assert got.tobytes() == getattr(want, name).tobytes(), name


@CASES
@given(st.integers(0, 5), st.lists(st.integers(0, N), max_size=8))
def test_cutting_the_input_into_other_batches_changes_no_bit(seed, cuts):
    rows = rows_of(seed)
    parts = [rows.take(slice(a, b)) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), N], strict=True)]
    with slots_of() as slots:
        same_bits([ENGINE.push([(part, slots[part.asset])])[0] for part in parts], whole(seed))


def test_one_row_at_a_time_changes_no_bit():
    rows = rows_of(0)
    with slots_of() as slots:
        parts = [rows.take(slice(i, i + 1)) for i in range(N)]
        same_bits([ENGINE.push([(part, slots[part.asset])])[0] for part in parts], whole(0))


@CASES
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_spreading_assets_over_partitions_and_interleaving_them_changes_no_bit(seed, random):
    rows = rows_of(seed)
    turns = rows.asset.tolist()
    random.shuffle(turns)
    place = np.empty(N, np.int64)  # each asset keeps the order of its own rows, but they come at other times
    for asset in range(ASSETS):
        place[np.flatnonzero(np.array(turns) == asset)] = np.flatnonzero(rows.asset == asset)
    partition = np.array([random.randrange(3) for _ in range(ASSETS)])
    index = [place[partition[rows.asset[place]] == p] for p in range(3)]
    with slots_of() as slots:
        got = ENGINE.push([(part, slots[part.asset]) for part in (rows.take(at) for at in index)])
    back = np.argsort(np.concatenate(index))
    want = whole(seed)
    for name in ("score", "by_channel", "expected", "actual", "coverage", "status"):
        joined = np.concatenate([getattr(part, name) for part in got])[back]
        assert joined.tobytes() == getattr(want, name).tobytes(), name


@CASES
@given(st.integers(0, 5), st.lists(st.integers(0, N), min_size=1, max_size=4))
def test_saving_and_loading_raw_rows_anywhere_and_again_changes_no_bit(seed, cuts):
    rows, parts = rows_of(seed), []
    edges = [0, *sorted(cuts), N]
    slots = ENGINE.allocate([f"a{i}" for i in range(ASSETS)])
    for a, b in pairwise(edges):
        part = rows.take(slice(a, b))
        parts.append(ENGINE.push([(part, slots[part.asset])])[0])
        raw = ENGINE.dump(slots)
        ENGINE.drop(slots)
        slots = ENGINE.allocate([f"a{i}" for i in range(ASSETS)])[::-1].copy()
        slots = slots[np.argsort([ASSETS - 1 - i for i in range(ASSETS)])]
        ENGINE.load(slots, raw)
        again = ENGINE.dump(slots)
        assert (again.x.tobytes(), again.observed.tobytes()) == (raw.x.tobytes(), raw.observed.tobytes())
        assert again.count.tolist() == raw.count.tolist()
    ENGINE.drop(slots)
    same_bits(parts, whole(seed))


@CASES
@given(st.integers(0, 5), st.integers(0, N), st.integers(0, N))
def test_filling_and_then_scoring_equals_scoring_all_along(seed, first, second):
    rows, (a, b) = rows_of(seed), sorted((first, second))
    with slots_of() as slots:
        scored, filled, last = (rows.take(part) for part in (slice(0, a), slice(a, b), slice(b, None)))
        ENGINE.push([(scored, slots[scored.asset])])
        ENGINE.fill([(filled, slots[filled.asset])])
        got = ENGINE.push([(last, slots[last.asset])])[0]
    for name in ("score", "coverage", "status"):
        assert getattr(got, name).tobytes() == getattr(whole(seed), name)[b:].tobytes(), name


def test_a_machine_whose_products_depend_on_the_batch_takes_single_hops(monkeypatch):
    monkeypatch.setattr(stream_network, "keeps_bits", lambda run, shapes: False)
    engine = StreamEngine(BUNDLE)
    assert engine.fallbacks == ("g0.m0", "g1.m0")
    slots, rows = engine.allocate([f"a{i}" for i in range(ASSETS)]), rows_of(1)
    got = engine.push([(rows, slots[rows.asset])])[0]
    np.testing.assert_array_equal(got.status, whole(1).status)
    np.testing.assert_allclose(got.score, whole(1).score, rtol=1e-4)


@pytest.mark.parametrize("assets", [1, 300])
def test_more_hops_than_a_chunk_holds_change_no_bit(assets):
    n = 1600 if assets == 1 else 40 * assets
    rows = grid_rows(n, C, assets, seed=7)
    engine = StreamEngine(BUNDLE)
    names = [f"a{i % 40}" for i in range(assets)]
    slots, others = engine.allocate(names), engine.allocate(names)
    want = engine.push([(rows, slots[rows.asset])])[0]
    parts = [rows.take(slice(i, i + 97)) for i in range(0, n, 97)]
    same_bits([engine.push([(part, others[part.asset])])[0] for part in parts], want)
