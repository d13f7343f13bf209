"""A slow, obvious engine: one row at a time, lists of rows per slot, float64 numpy, no torch. And bundles to try."""

from collections.abc import Sequence

import numpy as np
import torch

from models.autoencoders import build_module
from models.pca import PrincipalComponents, reconstruct, scores
from pipeline.bundle import Bundle, MemberSpec, SmootherSpec
from pipeline.values import Continuity, Rows, Status


def make_bundle(members: Sequence[MemberSpec], channels: int = 5, groups: int = 1, seed: int = 0, **changes) -> Bundle:
    """A bundle with random, structured weights: orthonormal components, torch's own initialisation, real covariances.

    Assets `a0`, `a1`, ... belong to groups 0, 1, ..., 0, ...; asset `stranger` to none.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tensors = {}
    for g in range(groups):
        tensors[f"g{g}.scaler.loc"] = random.normal(size=channels).astype(np.float32)
        tensors[f"g{g}.scaler.scale"] = random.uniform(0.5, 2, size=channels).astype(np.float32)
        for m, spec in enumerate(members):
            made = {**_weights(spec, channels, random), **_aggregate_tensors(channels, random)}
            tensors |= {f"g{g}.m{m}.{name}": value for name, value in made.items()}
    fields = {
        "id": "b1",
        "channels": tuple(f"c{c}" for c in range(channels)),
        "period_ns": 1_000_000_000,
        "members": tuple(members),
        "groups": tuple(f"group{g}" for g in range(groups)),
        "asset_group": {f"a{i}": i % groups for i in range(40)},
        "default_group": None,
        "soft_clip": 3.0,
        "smoother": SmootherSpec(),
        "calibrations": {},
        "stuck_frames": (0,) * channels,
        "provenance": {},
        "tensors": tensors,
    }
    return Bundle(**{**fields, **changes})


def make_rows(n: int, channels: int, assets: int, seed: int = 0, missing: float = 0.0, restarts: float = 0.0) -> Rows:
    """Correlated random rows of `assets` assets in random order; some faults far beyond the soft clip."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(2, channels))
    x = random.normal(size=(n, 2)) @ mixing + 0.2 * random.normal(size=(n, channels))
    x[random.random(n) < 0.05] *= 30
    observed = random.random((n, channels)) >= missing
    observed[random.random(n) < missing / 4] = False
    continuity = np.where(random.random(n) < restarts, random.integers(1, 3, n), 0)
    return Rows(
        partition=0,
        asset=random.integers(0, assets, n).astype(np.int32),
        ts_ns=np.arange(n, dtype=np.int64) * 1_000_000_000,
        x=np.where(observed, x, 0).astype(np.float32),
        observed=observed,
        quality=np.where(observed, 0, 1).astype(np.uint8),
        offset=np.arange(n, dtype=np.int64),
        row=np.zeros(n, np.int32),
        continuity=continuity.astype(np.uint8),
    )


class NaiveEngine:
    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.groups = {}
        self.windows = {}

    def allocate(self, assets):
        slots = np.arange(len(self.groups), len(self.groups) + len(assets), dtype=np.int32)
        for slot, name in zip(slots.tolist(), assets, strict=True):
            self.groups[slot] = self.bundle.asset_group.get(name, self.bundle.default_group)
            self.windows[slot] = []
        return slots

    def push(self, rows: Rows, slots):
        """One (status, score, by_channel, expected, coverage) per row."""
        return [
            self._push(int(slots[i]), rows.x[i].astype(np.float64), rows.observed[i], rows.continuity[i])
            for i in range(len(rows))
        ]

    def _push(self, slot, x, observed, continuity):
        bundle, window = self.bundle, self.windows[slot]
        if continuity != Continuity.CONTINUES:
            window.clear()
        window.append((x, observed))
        del window[: -bundle.window]
        raw, seen = np.array([w[0] for w in window]), np.array([w[1] for w in window])
        nothing = np.nan, np.zeros(len(x)), np.full(len(x), np.nan), seen.mean()
        if len(window) < bundle.window or self.groups[slot] is None:
            return Status.WARMING, *nothing
        if not observed.any() or seen.mean() < 0.5:
            return Status.ABSTAINED, *nothing
        group = self.groups[slot]
        loc = bundle.tensor(group, "scaler", "loc").astype(np.float64)
        scale = bundle.tensor(group, "scaler", "scale").astype(np.float64)
        scaled = np.where(seen, soft_clip((raw - loc) / scale, bundle.soft_clip), 0)
        errors, shares, expected = [], [], []
        for m, spec in enumerate(bundle.members):
            part, mask = scaled[-spec.window :], seen[-spec.window :]
            back = self._reconstruct(group, m, part, mask)
            off = np.where(mask, part - back, 0)
            if spec.error == "last":
                residual, weight = off[-1], mask[-1].astype(float)
            else:
                weight = mask.sum(axis=0).astype(float)
                residual = np.sqrt((off**2).sum(axis=0) / np.maximum(weight, 1))
            errors.append(self._aggregate(group, m, residual, weight))
            part_of = np.where(observed, weight * residual**2, 0)
            shares.append(part_of / part_of.sum())
            expected.append(back[-1])
        score = float(np.exp(np.mean(np.log(errors))))
        unclipped = soft_unclip(np.mean(expected, axis=0), bundle.soft_clip) * scale + loc
        return Status.CALIBRATED, score, np.mean(shares, axis=0), np.where(observed, unclipped, np.nan), seen.mean()

    def _tensors(self, group, member):
        prefix = f"g{group}.m{member}."
        return {n.removeprefix(prefix): t for n, t in self.bundle.tensors.items() if n.startswith(prefix)}

    def _reconstruct(self, group, member, x, observed):
        spec, tensors = self.bundle.members[member], self._tensors(group, member)
        if spec.kind == "pca":
            pca = PrincipalComponents(
                tensors["mean"], tensors["components"], tensors["variance"], float(tensors["noise"])
            )
            return reconstruct(pca, scores(pca, x.reshape(1, -1), observed.reshape(1, -1))).reshape(x.shape)
        if spec.kind == "dense":
            return dense(x.reshape(-1), tensors).reshape(x.shape)
        return conv(x, tensors, spec.params.get("strides", (2, 2)))

    def _aggregate(self, group, member, residual, weight):
        spec, tensors = self.bundle.members[member], self._tensors(group, member)
        return aggregate(spec.aggregate, residual, weight, {n[4:]: t for n, t in tensors.items() if n[:4] == "agg."})


