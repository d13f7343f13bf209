"""A bundle as a JSON manifest and one safetensors file, and back: values and bytes only, no files.

The manifest holds everything of a `Bundle` except arrays, and, for every array, its name, dtype and shape, with size
and SHA-256 of the safetensors file. Arrays of calibrations are stored as `cal.{profile}.{name}`. The id of a bundle
is the hash of its content, so that a manifest which was edited no longer fits its own id.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from pipeline.bundle import Bundle, Calibration, MemberSpec, SmootherSpec
from pipeline.errors import BundleError

FORMAT = 2
ID_PATTERN = re.compile(r"b[0-9a-f]{12}")
_FIGURES = ("median", "mad", "start", "threshold")
_MISSING = ("missing_shift", "missing_gain")  # not in format 1: errors were taken as they are, whatever was missing
CALIBRATION_ARRAYS = {1: _FIGURES, FORMAT: (*_FIGURES, *_MISSING)}

_TENSOR_NAME = re.compile(r"g(\d+)\.(?:m(\d+)|scaler)\..+")
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DTYPES = _INTEGERS | {"bool", "float16", "float32", "float64", "complex64"}  # what safetensors carries for numpy

# JSON has no infinity and no NaN; a limit that is switched off is infinite.
Number = float | Literal["inf", "-inf", "nan"]


class MemberEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `MemberSpec`."""

    kind: str
    window: int
    error: Literal["last", "window"]
    aggregate: str
    params: dict[str, Any]


class SmootherEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `SmootherSpec`."""

    yardstick: bool
    memory: int
    span_ns: int
    admit_z: Number
    mad_floor: Number
    ewma_span: int


class CalibrationEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `Calibration` without its arrays."""

    assets: tuple[str, ...]
    percentile: Number
    rows: int


class BundleEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `Bundle` without its id and its arrays."""

    channels: tuple[str, ...]
    period_ns: int
    members: tuple[MemberEntry, ...]
    groups: tuple[str, ...]
    asset_group: dict[str, int]
    default_group: int | None
    soft_clip: Number
    smoother: SmootherEntry
    calibrations: dict[str, CalibrationEntry]
    stuck_frames: tuple[int, ...]
    provenance: dict[str, Any]


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one array of the weights file has to be."""

    dtype: str
    shape: tuple[int, ...]


class WeightsEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the weights file has to be: size in bytes, hash and arrays by name."""

    bytes: int
    sha256: str
    tensors: dict[str, TensorEntry]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole manifest. `created_ns` is the caller's clock; it and `id` are no part of the content."""

    format: int
    id: str
    created_ns: int
    bundle: BundleEntry
    weights: WeightsEntry


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle ready to be written: its content id, the manifest and the bytes of the weights file."""

    id: str
    manifest: Mapping[str, Any]
    weights: bytes


def pack(bundle: Bundle, created_ns: int) -> Packed:
    """Turn a bundle into manifest and weights; `bundle.id` is ignored, the id is computed.

    Raises
    ------
    BundleError : the bundle contradicts itself, or holds something that JSON or safetensors cannot carry.
    """
    check_whole(bundle, "bundle to add")
    arrays = {name: np.asarray(a, order="C") for name, a in sorted(_arrays(bundle).items())}
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise BundleError(f"bundle to add: tensor {name} is {array.dtype}: safetensors cannot carry it")
    weights = write_tensors(arrays)
    document: dict[str, Any] = {
        "format": FORMAT,
        "bundle": _entry(bundle),
        "weights": {
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "tensors": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in arrays.items()},
        },
    }
    bundle_id = content_id(document)
    return Packed(bundle_id, {"id": bundle_id, "created_ns": int(created_ns), **document}, weights)


def parse(raw: bytes, where: str) -> Manifest:
    """Read a manifest and check its form and that its content fits its id.

    Raises
    ------
    BundleError : not JSON, a field of the wrong type, unknown or missing, another format, or edited.
    """
    try:
        document = json.loads(raw, parse_constant=_refuse_constant)
        manifest = msgspec.convert(document, Manifest)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BundleError(f"{where}: not a manifest: {error}") from None
    if manifest.format not in CALIBRATION_ARRAYS:
        raise BundleError(
            f"{where}: format {manifest.format}, this program reads up to {FORMAT}: install the one that wrote it"
        )
    actual = content_id(document)
    if actual != manifest.id:
        raise BundleError(f"{where}: content is {actual}, id says {manifest.id}: it was changed after it was written")
    return manifest


def unpack(manifest: Manifest, weights: bytes, where: str) -> Bundle:
    """Check the weights against the manifest and put the bundle together again.

    Raises
    ------
    BundleError : size, hash, names, shapes or dtypes differ, or the parts contradict one another.
    """
    arrays = _checked_arrays(manifest.weights, weights, where)
    entry = manifest.bundle
    names = CALIBRATION_ARRAYS[manifest.format]
    missing = [n for p in entry.calibrations for a in names if (n := f"cal.{p}.{a}") not in arrays]
    if missing:
        raise BundleError(f"{where}: tensor {missing[0]} is missing")
    calibrations = {profile: _calibration(arrays, profile, c, names) for profile, c in entry.calibrations.items()}
    smoother = SmootherSpec(
        yardstick=entry.smoother.yardstick,
        memory=entry.smoother.memory,
        span_ns=entry.smoother.span_ns,
        admit_z=float(entry.smoother.admit_z),
        mad_floor=float(entry.smoother.mad_floor),
        ewma_span=entry.smoother.ewma_span,
    )
    bundle = Bundle(
        id=manifest.id,
        channels=entry.channels,
        period_ns=entry.period_ns,
        members=tuple(MemberSpec(m.kind, m.window, m.error, m.aggregate, m.params) for m in entry.members),
        groups=entry.groups,
        asset_group=entry.asset_group,
        default_group=entry.default_group,
        soft_clip=float(entry.soft_clip),
        smoother=smoother,
        calibrations=calibrations,
        stuck_frames=entry.stuck_frames,
        provenance=entry.provenance,
        tensors=arrays,  # what is left: the calibrations took theirs out
    )
    check_whole(bundle, where)
    return bundle


def content_id(document: Mapping[str, Any]) -> str:
    """Return the id of a manifest's content: everything in it except `id` and `created_ns`."""
    content = {key: value for key, value in document.items() if key not in ("id", "created_ns")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "b" + hashlib.sha256(canonical.encode()).hexdigest()[:12]


def check_whole(bundle: Bundle, where: str) -> None:
    """Check that the parts of a bundle fit one another, so that no kernel reads past an array.

    Raises
    ------
    BundleError : with the first thing that does not fit.
    """

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise BundleError(f"{where}: {what}")

    c, groups = len(bundle.channels), len(bundle.groups)
    need(c > 0 and len(set(bundle.channels)) == c, "channels must be there, each once")
    need(groups > 0 and len(set(bundle.groups)) == groups, "groups must be there, each once")
    need(len(bundle.members) > 0, "no members")
    for m, member in enumerate(bundle.members):
        need(member.window >= 1, f"member {m} has window {member.window}")
        need(member.error in ("last", "window"), f"member {m} has error {member.error!r}")
    need(len(bundle.stuck_frames) == c, f"{len(bundle.stuck_frames)} stuck_frames for {c} channels")
    for asset, group in bundle.asset_group.items():
        need(0 <= group < groups, f"asset {asset!r} is in group {group} of {groups}")
    need(bundle.default_group is None or 0 <= bundle.default_group < groups, f"default group {bundle.default_group}")
    _check_tensors(bundle, need)
    for profile, calibration in bundle.calibrations.items():
        _check_calibration(calibration, bundle, f"calibration {profile!r}", need)


def _check_tensors(bundle: Bundle, need: Callable[[bool, str], None]) -> None:
    wanted = {(g, m) for g in range(len(bundle.groups)) for m in range(len(bundle.members))}
    found = set()
    for name in sorted(bundle.tensors):
        match = _TENSOR_NAME.fullmatch(name)
        known = match is not None and int(match[1]) < len(bundle.groups)
        if match and match[2]:
            found.add((int(match[1]), int(match[2])))
            known = found <= wanted
        need(known, f"tensor {name!r} belongs to no group and member")
    need(found == wanted, f"no tensors for (group, member) {sorted(wanted - found)}")
    for g in range(len(bundle.groups)):
        for part in ("loc", "scale"):
            name = f"g{g}.scaler.{part}"
            shape = bundle.tensors[name].shape if name in bundle.tensors else None
            need(shape == (len(bundle.channels),), f"tensor {name} is {shape}, not ({len(bundle.channels)},)")


def _check_calibration(calibration: Calibration, bundle: Bundle, what: str, need: Callable[[bool, str], None]) -> None:
    rows = len(calibration.assets) + 1
    need(len(set(calibration.assets)) == rows - 1, f"{what} names an asset twice")
    measured = (rows, len(bundle.channels)) if len(calibration.missing_shift) else (0, 0)
    shapes = {"start": (rows, bundle.smoother.memory), **dict.fromkeys(_MISSING, measured)}
    for name in CALIBRATION_ARRAYS[FORMAT]:
        array, shape = getattr(calibration, name), shapes.get(name, (rows,))
        need(array.shape == shape, f"{what}: {name} is {array.shape}, not {shape}")
        need(array.dtype == np.float32, f"{what}: {name} is {array.dtype}, not float32")


def _arrays(bundle: Bundle) -> dict[str, NDArray[np.generic]]:
    arrays = dict(bundle.tensors)
    for profile, calibration in bundle.calibrations.items():
        for name in CALIBRATION_ARRAYS[FORMAT]:
            arrays[f"cal.{profile}.{name}"] = getattr(calibration, name)
    return arrays


def _calibration(
    arrays: dict[str, NDArray[np.generic]], profile: str, entry: CalibrationEntry, names: Sequence[str]
) -> Calibration:
    taken: dict[str, Any] = {name: arrays.pop(f"cal.{profile}.{name}") for name in names}
    return Calibration(assets=entry.assets, percentile=float(entry.percentile), rows=entry.rows, **taken)


def _checked_arrays(entry: WeightsEntry, weights: bytes, where: str) -> dict[str, NDArray[np.generic]]:
    digest = hashlib.sha256(weights).hexdigest()
    if len(weights) != entry.bytes or digest != entry.sha256:
        raise BundleError(
            f"{where}: weights are {len(weights)} bytes with sha256 {digest}, "
            f"the manifest says {entry.bytes} bytes with {entry.sha256}"
        )
    try:
        arrays: dict[str, NDArray[np.generic]] = read_tensors(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{where}: weights are not a safetensors file that numpy can read: {error!r}") from None
    if arrays.keys() != entry.tensors.keys():
        odd = sorted(arrays.keys() ^ entry.tensors.keys())
        raise BundleError(f"{where}: tensors that only one of weights and manifest has: {', '.join(odd)}")
    for name, array in arrays.items():
        found, said = (array.dtype.name, array.shape), (entry.tensors[name].dtype, entry.tensors[name].shape)
        if found != said:
            raise BundleError(f"{where}: tensor {name} is {found[0]} {found[1]}, the manifest says {said[0]} {said[1]}")
    return arrays


def _entry(bundle: Bundle) -> dict[str, Any]:
    smoother = asdict(bundle.smoother)
    entry = {
        "channels": bundle.channels,
        "period_ns": bundle.period_ns,
        "members": [
            {"kind": m.kind, "window": m.window, "error": m.error, "aggregate": m.aggregate, "params": m.params}
            for m in bundle.members
        ],
        "groups": bundle.groups,
        "asset_group": bundle.asset_group,
        "default_group": bundle.default_group,
        "soft_clip": _number(bundle.soft_clip),
        "smoother": {**smoother, "admit_z": _number(smoother["admit_z"]), "mad_floor": _number(smoother["mad_floor"])},
        "calibrations": {
            profile: {"assets": c.assets, "percentile": _number(c.percentile), "rows": c.rows}
            for profile, c in bundle.calibrations.items()
        },
        "stuck_frames": bundle.stuck_frames,
        "provenance": bundle.provenance,
    }
    plain: dict[str, Any] = _plain(entry, "bundle")
    return plain


def _plain(value: Any, path: str) -> Any:
    """Return `value` as plain JSON; tuples become lists, numpy scalars Python's. Refuses what would be lost."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(v, f"{path}.{key}") for key, v in value.items()}
    raise BundleError(f"{path} = {value!r}: a manifest holds text, finite numbers, lists and text-keyed objects only")


def _number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
