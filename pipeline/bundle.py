"""What is served together is stored together: the bundle, as plain values.

`models` fits and writes bundles, `connectors` never see them, the chain and the engines read them. Tensors are numpy
arrays here; on disk they are safetensors beside a JSON manifest (`models.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleError
from pipeline.values import Float32

POOLED = 0  # the row of `Calibration` for assets that have none of their own


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One model of the ensemble.

    `kind`: registered short name (`pca`, `dense`, `conv`, `stream`). `window`: rows it sees, <= the bundle's window.
    `error`: `last` (the window's last row only; the default) or `window` (mean over all its rows). `aggregate`: how
    channel residuals become one number: `mse`, `ztop` (mean of the top 1/8 of robust z) or `mahalanobis`.
    `params`: what is needed to build the module again (sizes, never weights).
    """

    kind: str
    window: int
    error: str = "last"
    aggregate: str = "mse"
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SmootherSpec:
    """The rolling median + MAD yardstick and the EWMA after it; each part can be switched off.

    `memory` M admitted errors span `span_ns` of event time; an error is admitted while its z <= `admit_z`.
    `ewma_span` in rows (alpha = 2 / (span + 1)); 1 switches it off. `yardstick` False leaves z out.
    """

    yardstick: bool = True
    memory: int = 128
    span_ns: int = 86_400_000_000_000
    admit_z: float = 5.0
    mad_floor: float = 1.0
    ewma_span: int = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the held-out tail of normal data said, through one serving profile. K rows; row 0 is pooled.

    `assets[k-1]` is the asset of row k. `median`, `mad` (already times 1.4826, > 0) standardise its errors, `start`
    holds M calibrated errors spread over its last day, `threshold` is the percentile of the smoothed score, in
    units of the smoothed score. `missing_shift` and `missing_gain` say what errors become when one of C channels is
    missing (`pipeline.standardise`); (0, 0) where that was never measured: errors are then taken as they are.
    """

    assets: tuple[str, ...]
    median: Float32  # (K,)
    mad: Float32  # (K,)
    start: Float32  # (K, M)
    threshold: Float32  # (K,)
    percentile: float = 99.5
    rows: int = 0  # calibration rows that this rests on
    missing_shift: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (K, C)
    missing_gain: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))  # (K, C), > 0

    def row_of(self) -> dict[str, int]:
        """Return asset name -> row; assets that are not in it use row `POOLED`."""
        return {name: i + 1 for i, name in enumerate(self.assets)}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A servable whole: immutable, versioned, hashed.

    Tensors of member m of group g are named `g{g}.m{m}.<name>`, those of the scaler `g{g}.scaler.loc` and
    `g{g}.scaler.scale` (C,). `asset_group` says which group scores an asset; `default_group` scores the others
    (None: assets that were not trained on are never scored, only collected).
    """

    id: str
    channels: tuple[str, ...]
    period_ns: int
    members: tuple[MemberSpec, ...]
    groups: tuple[str, ...]
    asset_group: Mapping[str, int]
    default_group: int | None
    soft_clip: float  # linear to this many scales, logarithmic beyond
    smoother: SmootherSpec
    calibrations: Mapping[str, Calibration]  # by serving profile, e.g. `cpu-float32`
    stuck_frames: tuple[int, ...]  # per channel: equal values in a row that mean stuck; 0: never
    provenance: Mapping[str, Any]
    tensors: Mapping[str, NDArray[np.generic]]

    @property
    def window(self) -> int:
        """The longest window of any member, in rows."""
        return max(m.window for m in self.members)

    @property
    def streaming(self) -> bool:
        """Whether rows are scored as parts of an endless series, which has to lie on a grid."""
        return any(m.kind == "stream" for m in self.members)

    def calibration(self, profile: str) -> Calibration:
        """Return the calibration of a serving profile.

        Raises
        ------
        BundleError : the bundle was never calibrated through this profile.
        """
        try:
            return self.calibrations[profile]
        except KeyError:
            raise BundleError(
                f"bundle {self.id} has no calibration for {profile}, only for {', '.join(sorted(self.calibrations))}: "
                "run `midwatch nightly --recalibrate-only` on this host"
            ) from None

    def tensor(self, group: int, member: int | str, name: str) -> NDArray[np.generic]:
        """Return one tensor; `member` is an index, or `scaler`."""
        part = member if isinstance(member, str) else f"m{member}"
        return self.tensors[f"g{group}.{part}.{name}"]
