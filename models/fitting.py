"""From the normal history of a fleet to a fitted, not yet calibrated bundle."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.autoencoders import build_module
from models.engine_t_squared import statistic_of
from models.networks import network_of
from models.pca import control_limits, fit_pca
from models.residuals import channel_residuals, fit_aggregation
from models.scaling import fit_scale, fit_spread, fleet_spread, scale
from models.series import Series, longest_runs, thinned, window_ends
from models.stream_fitting import stream_residuals, to_train
from models.train_spec import TrainSpec, member_specs
from models.training import LoopSpec, Report, training_device
from models.training import train as train_module
from pipeline.bundle import Bundle, MemberSpec
from pipeline.errors import ShapeError, TooLittleHistory, TrainingError
from pipeline.values import Bool, Float32, Int64

__all__ = ["POOL", "Progress", "TrainSpec", "fit_bundle", "learn_stuck_frames", "member_specs"]

POOL = "*"  # the group of all assets together; no asset may be called so

_RESIDUAL_WINDOWS = 20_000  # of the fit part, evenly thinned, for the aggregation statistics
_STILL_ROWS = 60  # a channel that stayed still for longer in normal data is never called stuck
_STUCK_AT_LEAST = 5
_STUCK_FACTOR = 4
_LIBRARIES = ("midwatch", "numpy", "numba", "torch")

Tensors = dict[str, NDArray[np.generic]]
Told = dict[str, Any]  # for the provenance: JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one member of one group is; `loss` as of `step`."""

    member: str  # e.g. `m1 dense`
    group: str
    step: int
    steps: int
    loss: float


def fit_bundle(
    train: Sequence[Series],
    spec: TrainSpec,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
) -> Bundle:
    """Fit every member for every group on normal rows.

    An asset may come in several series. One with too little history of its own is scored by the pooled group;
    `provenance["pooled_only"]` names all that are. What comes out depends on the series and the spec alone, not on
    their order; other assets touch an asset's own group by the scale of its channels at rest alone. `device` is where
    networks are trained: `cpu`, `cuda` or `auto`.

    Returns
    -------
    A bundle without id and calibrations. Beside the tensors of its model, each member has those of
    `models.residuals.fit_aggregation` as `agg.<name>`.

    Raises
    ------
    TooLittleHistory : all assets together have fewer than `spec.min_windows` normal windows.
    TrainingError : a member's training ended in numbers that are not finite.
    ShapeError : a series that does not have the channels of `spec`.
    ConfigError : a device that is not there.
    """
    training_device(device)  # a device that is not there is refused before hours of work, not after
    by_asset = _by_asset(train, spec)
    members = member_specs(spec)
    groups = _groups(by_asset, spec, max(member.window for member in members))
    tensors: Tensors = {}
    fits: Told = {}
    fleet = fleet_spread([_spread(own, spec) for own in by_asset.values()])
    for g, (name, own) in enumerate(groups.items()):
        fitted, fits[name] = _fit_group(name, _pool(own, spec, fleet), spec, device, progress)
        tensors.update({f"g{g}.{key}": value for key, value in fitted.items()})
    index = {name: g for g, name in enumerate(groups)}
    return Bundle(
        id="",
        channels=spec.channels,
        period_ns=spec.period_ns,
        members=members,
        groups=tuple(groups),
        asset_group={asset: index.get(asset, index[POOL]) for asset in by_asset},
        default_group=index[POOL],
        soft_clip=spec.soft_clip,
        smoother=spec.smoother,
        calibrations={},
        stuck_frames=learn_stuck_frames(train),
        provenance=_provenance(by_asset, groups, fits, spec),
        tensors=tensors,
    )


