"""What a bundle makes of the gate's rows: held-out normal rows, the same rows with faults, faults that were confirmed.

One `Trial` is made per night and put to every contestant, so that they are judged on the very same readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.profiles import FALLBACK, Profile
from models.promotion import GateLimits, Outcome, Suite, judge
from models.scaling import deviation
from models.scoring import Scored, ratios
from models.series import Series, window_ends
from models.synthetic import Kind, inject
from pipeline.bundle import Bundle
from pipeline.errors import InputError
from pipeline.values import Bool, Float32, Float64, Int64

FAULT_ROWS = 60
FAULT_SCALES = 6.0  # size of a fault, in standard deviations of its channel
_TIMES = 4  # most faults of each kind on one asset
_SETTLE_ROWS = 64  # before rows that count: what the EWMA needs after the window is full


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of event time of one asset, [start, end) in ns; an end of None is that of its rows."""

    asset: str
    start_ns: int
    end_ns: int | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What every contestant is judged on. One entry per series of held-out rows, warm-up rows in front."""

    held: tuple[Series, ...]
    counts: tuple[Bool, ...]  # (n,) of each: held-out rows whose whole window is normal
    faulted: tuple[Float32, ...]  # (n, C) of each: its readings with faults injected
    intervals: tuple[Int64, ...]  # (k, 2) of each: rows [start, stop) of the faults
    confirmed: tuple[Series, ...] = ()
    confirmed_at: tuple[Int64, ...] = ()  # (1, 2) of each

    @property
    def faults(self) -> int:
        """How many faults were injected."""
        return sum(len(one) for one in self.intervals)


def trial(
    series: Sequence[Series],
    rows: Mapping[str, slice],
    window: int,
    seed: int,
    confirmed: Sequence[Stretch] = (),
    faults_from: Mapping[str, int] | None = None,
) -> Trial:
    """Prepare held-out rows, and faults in them at seeded places.

    Every asset gets as many faults of `FAULT_ROWS` rows, with as much quiet before each, as its rows hold, at most
    four of each kind. A fault is on one channel, `FAULT_SCALES` of that channel's standard deviations in size; channels
    that never move are left alone.

    Parameters
    ----------
    series : all rows of each asset.
    rows : by asset, the rows to judge on (`models.splits.to_judge`).
    window : of the candidate, in rows: a row counts if all of that window is normal.
    confirmed : faults that operators confirmed; those without a row in `series` are left out.
    faults_from : by asset, the first row that may hold an injected fault, where that is before `rows`: what a bundle
        was calibrated on says nothing of its false alarms, but whether it finds a fault there it does not know.
    """
    by_asset = {one.asset: one for one in series}
    names = [name for name in sorted(rows) if name in by_asset]
    warm = window - 1 + _SETTLE_ROWS
    held, counts, faulted, intervals = [], [], [], []
    for i, name in enumerate(names):
        one, part = by_asset[name], rows[name]
        start = min((faults_from or {}).get(name, part.start), part.start)
        first = max(start - warm, 0)
        normal = np.zeros(len(one), np.bool_)
        normal[window_ends(one, window)] = True
        normal = normal[first : part.stop]
        held.append(_cut(one, slice(first, part.stop)))
        counts.append(normal & (np.arange(first, part.stop) >= part.start))
        x, at = _inject(held[-1], normal, _spread(one), start - first, window, seed, i)
        faulted.append(x)
        intervals.append(at)
    found = [_around(by_asset[c.asset], c, warm) for c in confirmed if c.asset in by_asset]
    kept = [both for both in found if both is not None]
    return Trial(
        tuple(held),
        tuple(counts),
        tuple(faulted),
        tuple(intervals),
        tuple(one for one, _ in kept),
        tuple(at for _, at in kept),
    )


def outcome(bundle: Bundle, on: Trial, profile: Profile = FALLBACK, name: str = "") -> Outcome:
    """Put a trial to a bundle, through the serving path of a profile.

    Parameters
    ----------
    name : what the gate's sentences call it; empty: its id.

    Raises
    ------
    InputError : the trial has no held-out rows.
    BundleError : the bundle has no calibration for the profile.
    """
    if not on.held:
        raise InputError("there are no held-out rows to judge a bundle on")
    clean = ratios(bundle, on.held, profile)
    hurt = ratios(bundle, on.held, profile, x=on.faulted)
    known = ratios(bundle, on.confirmed, profile) if on.confirmed else []
    calibration = bundle.calibration(profile.name)
    nothing = np.float32(np.nan)
    return Outcome(
        model_id=name or bundle.id,
        normal=np.concatenate([np.where(n, s.ratio, nothing) for s, n in zip(clean, on.counts, strict=True)]),
        injected=_suite(hurt, on.intervals),
        thresholds=dict(zip(calibration.assets, calibration.threshold[1:].tolist(), strict=True)),
        confirmed=_suite(known, on.confirmed_at) if on.confirmed else None,
    )


def flips(bundle: Bundle, on: Trial, profiles: Sequence[Profile]) -> dict[str, float]:
    """Return by profile the share of held-out windows that are on another side of the threshold than in float32.

    Each by the threshold that was fitted through its own profile; `models.profiles.FALLBACK`, the yardstick, is left
    out.
    """
    others = [profile for profile in profiles if profile.name != FALLBACK.name]
    if not others:
        return {}
    usual = _over(bundle, on, FALLBACK)
    return {profile.name: float((_over(bundle, on, profile) != usual).mean()) for profile in others}


def _over(bundle: Bundle, on: Trial, profile: Profile) -> Bool:
    """Return which of the held-out windows that count and are scored are over the threshold."""
    found = ratios(bundle, on.held, profile)
    return np.concatenate([s.ratio[n & np.isfinite(s.ratio)] > 1 for s, n in zip(found, on.counts, strict=True)])


def pca_alone(bundle: Bundle) -> Bundle | None:
    """Return the bundle with its first PCA member as the only one, not calibrated; None: it has no PCA member."""
    found = [m for m, member in enumerate(bundle.members) if member.kind == "pca"]
    if not found:
        return None
    tensors = {}
    for name, tensor in bundle.tensors.items():
        group, part, rest = name.split(".", 2)
        if part == "scaler":
            tensors[name] = tensor
        elif part == f"m{found[0]}":
            tensors[f"{group}.m0.{rest}"] = tensor
    return replace(bundle, id="", members=(bundle.members[found[0]],), calibrations={}, tensors=tensors)


def loses_to_pca(ensemble: Outcome, pca: Outcome, limits: GateLimits) -> str:
    """Return why PCA alone is to be served instead of an ensemble that contains it; empty: the ensemble is.

    The rule is the gate's on false alarms, between the two of them and nobody else, so that the choice depends on the
    night's rows alone and never on who is champion. Injected faults do not decide: each is on one channel, which suits
    PCA better than real faults do.
    """
    figures = judge(ensemble, None, pca, limits).figures
    if figures["far"] > figures["pca_far_limit"]:
        return f"{figures['far']:.2%} of held-out normal rows are false alarms, {figures['pca_far']:.2%} by PCA alone"
    return ""


def _spread(series: Series) -> Float64:
    """Return (C,) deviations of normal readings; 0 for a channel that does not move."""
    out = np.zeros(series.channels)
    for c in range(series.channels):
        values = series.x[series.normal & series.observed[:, c], c].astype(np.float64)
        if len(values):
            out[c] = deviation(values)
    return out


def _inject(
    series: Series, normal: Bool, scale: Float64, first: int, window: int, seed: int, place: int
) -> tuple[Float32, Int64]:
    """Return readings with faults from row `first` on, and where. As many as there is room for, kinds in turn."""
    quiet = max(FAULT_ROWS, window)
    room = (len(series) - first) // (FAULT_ROWS + quiet)
    kinds = tuple(Kind)
    if room < len(kinds):
        turn = (place * room) % len(kinds)
        kinds = (kinds[turn:] + kinds[:turn])[:room]
    if not kinds or not scale.any():
        return series.x, np.empty((0, 2), np.int64)
    part = slice(first, len(series))
    done = inject(
        series.x[part],
        series.observed[part],
        scale,
        seed=seed + place,
        kinds=kinds,
        times=max(1, min(_TIMES, room // len(kinds))),
        magnitude=FAULT_SCALES,
        rows=FAULT_ROWS,
        quiet_rows=quiet,
        usable=normal[part],
    )
    return np.concatenate([series.x[:first], done.x]), done.intervals + first


def _around(series: Series, stretch: Stretch, warm: int) -> tuple[Series, Int64] | None:
    """Return the rows of a confirmed fault with warm-up in front, and where it is in them; None: it has none."""
    start = int(np.searchsorted(series.ts_ns, stretch.start_ns))
    stop = len(series) if stretch.end_ns is None else int(np.searchsorted(series.ts_ns, stretch.end_ns))
    if stop <= start:
        return None
    first = max(start - warm, 0)
    return _cut(series, slice(first, stop)), np.array([[start - first, stop - first]], np.int64)


def _cut(series: Series, rows: slice) -> Series:
    names = ("ts_ns", "x", "observed", "continuity", "normal")
    return replace(series, **{name: getattr(series, name)[rows] for name in names})


def _suite(scored: Sequence[Scored], intervals: Sequence[Int64]) -> Suite:
    """Join the ratios of several series, and move their intervals to where they are then."""
    before = np.cumsum([0] + [len(s.ratio) for s in scored])[:-1]
    moved = [at + first for at, first in zip(intervals, before.tolist(), strict=True)]
    return Suite(np.concatenate([s.ratio for s in scored]), np.concatenate(moved))
