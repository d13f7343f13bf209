"""Small values for the tests of connectors: alerts, dead letters, states, pushes of rows and verdicts."""

import dataclasses

import numpy as np

from pipeline.protocols import AssetState, Batch
from pipeline.values import Alert, DeadLetter, Position, Quality, Rows, Scores, Status, TopChannel, Verdicts

T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def an_alert(name="ab12", seq=0, **changes):
    alert = Alert(
        id=name,
        seq=seq,
        feed="north line/1",
        asset="pump-7",
        kind="anomaly",
        state="open",
        reason="over_threshold",
        severity="warning",
        ts_ns=T0 + 123_456_789,
        opened_ns=T0 + 123_456_789,
        start_ns=T0 - 10 * SECOND,
        onset_ns=T0 - 9 * SECOND,
        end_ns=None,
        ratio=1.5,
        peak_ratio=2.25,
        threshold=3.5,
        coverage=1.0,
        top_channels=(TopChannel("vib_x", 0.75, 1.0, 9.5), TopChannel("temp", 0.25, None, None)),
        model_id="m1",
        config_id="c1",
        evidence=Position("sensors", 2, 41, 0),
    )
    return dataclasses.replace(alert, **changes)


def a_letter(offset=7, row=-1, value=b"\xff{", partition=0):
    return DeadLetter("sensors", partition, offset, row, "not_json", "byte 0: expected an object", value)


def a_state(asset, version):
    return AssetState(asset, f"{asset}/columns/{version}".encode(), f"{asset}/window/{version}".encode() * version)


def a_batch(number, topic="sensors", partition=0, assets=("a", "b"), per_commit=10):
    """The `number`-th commit (from 1) of a partition: one alert, one dead letter, the states of two assets."""
    return Batch(
        positions={(topic, partition): number * per_commit},
        alerts=[an_alert(f"id{number}", partition)],
        dead=[a_letter(number * per_commit - 1, partition=partition)],
        states={(topic, partition): [a_state(asset, number) for asset in assets]},
    )


def a_push(offsets, channels=3, assets=2, partition=0, seed=0, delay=0):
    """Rows at `offsets`, and the verdicts on the rows `delay` messages earlier: what one push of a chain says.

    Everything depends on the offset alone, so that any cut of the log gives the same rows.
    """
    offsets = np.asarray(offsets, np.int64)
    return a_rows(offsets, channels, assets, partition, seed), a_verdict(
        offsets[offsets >= delay] - delay, channels, assets, partition, seed
    )


def a_rows(offsets, channels, assets, partition, seed):
    n = len(offsets)
    x = _noise(offsets, channels, seed)
    quality = np.where(_noise(offsets, channels, seed + 1) > 0.9, Quality.ABSENT, Quality.OK).astype(np.uint8)
    observed = quality == Quality.OK
    return Rows(
        partition=partition,
        asset=(offsets % assets).astype(np.int32),
        ts_ns=T0 + offsets * SECOND,
        x=np.where(observed, x, 0).astype(np.float32),
        observed=observed,
        quality=quality,
        offset=offsets,
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8),
    )


def a_verdict(offsets, channels, assets, partition, seed):
    n = len(offsets)
    score = np.where(offsets % 5 == 0, np.nan, _noise(offsets, 1, seed)[:, 0]).astype(np.float32)
    expected = _noise(offsets, channels, seed + 2)
    scores = Scores(
        partition=partition,
        asset=(offsets % assets).astype(np.int32),
        ts_ns=T0 + offsets * SECOND,
        offset=offsets,
        row=np.zeros(n, np.int32),
        continuity=np.zeros(n, np.uint8),
        score=score,
        by_channel=np.full((n, channels), 1 / channels, np.float32),
        expected=expected,
        actual=np.where(expected > 0.8, np.nan, expected).astype(np.float32),
        coverage=np.ones(n, np.float32),
        status=np.where(np.isnan(score), Status.WARMING, Status.CALIBRATED).astype(np.uint8),
        model_id="m1",
    )
    return Verdicts(scores, score, score / 2, score / 3, np.nan_to_num(score) / 2 > 1, np.full(n, 2, np.float32))


def _noise(offsets, channels, seed):
    """Return values in [0, 1) that depend on offset, channel and seed: (n, channels) float32."""
    mixed = (offsets[:, None] * 7919 + np.arange(channels) * 104729 + seed * 1299709) % 9973
    return (mixed / 9973).astype(np.float32)
