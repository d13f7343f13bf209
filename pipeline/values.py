"""The columnar values that flow through the fold, in flow order.

Legend used in every docstring of `pipeline`: n rows, C channels, W window length (rows), M smoother memory
(admitted errors), A assets of a partition. Times are int64 nanoseconds since 1970-01-01 UTC; `x` is float32 in the
input's own units and 0.0 wherever `observed` is False. Arrays are C-contiguous and are not written to after they
have been handed on. Scores: high = anomalous; `ratio` 1.0 is the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
UInt32 = NDArray[np.uint32]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

Place = tuple[str, int]  # topic, partition

NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S


class Quality(IntEnum):
    """Why a reading is, or is not, observed. Only `OK` is observed; every other code masks the reading."""

    OK = 0
    ABSENT = 1  # not in the message, or null
    NON_FINITE = 2  # NaN or infinite
    OUT_OF_RANGE = 3  # outside the channel's physical limits
    STUCK = 4  # the same value for longer than this channel ever stays still
    JUMP = 5  # a step larger than this channel can make in one row
    MISSING = 6  # absent for longer than `missing_after`: the channel is lost
    GAP = 7  # a row that alignment put in for a slot in which the asset sent nothing


class Continuity(IntEnum):
    """What a row is to the asset's previous one, in event time. Decided once, by alignment."""

    CONTINUES = 0
    NEW_WINDOW = 1  # the gap is longer than windows may span: rings start again, smoother and alerts go on
    FRESH = 2  # first row of the asset, or `retire_after` has passed: everything starts again


class Status(IntEnum):
    """What a score rests on."""

    WARMING = 0  # the window is not full yet: score is NaN
    PROVISIONAL = 1  # scored with the pooled calibration: this asset has none of its own yet
    CALIBRATED = 2
    ABSTAINED = 3  # too little observed to say anything: score is NaN


@dataclass(frozen=True, slots=True)
class Polled:
    """Messages of one partition, as a source hands them over, in log order.

    `value[i]` is the message body (None: a tombstone), `offset[i]` its position in the log and `log_ts_ns[i]` the
    time at which the log took it. For a file, the partition is 0, a message is a line or an Arrow batch, and the
    offset is the number of the first row in it, from 0.
    """

    topic: str
    partition: int
    offset: Int64  # (n,), increasing
    log_ts_ns: Int64  # (n,); 0 where the log has no time of its own
    value: Sequence[bytes | None]
    key: Sequence[bytes | None] | None = None
    end: int = -1  # the next offset to read, where that is not the last one + 1 (a message of many rows)

    def __len__(self) -> int:
        return len(self.value)

    @property
    def position(self) -> int:
        """The next offset to read after these messages."""
        return self.end if self.end >= 0 else int(self.offset[-1]) + 1