def aggregate(kind, residual, weight, fitted):
    seen = np.flatnonzero(weight)
    if kind == "mse":
        return (weight * residual**2).sum() / weight.sum()
    if kind == "ztop":
        z = np.clip((np.abs(residual) - fitted["median"]) / np.maximum(fitted["mad"], 0.02), 0, 100)[seen]
        return np.sort(z)[::-1][: max(2, len(seen) // 8)].mean()
    covariance = np.linalg.inv(fitted["precision"].astype(np.float64))[np.ix_(seen, seen)]
    d = residual[seen] - fitted["location"][seen]
    return np.sqrt(d @ np.linalg.inv(covariance) @ d * len(residual) / len(seen))


def soft_clip(z, limit):
    size = np.maximum(np.abs(z), limit)
    return np.where(np.abs(z) <= limit, z, np.sign(z) * limit * (1 + np.log(size / limit)))


def soft_unclip(v, limit):
    size = np.maximum(np.abs(v), limit)
    return np.where(np.abs(v) <= limit, v, np.sign(v) * limit * np.exp(size / limit - 1))


def dense(x, tensors):
    """Linear layers in order; batch normalisation as stored; a ReLU after all but the last of each half."""
    for half in ("encoder", "decoder"):
        indices = sorted({int(n.split(".")[1]) for n in tensors if n.startswith(half)})
        linear = [i for i in indices if tensors[f"{half}.{i}.weight"].ndim == 2]
        for i in indices:
            weight = tensors[f"{half}.{i}.weight"].astype(np.float64)
            bias = tensors[f"{half}.{i}.bias"].astype(np.float64)
            if weight.ndim == 2:
                x = weight @ x + bias
                normed = i + 1 in indices and i + 1 not in linear
            else:
                mean, variance = tensors[f"{half}.{i}.running_mean"], tensors[f"{half}.{i}.running_var"]
                x = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
                i, normed = i - 1, False
            if not normed and i != linear[-1]:
                x = np.maximum(x, 0)
    return x


def conv(x, tensors, strides):
    """Loops over time steps and taps: (W, C) -> (W, C)."""
    before = -len(x) % int(np.prod(strides))
    x = np.concatenate([np.zeros((before, x.shape[1])), x])
    for half, order in (("encoder", strides), ("decoder", strides[::-1])):
        indices = sorted({int(n.split(".")[1]) for n in tensors if n.startswith(half)})
        for i, stride in zip(indices, order, strict=True):
            weight = tensors[f"{half}.{i}.weight"].astype(np.float64)
            bias = tensors[f"{half}.{i}.bias"].astype(np.float64)
            taps = weight.shape[2]
            steps = len(x) // stride if half == "encoder" else len(x) * stride
            y = np.tile(bias, (steps, 1))
            for o in range(steps):
                for tap in range(taps):
                    if half == "encoder":
                        at = o * stride - taps // 2 + tap
                        if 0 <= at < len(x):
                            y[o] += weight[:, :, tap] @ x[at]
                    else:
                        at, off = divmod(o + taps // 2 - tap, stride)
                        if off == 0 and 0 <= at < len(x):
                            y[o] += x[at] @ weight[:, :, tap]
            x = y if i == indices[-1] else np.maximum(y, 0)
    return x[before:]


def _weights(spec, channels, random):
    readings = spec.window * channels
    if spec.kind != "pca":
        module = build_module(spec, channels).eval()
        state = {name: value.numpy().copy() for name, value in module.state_dict().items()}
        for name, value in state.items():  # statistics as after training, not those of a fresh module
            if name.endswith("running_mean"):
                value[...] = random.normal(size=value.shape)
            if name.endswith("running_var"):
                value[...] = random.uniform(0.5, 2, size=value.shape)
        return state
    k = max(1, min(6, readings - 1))
    components = np.linalg.qr(random.normal(size=(readings, k)))[0].T
    return {
        "mean": (0.1 * random.normal(size=readings)).astype(np.float32),
        "components": np.ascontiguousarray(components, np.float32),
        "variance": np.linspace(6, 1, k).astype(np.float32),
        "noise": np.array(0.3, np.float32),
    }


def _aggregate_tensors(channels, random):
    mixing = random.normal(size=(channels, channels)) + 2 * np.eye(channels)
    return {
        "agg.median": random.uniform(0.1, 0.5, channels).astype(np.float32),
        "agg.mad": random.uniform(0.1, 0.5, channels).astype(np.float32),
        "agg.location": (0.1 * random.normal(size=channels)).astype(np.float32),
        "agg.precision": np.linalg.inv(mixing @ mixing.T).astype(np.float32),
    }
