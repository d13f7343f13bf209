"""Polls of messages, as decoding takes them, and what it gives in a form to compare."""

from __future__ import annotations

import numpy as np

from pipeline.decode import decode
from pipeline.state import AssetTable
from pipeline.values import Polled


def polled_of(messages, keys=None, log_ns=0, first_offset=100):
    """One partition's messages; `log_ns` for all, or one each."""
    n = len(messages)
    offset = np.arange(first_offset, first_offset + n, dtype=np.int64)
    return Polled("feed", 3, offset, np.broadcast_to(np.int64(log_ns), n).copy(), messages, keys)


def rows_of(decoded, table):
    """Rows as the naive decoder gives them."""
    r = decoded.rows
    names = [table.names[code] for code in r.asset]
    columns = zip(
        r.offset.tolist(), r.row.tolist(), names, r.ts_ns.tolist(), r.x.tolist(), r.quality.tolist(), strict=True
    )
    return list(columns)


def dead_of(decoded):
    """Dead letters as the naive decoder gives them."""
    return [(d.offset, d.row, d.reason, d.value) for d in decoded.dead]


def one(message, mapping, key=None, log_ns=0):
    """Decode one message: its rows and dead letters."""
    table = AssetTable({})
    decoded = decode(polled_of([message], None if key is None else [key], log_ns), mapping, table)
    return rows_of(decoded, table), decoded.dead


def bits(decoded):
    """Everything of a result, bit by bit."""
    r = decoded.rows
    arrays = (r.asset, r.ts_ns, r.x, r.observed, r.quality, r.offset, r.row, r.continuity)
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays], decoded.dead
