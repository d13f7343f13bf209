"""What every batch engine does before and after its models: rows of several partitions in, one `Scores` for each out.

Legend: n rows, C channels, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.scaling import unscale_scalar
from pipeline.bundle import Bundle
from pipeline.errors import BundleError, ShapeError
from pipeline.values import Bool, Float32, Int32, Int64, Rows, Scores, UInt8


class Joined(NamedTuple):
    """Rows of several batches, one after the other."""

    x: Float32  # (n, C)
    observed: Bool  # (n, C)
    continuity: UInt8  # (n,)
    slots: Int32  # (n,)


class Found(NamedTuple):
    """What scoring found out about each of n rows; NaN and 0 until then."""

    status: UInt8  # (n,)
    coverage: Float32  # (n,)
    score: Float32  # (n,)
    by_channel: Float32  # (n, C)
    expected: Float32  # (n, C), in input units


def join(batches: Sequence[tuple[Rows, Int32]], channels: int, model_id: str) -> Joined:
    """Return the rows of batches in order.

    Raises
    ------
    ShapeError : rows of other channels than the bundle's, or slots that do not match them.
    """
    for rows, slots in batches:
        if rows.x.shape != (len(slots), channels):
            raise ShapeError(
                f"rows of partition {rows.partition} are {rows.x.shape} with {len(slots)} slots, "
                f"bundle {model_id} takes (n, {channels}) with n slots"
            )
    some = batches or [(Rows.empty(0, channels), np.empty(0, np.int32))]
    parts = [(rows.x, rows.observed, rows.continuity, slots) for rows, slots in some]
    x, observed, continuity, slots = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    # Kernels are compiled for writable arrays; a read-only one is copied rather than compiled for again.
    return Joined(
        _usable(x, np.float32), _usable(observed, np.bool_), _usable(continuity, np.uint8), _usable(slots, np.int32)
    )


def _usable(column: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    flags = column.flags
    if column.dtype == dtype and flags.c_contiguous and flags.writeable:
        return column
    return np.require(column, dtype, ["C", "W"])


def hand_out(
    batches: Sequence[tuple[Rows, Int32]],
    joined: Joined,
    found: Found,
    model_id: str,
    actual: Float32 | None = None,
    lag_ns: int = 0,
) -> list[Scores]:
    """Return what was found about joined rows, batch by batch.

    Parameters
    ----------
    actual : (n, C), the rows that are scored; None: the joined ones themselves.
    lag_ns : how far these lie before the joined ones.
    """
    if actual is None:
        actual = np.where(joined.observed, joined.x, np.float32(np.nan))
    if len(batches) == 1:
        return [_told(batches[0][0], found, actual, model_id, lag_ns)]
    out, at = [], 0
    for rows, _ in batches:
        part = slice(at, at + len(rows))
        status, coverage, score, by_channel, expected = found
        own = Found(status[part], coverage[part], score[part], by_channel[part], expected[part])
        out.append(_told(rows, own, actual[part], model_id, lag_ns))
        at = part.stop
    return out


def _told(rows: Rows, found: Found, actual: Float32, model_id: str, lag_ns: int) -> Scores:
    return Scores(
        partition=rows.partition,
        asset=rows.asset,
        ts_ns=rows.ts_ns,
        offset=rows.offset,
        row=rows.row,
        continuity=rows.continuity,
        score=found.score,
        by_channel=found.by_channel,
        expected=found.expected,
        actual=actual,
        coverage=found.coverage,
        status=found.status,
        model_id=model_id,
        lag_ns=lag_ns,
    )


def nothing(n: int, channels: int) -> Found:
    """Return what is known of n rows before they are scored."""
    score, expected = np.empty(n, np.float32), np.empty((n, channels), np.float32)
    score.fill(np.nan)
    expected.fill(np.nan)
    by_channel = np.zeros((n, channels), np.float32)
    return Found(np.zeros(n, np.uint8), np.zeros(n, np.float32), score, by_channel, expected)


def by_group(group: Int32) -> Iterator[tuple[int, Int64]]:
    """Yield each group and its rows, in order. An asset has one group, so the order of its rows is kept."""
    if len(group) == 1 or (len(group) and (group == group[0]).all()):
        yield int(group[0]), np.arange(len(group))
        return
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    for part in np.split(order, ends) if len(order) else []:
        yield int(group[part[0]]), part


def groups_of(bundle: Bundle, assets: Sequence[str]) -> Int32:
    """Return the group that scores each asset; -1: none does."""
    default = -1 if bundle.default_group is None else bundle.default_group
    return np.array([bundle.asset_group.get(name, default) for name in assets], np.int32)


def scalers(bundle: Bundle, name: str) -> Float32:
    """Return `name` of all groups' scalers, (G, C)."""
    found = [bundle.tensors.get(f"g{g}.scaler.{name}", np.empty(0)) for g in range(len(bundle.groups))]
    for g, tensor in enumerate(found):
        if tensor.shape != (len(bundle.channels),):
            raise BundleError(
                f"bundle {bundle.id}: g{g}.scaler.{name} is {tensor.shape}, not ({len(bundle.channels)},)"
            )
    return np.stack(found).astype(np.float32)


@njit(nogil=True, cache=True)
def to_input_units(
    total: Float32,
    members: int,
    at: Int64,
    observed: Bool,
    loc: Float32,
    scale: Float32,
    soft_clip: float,
    out: Float32,
) -> None:
    """Write the mean of what members expect to the rows `at` of `out`, in input units, where observed."""
    for i in range(len(at)):
        for c in range(total.shape[1]):
            if observed[at[i], c]:
                out[at[i], c] = unscale_scalar(total[i, c] / np.float32(members), loc[c], scale[c], soft_clip)
