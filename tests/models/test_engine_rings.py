"""Rings against a list of the last rows of each slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine_rings import Chunk, Rings, padded
from models.scaling import scale
from pipeline.values import Status

ROWS, SLOTS, LIMIT = 4, 3, 2.0


@given(
    seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3, 16, 20]), gappy=st.sampled_from([0.0, 0.02, 0.5])
)
@settings(max_examples=60, deadline=None)
def test_rings_hold_what_a_list_of_the_last_rows_holds(seed, channels, gappy):
    g = np.random.default_rng(seed)
    loc, spread = g.normal(size=(1, channels)).astype(np.float32), g.uniform(0.5, 2, (1, channels)).astype(np.float32)
    rings = Rings(ROWS, loc, spread, LIMIT)
    slots = rings.allocate(np.zeros(SLOTS, np.int32))
    held = {int(s): [] for s in slots}
    for _ in range(6):
        if g.random() < 0.3:  # a slot that another asset gets; what it had stays in its arrays
            gone = g.choice(slots, 1)
            rings.drop(gone)
            slots = np.append(slots[slots != gone[0]], rings.allocate(np.zeros(1, np.int32)))
            held = {int(s): held[int(s)] if s != gone[0] else [] for s in slots}
        n = int(g.integers(1, 30))
        where = g.choice(slots, n).astype(np.int32)
        observed = g.random((n, channels)) >= gappy
        x = np.where(observed, 2 * g.normal(size=(n, channels)), 0).astype(np.float32)
        starts = (g.random(n) < 0.05).astype(np.uint8)
        windows = _taken(rings, x, observed, starts, where)
        scaled = scale(x, observed, loc[0], spread[0], LIMIT)
        for i, s in enumerate(where.tolist()):
            held[s] = [*([] if starts[i] else held[s]), (x[i], observed[i], scaled[i])][-ROWS:]
            masks = np.array([row[1] for row in held[s]])
            whole = len(held[s]) == ROWS and observed[i].any() and masks.mean() >= 0.5
            assert (i in windows) == whole
            if whole:
                got, seen, age = windows[i]
                assert got.tobytes() == np.concatenate([row[2] for row in held[s]]).tobytes()
                gaps = [k for k, mask in enumerate(masks[::-1]) if not mask.all()]
                assert age == (gaps[0] if gaps else ROWS)
                assert age == ROWS or (seen == masks.ravel()).all()
        raw = rings.dump(np.array(list(held), np.int32))
        for k, rows in enumerate(held.values()):
            assert raw.count[k] == len(rows)
            for row, kept, mask in zip(rows[::-1], raw.x[k][::-1], raw.observed[k][::-1], strict=False):
                assert (row[0] == kept).all()
                assert (row[1] == mask).all()


def _taken(rings, x, observed, starts, where):
    """Return window, mask and age by the row that ended it, taken in chunks of two."""
    readings = ROWS * x.shape[1]
    chunk = Chunk(
        x=np.zeros((2, padded(readings)), np.float32),
        observed=np.zeros((2, readings), np.bool_),
        ends=np.zeros(2, np.int64),
        age=np.zeros(2, np.int32),
    )
    status, coverage = np.zeros(len(x), np.uint8), np.zeros(len(x), np.float32)
    order, found = np.arange(len(x)), {}
    while len(order):
        taken, k = rings.take(x, observed, starts, where, order, chunk, status, coverage)
        for j in range(k):
            found[int(chunk.ends[j])] = chunk.x[j, :readings].copy(), chunk.observed[j].copy(), int(chunk.age[j])
        order = order[taken:]
    assert set(np.flatnonzero(status == Status.CALIBRATED)) == set(found)
    return found


def test_slots_that_no_group_scores_keep_their_rows():
    rings = Rings(ROWS, np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32), LIMIT)
    slots = rings.allocate(np.array([-1], np.int32))
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    rings.store(x, np.ones(x.shape, np.bool_), np.zeros(5, np.uint8), np.repeat(slots, 5))
    assert rings.dump(slots).x[0] == pytest.approx(x[1:])
