"""Rows to try stages of the fold with, and ways to cut a log and to move state, that must change nothing."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np

from pipeline.state import AssetTable
from pipeline.values import Rows


def rows_of(asset, ts_ns, x, observed=None, quality=None, continuity=None):
    """Rows with offsets 0, 1, 2, ...; unobserved readings are ABSENT unless `quality` says otherwise."""
    n = len(ts_ns)
    x = np.array(x, np.float32)
    x = x if x.ndim == 2 else x.reshape(n, 1)
    if quality is not None:
        quality = np.array(quality, np.uint8).reshape(x.shape)
        observed = quality == 0
    observed = np.ones(x.shape, np.bool_) if observed is None else np.array(observed, np.bool_).reshape(x.shape)
    return Rows(
        partition=0,
        asset=np.broadcast_to(np.array(asset, np.int32), n).copy(),
        ts_ns=np.array(ts_ns, np.int64),
        x=np.where(observed, x, np.float32(0)),
        observed=observed,
        quality=np.where(observed, 0, 1).astype(np.uint8) if quality is None else quality,
        offset=np.arange(n, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8) if continuity is None else np.array(continuity, np.uint8),
    )


def table_of(columns, assets):
    table = AssetTable(columns)
    for i in range(assets):
        table.code(f"a{i}")
    return table


def carried_over(table, columns):
    """The same assets, each packed and unpacked into a fresh table."""
    other = AssetTable(columns)
    for code, name in enumerate(table.names):
        assert other.unpack(name, table.pack(code)) == code
    return other


def pieces(n, cuts):
    """Slices of 0..n cut at `cuts`, empty ones included."""
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    return [slice(a, b) for a, b in pairwise(edges)]


def arrays_of(value):
    """The array fields of a columnar value, by name."""
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def joined(values):
    """The arrays of several columnar values of one kind, end to end."""
    parts = [arrays_of(v) for v in values]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def assert_same_bits(one, other, leave_out=()):
    for name in one:
        if name not in leave_out:
            assert one[name].dtype == other[name].dtype, name
            assert one[name].shape == other[name].shape, name
            assert one[name].tobytes() == other[name].tobytes(), name
