"""A slow, obvious streaming engine: the whole network over each unbroken series, in float64; and rows on a grid."""

from dataclasses import replace

import numpy as np
from naive_engine import aggregate, conv, make_rows, soft_clip, soft_unclip

from models.stream_layers import averaged, member_span
from pipeline.bundle import MemberSpec
from pipeline.values import NS_PER_S, Continuity, Status

FIRST = 1_790_000_001  # the grid slot of the first row: no multiple of any hop that is tried


def stream_member(kernels, strides, rows=1, aggregate="mse", latent=3, width=7):
    """A streaming member that averages so many row errors."""
    hidden = (width,) * (len(kernels) - 1)
    spec = MemberSpec("stream", 1, "last", aggregate, {
        "hidden": hidden, "latent": latent, "kernels": kernels, "strides": strides,
    })  # fmt: skip
    return replace(spec, window=member_span(spec).rows(rows))


def grid_rows(n, channels, assets, seed=0, missing=0.0, restarts=0.0):
    """Rows as of `make_rows`, each asset's one slot apart; a restart lies 5 to 9 slots later."""
    rows = make_rows(n, channels, assets, seed, missing, restarts)
    g = np.random.default_rng([seed, 1])
    ts = np.empty(n, np.int64)
    for asset in range(assets):
        mine = np.flatnonzero(rows.asset == asset)
        steps = np.where(rows.continuity[mine] == Continuity.CONTINUES, 1, g.integers(5, 10, len(mine)))
        ts[mine] = (FIRST + asset + np.cumsum(steps)) * NS_PER_S
    return replace(rows, ts_ns=ts)


def naive_stream(bundle, rows):
    """(status, score, by_channel, expected, actual, coverage) of every row, by the whole series of each asset."""
    n, channels = rows.x.shape
    wide = (n, channels)
    out = [np.zeros(n), np.full(n, np.nan), np.zeros(wide), np.full(wide, np.nan), np.full(wide, np.nan), np.zeros(n)]
    for asset in np.unique(rows.asset):
        mine = np.flatnonzero(rows.asset == asset)
        starts = np.flatnonzero(rows.continuity[mine] != Continuity.CONTINUES)
        for series in np.split(mine, starts):
            if len(series):
                for column, values in zip(out, _series(bundle, f"a{asset}", rows.take(series)), strict=True):
                    column[series] = values
    return out


def _series(bundle, asset, rows):
    member, group = bundle.members[0], bundle.asset_group[asset]
    span, average = member_span(member), averaged(member)
    tensors = {n.removeprefix(f"g{group}.m0."): t for n, t in bundle.tensors.items() if n.startswith(f"g{group}.m0.")}
    fitted = {n[4:]: t for n, t in tensors.items() if n.startswith("agg.")}
    loc, scale = (bundle.tensor(group, "scaler", name).astype(np.float64) for name in ("loc", "scale"))
    x = np.where(rows.observed, soft_clip((rows.x.astype(np.float64) - loc) / scale, bundle.soft_clip), 0)
    n, phase = len(x), int(rows.ts_ns[0] // bundle.period_ns) % span.hop
    after = np.zeros((span.hop - (phase + n) % span.hop, x.shape[1]))
    whole = np.concatenate([np.zeros((phase, x.shape[1])), x, after])
    back = conv(whole, tensors, member.params["strides"])[phase : phase + n]
    residual, seen = np.where(rows.observed, x - back, 0), rows.observed
    errors = [aggregate(member.aggregate, r, o.astype(float), fitted) if o.any() else np.nan
              for r, o in zip(residual, seen, strict=True)]  # fmt: skip
    said = [_frame(u, rows, residual, back, np.array(errors), member.window, span.lag, average) for u in range(n)]
    status, score, shares, expected, actual, coverage = (np.array(column) for column in zip(*said, strict=True))
    expected = np.where(np.isnan(actual), np.nan, soft_unclip(expected, bundle.soft_clip) * scale + loc)
    return status, score, shares, expected, actual, coverage


def _frame(u, rows, residual, back, errors, window, lag, average):
    nothing = np.nan, np.zeros(rows.channels), np.full(rows.channels, np.nan), np.full(rows.channels, np.nan)
    coverage = rows.observed[max(0, u + 1 - window) : u + 1].mean()
    v = u - lag
    if u + 1 < window:
        return Status.WARMING, *nothing, coverage
    if coverage < 0.5 or not rows.observed[v].any():
        return Status.ABSTAINED, *nothing, coverage
    off = np.where(rows.observed[v], residual[v] ** 2, 0)
    actual = np.where(rows.observed[v], rows.x[v], np.nan)
    score = np.nanmean(errors[v - average + 1 : v + 1])
    return Status.CALIBRATED, score, off / off.sum(), back[v], actual, coverage
