"""A small bundle, for tests of what keeps bundles."""

from dataclasses import fields

import numpy as np

from pipeline.bundle import Bundle, Calibration, MemberSpec, SmootherSpec


def small_bundle(seed: int = 0, provenance: dict | None = None) -> Bundle:
    rng = np.random.default_rng(seed)
    return Bundle(
        id="",
        channels=("speed", "flow"),
        period_ns=60_000_000_000,
        members=(MemberSpec("pca", 4, params={"rank": 3}),),
        groups=("all",),
        asset_group={"m01": 0, "m02": 0},
        default_group=0,
        soft_clip=3.0,
        smoother=SmootherSpec(memory=4),
        calibrations={
            "cpu-float32": Calibration(
                ("m01",),
                median=np.array([1, 2], np.float32),
                mad=np.array([1, np.nan], np.float32),
                start=rng.random((2, 4), np.float32),
                threshold=np.array([5, 6], np.float32),
                rows=900,
                missing_shift=rng.random((2, 2), np.float32),
                missing_gain=rng.random((2, 2), np.float32),
            )
        },
        stuck_frames=(0, 12),
        provenance=provenance or {"rows": 4500},
        tensors={
            "g0.scaler.loc": rng.random(2, np.float32),
            "g0.scaler.scale": rng.random(2, np.float32),
            "g0.m0.mean": rng.random(8, np.float32),
        },
    )


def assert_same_array(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()  # bits, NaN payloads included


def assert_same(a: Bundle, b: Bundle) -> None:
    for f in fields(Bundle):
        if f.name not in ("id", "tensors", "calibrations"):
            assert getattr(a, f.name) == getattr(b, f.name), f.name
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        assert_same_array(a.tensors[name], b.tensors[name])
    assert a.calibrations.keys() == b.calibrations.keys()
    for profile, c in a.calibrations.items():
        other = b.calibrations[profile]
        assert (c.assets, c.percentile, c.rows) == (other.assets, other.percentile, other.rows)
        for name in ("median", "mad", "start", "threshold", "missing_shift", "missing_gain"):
            assert_same_array(getattr(c, name), getattr(other, name))
