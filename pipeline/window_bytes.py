"""Raw windows as bytes, and windows of one length made to fit another."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from pipeline.errors import StateError
from pipeline.protocols import RawWindows

_HEAD = struct.Struct("<III")  # rows kept, channels, count


def pack_windows(raw: RawWindows) -> list[bytes]:
    """Return each window as bytes: rows kept, channels, count (little-endian), x, then a bit a reading observed."""
    k, kept, channels = raw.x.shape
    head = [_HEAD.pack(kept, channels, int(c)) for c in raw.count]
    return [head[i] + raw.x[i].tobytes() + np.packbits(raw.observed[i]).tobytes() for i in range(k)]


def window_bytes(kept: int, channels: int) -> int:
    """Return how many bytes `pack_windows` makes of a window of `kept` rows."""
    values = kept * channels
    return _HEAD.size + 4 * values + (values + 7) // 8


def unpack_window(asset: str, packed: bytes) -> RawWindows:
    """Return the window that `pack_windows` wrote.

    Raises
    ------
    StateError : bytes of another length than they say.
    """
    kept, channels, count = _HEAD.unpack_from(packed)
    values = kept * channels
    size = window_bytes(kept, channels)
    if len(packed) != size:
        raise StateError(f"saved window of asset {asset!r} has {len(packed)} bytes, {size} expected")
    x = np.frombuffer(packed, np.float32, values, _HEAD.size).reshape(1, kept, channels)
    bits = np.frombuffer(packed, np.uint8, offset=_HEAD.size + 4 * values)
    observed = np.unpackbits(bits, count=values).astype(np.bool_).reshape(1, kept, channels)
    return RawWindows(x, observed, np.array([count], np.int32))


def join_windows(windows: Sequence[RawWindows], kept: int, channels: int) -> RawWindows:
    """Return windows as one, each made to hold `kept` rows.

    Raises
    ------
    StateError : windows of other channels.
    """
    if any(w.x.shape[2] != channels for w in windows):
        raise StateError(f"saved windows have other channels than the configured {channels}")
    fitted = [fit_windows(w, kept) for w in windows]
    return RawWindows(
        np.concatenate([w.x for w in fitted]),
        np.concatenate([w.observed for w in fitted]),
        np.concatenate([w.count for w in fitted]),
    )


def fit_windows(raw: RawWindows, kept: int) -> RawWindows:
    """Return the windows cut or padded at their old end, so that they hold `kept` rows."""
    k, had, channels = raw.x.shape
    take = min(had, kept)
    x = np.zeros((k, kept, channels), np.float32)
    observed = np.zeros((k, kept, channels), np.bool_)
    x[:, kept - take :], observed[:, kept - take :] = raw.x[:, had - take :], raw.observed[:, had - take :]
    return RawWindows(x, observed, np.minimum(raw.count, kept).astype(np.int32))