@dataclass(frozen=True, slots=True)
class Rows:
    """Readings of one partition, one row per time stamp of one asset.

    `asset` holds codes that are local to the partition's `AssetTable`. `offset` and `row` say which message, and
    which row within it, a row came from. `continuity` is meaningful after alignment only (0 before).
    """

    partition: int
    asset: Int32  # (n,)
    ts_ns: Int64  # (n,)
    x: Float32  # (n, C), 0.0 where not observed
    observed: Bool  # (n, C)
    quality: UInt8  # (n, C), Quality codes
    offset: Int64  # (n,)
    row: Int32  # (n,)
    continuity: UInt8  # (n,), Continuity codes

    def __len__(self) -> int:
        return len(self.ts_ns)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return int(self.x.shape[1])

    def take(self, index: Any) -> Rows:
        """Return the rows at `index` (bool mask, integer array or slice) as new arrays."""
        cut = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "partition"}
        return replace(self, **cut)

    @staticmethod
    def empty(partition: int, channels: int) -> Rows:
        """Return no rows, with the right shapes and dtypes."""
        return Rows(
            partition=partition,
            asset=np.empty(0, np.int32),
            ts_ns=np.empty(0, np.int64),
            x=np.empty((0, channels), np.float32),
            observed=np.empty((0, channels), np.bool_),
            quality=np.empty((0, channels), np.uint8),
            offset=np.empty(0, np.int64),
            row=np.empty(0, np.int32),
            continuity=np.empty(0, np.uint8),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """One score for each row that was pushed, in the same order; NaN where there is none (see `status`).

    `by_channel` is each channel's share of the error (rows sum to 1, 0 where the channel was not observed, all 0
    where the score is NaN). `expected` and `actual` are in input units; NaN where not observed. All three are of the
    row `lag_ns` before the one that carries the score: 0 for engines that score the row that just came.
    """

    partition: int
    asset: Int32  # (n,)
    ts_ns: Int64  # (n,)
    offset: Int64  # (n,)
    row: Int32  # (n,)
    continuity: UInt8  # (n,)
    score: Float32  # (n,), reconstruction error >= 0, or NaN
    by_channel: Float32  # (n, C)
    expected: Float32  # (n, C)
    actual: Float32  # (n, C)
    coverage: Float32  # (n,), share of the window's readings that were observed, 0..1
    status: UInt8  # (n,), Status codes
    model_id: str = ""
    lag_ns: int = 0

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Scores that were smoothed and held against the threshold.

    `ratio` = smoothed / threshold decides; `own_ratio` = min(c, z) / threshold is the frame by itself, before EWMA,
    and is what "k of n frames over the threshold by themselves" counts. NaN where there is no score.
    """

    scores: Scores
    smoothed: Float32  # (n,)
    ratio: Float32  # (n,)
    own_ratio: Float32  # (n,)
    breached: Bool  # (n,)
    threshold: Float32  # (n,), in units of `smoothed`

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Scored:
    """What one push said about the messages of one partition, `first` <= offset < `next`, for whoever publishes it."""

    topic: str
    partition: int
    assets: Sequence[str]  # the names behind the codes of `verdicts`
    verdicts: Verdicts | None  # None: nothing serves yet
    first: int
    next: int


@dataclass(frozen=True, slots=True)
class TopChannel:
    """One channel's part in an alert: its share of the error, and what was expected against what came."""

    name: str
    share: float
    expected: float | None
    actual: float | None


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the log something rests: evidence, left out when runs from different sources are compared."""

    topic: str
    partition: int
    offset: int
    row: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """One published change of one alert. (`id`, `seq`) is unique for ever: sinks deduplicate by it.

    `id` = hash(feed, asset, kind, opening ts_ns). `kind` is `anomaly` or a data-quality kind (`stuck`, `missing`,
    `out_of_range`, `jump`, `non_finite`). `state` is `open`, `updated` or `resolved`. `start_ns`: when the ratio
    first went over the threshold; `onset_ns`: the first row that was over it by itself; `end_ns`: the first frame
    below the closing level (resolved only). `top_channels` is sorted by falling share.
    """

    id: str
    seq: int
    feed: str
    asset: str
    kind: str
    state: str
    reason: str
    severity: str
    ts_ns: int
    opened_ns: int
    start_ns: int
    onset_ns: int
    end_ns: int | None
    ratio: float
    peak_ratio: float
    threshold: float
    coverage: float
    top_channels: tuple[TopChannel, ...]
    model_id: str
    config_id: str
    evidence: Position


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message, or a row of it, that could not be used: why, where, and the bytes as they came."""

    topic: str
    partition: int
    offset: int
    row: int  # -1: the whole message
    reason: str  # a short code, e.g. `not_json`, `no_asset`, `bad_time`, `future`, `too_large`
    detail: str  # a sentence that says what was found and what to do
    value: bytes


@dataclass(frozen=True, slots=True)
class Output:
    """What one push of the chain produced. `rows` are as decoded, before alignment, for the history."""

    rows: Sequence[Rows] = ()
    verdicts: Sequence[Verdicts] = ()
    alerts: Sequence[Alert] = ()
    dead: Sequence[DeadLetter] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # e.g. rows, late, duplicate, merged, frames, scored
