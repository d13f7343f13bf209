"""Rows of a finite source -> one series an asset, through the same decode, align and gate as the live watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from models.series import Series
from pipeline.chain import ChainSpec, front, front_columns
from pipeline.errors import InputError
from pipeline.protocols import Source
from pipeline.state import AssetTable
from pipeline.values import Bool, Quality, Rows

_FAULTS = tuple(
    int(q) for q in (Quality.STUCK, Quality.JUMP, Quality.MISSING, Quality.OUT_OF_RANGE, Quality.NON_FINITE)
)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a source held: a series per asset, and which of their rows carry a quality fault."""

    series: tuple[Series, ...]
    faulty: tuple[Bool, ...]  # (n,) for each series
    rows: int
    late: int
    dead: int


def gather(source: Source, spec: ChainSpec, told: Callable[[int], None] | None = None) -> Gathered:
    """Read a finite source to its end. `told` is called with the rows read so far.

    The gate uses the configured limits only: learned ones come from the very bundle that is about to be fitted.
    """
    tables: dict[int, AssetTable] = {}
    frames: dict[int, list[Rows]] = {}
    rows = late = dead = 0
    while not source.ended():
        for polled in source.poll(8192, 1.0):
            table = tables.setdefault(polled.partition, AssetTable(front_columns(spec), spec.max_assets))
            decoded, aligned = front(polled, table, spec)
            frames.setdefault(polled.partition, []).append(aligned.rows)
            rows, late, dead = rows + len(decoded.rows), late + len(aligned.late), dead + len(decoded.dead)
        if told is not None:
            told(rows)
    parts = [gathered(tables[p].names, found) for p, found in frames.items()]
    return replace(merge(parts), rows=rows, late=late, dead=dead)


def gathered(names: Sequence[str], frames: Sequence[Rows], *, rows: int = 0, late: int = 0) -> Gathered:
    """Return aligned, gated frames of one log, whose asset codes mean `names`, as a series for each asset."""
    both = _by_asset(names, frames)
    return Gathered(tuple(s for s, _ in both), tuple(f for _, f in both), rows, late, 0)


def merge(parts: Sequence[Gathered]) -> Gathered:
    """Join what several sources held. An asset's rows may come from several of them, one after another in time.

    Raises
    ------
    InputError : two sources hold rows of the same asset that overlap in time.
    """
    by_asset: dict[str, list[tuple[Series, Bool]]] = {}
    for part in parts:
        for s, faulty in zip(part.series, part.faulty, strict=True):
            by_asset.setdefault(s.asset, []).append((s, faulty))
    joined = [_join(asset, sorted(found, key=lambda f: int(f[0].ts_ns[0]))) for asset, found in by_asset.items()]
    return Gathered(
        tuple(s for s, _ in joined),
        tuple(f for _, f in joined),
        sum(p.rows for p in parts),
        sum(p.late for p in parts),
        sum(p.dead for p in parts),
    )


def normal_unless_faulty(gathered: Gathered) -> tuple[Series, ...]:
    """Return the series with every row marked normal that carries no quality fault."""
    return tuple(replace(s, normal=s.normal & ~bad) for s, bad in zip(gathered.series, gathered.faulty, strict=True))


def _by_asset(names: Sequence[str], parts: Sequence[Rows]) -> list[tuple[Series, Bool]]:
    asset = np.concatenate([r.asset for r in parts])
    order = np.argsort(asset, kind="stable")
    bounds = np.searchsorted(asset[order], np.arange(len(names) + 1))
    columns = {name: np.concatenate([getattr(r, name) for r in parts])[order] for name in _COLUMNS}
    faulty = np.asarray(np.isin(columns.pop("quality"), _FAULTS).any(axis=1), np.bool_)
    out = []
    for code, name in enumerate(names):
        cut = slice(bounds[code], bounds[code + 1])
        if cut.stop > cut.start:
            own = {k: np.ascontiguousarray(v[cut]) for k, v in columns.items()}
            out.append((Series(asset=name, normal=np.ones(cut.stop - cut.start, np.bool_), **own), faulty[cut]))
    return out


_COLUMNS = ("ts_ns", "x", "observed", "continuity", "quality")


def _join(asset: str, found: Sequence[tuple[Series, Bool]]) -> tuple[Series, Bool]:
    if len(found) == 1:
        return found[0]
    for (before, _), (after, _) in pairwise(found):
        if before.ts_ns[-1] >= after.ts_ns[0]:
            raise InputError(
                f"asset {asset!r} has rows of the same time in two inputs: leave one of them out, or rename the asset"
            )
    names = ("ts_ns", "x", "observed", "continuity", "normal")
    columns = {name: np.concatenate([getattr(s, name) for s, _ in found]) for name in names}
    return Series(asset=asset, **columns), np.concatenate([f for _, f in found])