def learn_stuck_frames(series: Sequence[Series]) -> tuple[int, ...]:
    """Return per channel how many equal values in a row mean that the sensor is stuck; 0: never.

    Four times the longest run in normal data of any asset, at least 5. Never for a channel that stayed still for more
    than 60 rows (a set point, a counter, a valve that is mostly shut), and for one that was never observed.
    """
    longest = np.max([longest_runs(one) for one in series], axis=0)
    return tuple(
        0 if run == 0 or run > _STILL_ROWS else max(_STUCK_AT_LEAST, _STUCK_FACTOR * int(run)) for run in longest
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    """The rows of one group, one series after the other, scaled once. N rows."""

    series: tuple[Series, ...]
    scaled: Float32  # (N, C)
    observed: Bool  # (N, C)
    loc: Float32  # (C,)
    scale: Float32  # (C,)
    ever: Bool  # (C,): observed in any normal row

    def ends(self, window: int, hold_out: float = 0.0) -> tuple[Int64, Int64]:
        """Return the ends of windows to train on and of those held out; none spans two series.

        Held out is the newest share of each series, after a gap of one window.
        """
        kept, held, first = [], [], 0
        for series in self.series:
            ends = window_ends(series, window)
            cut = len(ends) - int(hold_out * len(ends))
            apart = ends[cut:] - window >= ends[cut - 1] + window if cut else np.empty(0, np.bool_)
            kept.append(ends[:cut] + first)
            held.append(ends[cut:][apart] + first)
            first += len(series)
        return np.concatenate(kept), np.concatenate(held)


def _spread(series: Sequence[Series], spec: TrainSpec) -> Float32:
    """Return (C,) how the channels of one asset move in normal rows."""
    x = np.concatenate([one.x[one.normal] for one in series])
    observed = np.concatenate([one.observed[one.normal] for one in series])
    return fit_spread(x, observed, spec.scaler)[1]


def _pool(series: Sequence[Series], spec: TrainSpec, fleet: Float32) -> _Pool:
    x = np.concatenate([one.x for one in series])
    observed = np.concatenate([one.observed for one in series])
    normal = np.concatenate([one.normal for one in series])
    loc, spread = fit_scale(x[normal], observed[normal], spec.scaler, fleet)
    scaled = scale(x, observed, loc, spread, spec.soft_clip)
    return _Pool(tuple(series), scaled, observed, loc, spread, observed[normal].any(axis=0))


def _by_asset(series: Sequence[Series], spec: TrainSpec) -> dict[str, list[Series]]:
    """Return the series of each asset in time order, assets by name: the order they came in must not matter."""
    found: dict[str, list[Series]] = {}
    for one in sorted(series, key=lambda s: (s.asset, int(s.ts_ns[0]) if len(s) else 0)):
        if one.channels != len(spec.channels):
            raise ShapeError(
                f"series of asset {one.asset!r} has {one.channels} channels, the spec {len(spec.channels)}: "
                f"{', '.join(spec.channels)}"
            )
        if one.asset == POOL:
            raise TrainingError(f"an asset is called {POOL!r}, which names the group of all assets: rename it")
        found.setdefault(one.asset, []).append(one)
    return found


def _groups(by_asset: Mapping[str, Sequence[Series]], spec: TrainSpec, window: int) -> dict[str, list[Series]]:
    """Return the groups to fit, the pool last. A lone asset is the pool."""
    have = {asset: sum(len(window_ends(one, window)) for one in series) for asset, series in by_asset.items()}
    if sum(have.values()) < spec.min_windows:
        raise TooLittleHistory(sum(have.values()), spec.min_windows, f"windows of {window} confirmed-normal rows")
    groups: dict[str, list[Series]] = {}
    if spec.per_group == "asset" and len(by_asset) > 1:
        groups = {asset: list(by_asset[asset]) for asset in by_asset if have[asset] >= spec.min_windows}
    return {**groups, POOL: [one for series in by_asset.values() for one in series]}


def _fit_group(
    group: str, pool: _Pool, spec: TrainSpec, device: str, progress: Callable[[Progress], None] | None
) -> tuple[Tensors, Told]:
    """Fit scaler and members of one group; return its tensors without the group's prefix."""
    tensors: Tensors = {"scaler.loc": pool.loc, "scaler.scale": pool.scale}
    never = [name for name, seen in zip(spec.channels, pool.ever, strict=True) if not seen]
    told: Told = {"rows": int(sum(one.normal.sum() for one in pool.series)), "never_observed": never}
    for m, member in enumerate(member_specs(spec)):
        label = f"m{m} {member.kind}"

        def report(step: int, steps: int, loss: float, label: str = label) -> None:
            if progress is not None:
                progress(Progress(label, group, step, steps, loss))

        if member.kind == "pca":
            fitted, told[label] = _fit_pca(member, pool, report)
        else:
            loop = spec.loop(_seed(spec.seed, group, label))
            fitted, told[label] = _fit_module(
                member, pool, loop, spec.hold_out, device, f"{label} of {group!r}", report, spec.conv_window
            )
        residual, known = _residuals(member, fitted, pool, spec.conv_window)
        tensors.update({f"m{m}.{name}": value for name, value in fitted.items()})
        tensors.update({f"m{m}.agg.{name}": value for name, value in fit_aggregation(residual, known).items()})
    return tensors, told


def _fit_pca(member: MemberSpec, pool: _Pool, report: Report) -> tuple[Tensors, Told]:
    ends, _ = pool.ends(member.window)
    share, most = member.params["variance"], member.params["max_components"]
    pca = fit_pca(pool.scaled, pool.observed, ends, member.window, share, most)
    left = pca.noise * (1 - len(pca.variance) / len(pca.mean))  # per reading: on the scale of the others' losses
    report(1, 1, left)
    told = {"components": len(pca.variance), "loss": left, "windows": pca.windows, "imputed": pca.imputed}
    tensors = pca.tensors()
    if statistic_of(member) != "q":
        last = member.error == "last"
        tensors["limit"] = control_limits(pca, pool.scaled, pool.observed, ends, member.window, last)
    return tensors, told


def _fit_module(
    member: MemberSpec,
    pool: _Pool,
    loop: LoopSpec,
    hold_out: float,
    device: str,
    what: str,
    report: Report,
    stream_rows: int,
) -> tuple[Tensors, Told]:
    channels, counted = pool.scaled.shape[1], slice(None)
    if member.kind == "stream":
        member, counted = to_train(member, stream_rows)
    ends, held = pool.ends(member.window, hold_out)
    tensors, record = train_module(
        lambda: build_module(member, channels),
        pool.scaled,
        pool.observed,
        ends,
        member.window,
        loop,
        held,
        device,
        report,
        counted,
    )
    if record.stopped == "non_finite":
        raise TrainingError(
            f"{what}: the loss or a gradient was not finite after {len(record.loss)} of {loop.steps} steps; the last "
            f"sound weights are those of step {record.weights_step}, but half-trained ones make no bundle: "
            f"lower train.learning_rate (now {loop.learning_rate}) and fit again"
        )
    told = {
        "seed": record.seed,
        "threads": record.threads,
        "device": record.device,
        "compiled": record.compiled,
        "windows": len(ends),
        "steps": len(record.loss),
        "weights_step": record.weights_step,
        "stopped": record.stopped,
        "first_loss": float(record.loss[0]),
        "loss": float(record.loss[-loop.check_every :].mean()),
        "held_out_loss": float(record.held_out[-1]) if len(record.held_out) else None,
        "compression_ratio": network_of(member, channels).compression_ratio,
    }
    return tensors, told


def _residuals(member: MemberSpec, fitted: Tensors, pool: _Pool, stream_rows: int) -> tuple[Float32, Bool]:
    """Return channel residuals of the fit part, evenly thinned, and whether each rests on any reading."""
    if member.kind == "stream":
        longer, _ = to_train(member, stream_rows)
        ends = thinned(pool.ends(longer.window)[0], _RESIDUAL_WINDOWS)
        return stream_residuals(longer, fitted, pool.scaled, pool.observed, ends)
    ends = thinned(pool.ends(member.window)[0], _RESIDUAL_WINDOWS)
    return channel_residuals(member, fitted, pool.scaled, pool.observed, ends)


def _seed(seed: int, group: str, label: str) -> int:
    """Return a seed of its own for each member of each group, whatever other groups there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}/{label}".encode()).digest()[:4])


def _provenance(
    by_asset: Mapping[str, Sequence[Series]], groups: Mapping[str, Any], fits: Told, spec: TrainSpec
) -> Told:
    rows = {asset: int(sum(one.normal.sum() for one in series)) for asset, series in by_asset.items()}
    times = {asset: np.concatenate([one.ts_ns[one.normal] for one in series]) for asset, series in by_asset.items()}
    return {
        "seed": spec.seed,
        "spec": json.loads(json.dumps(asdict(spec))),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "rows": rows,
        "fit_range_ns": {asset: [int(ts[0]), int(ts[-1])] for asset, ts in times.items() if len(ts)},
        "pooled_only": [asset for asset in by_asset if asset not in groups],
        "fits": fits,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
