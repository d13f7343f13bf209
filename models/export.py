"""Bundles for use without midwatch: one `torch.export` program for each member of each group, on disk without pickle.

A program takes raw windows and says what the member expected and how far off the window is; the smoother and the
threshold that finish the job are numbers in the description beside it (`jobs.export`).

`torch.export.save` pickles one thing, the example inputs, so they are left out; weights and constants are raw bytes
under a JSON index, the graph is JSON. Reading is another matter: `torch.export.load` unpickles what an archive of
another making asks it to, and evaluates the expressions of its shapes. So midwatch reads back only what it has just
written, by its hash and after a look at every record; whoever deploys checks the hash in the description first.

Legend: n windows, w rows of the member's window, C channels.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from models.deployed import DeployedMember
from models.engine import open_engine
from pipeline.bundle import Bundle
from pipeline.errors import BundleError, ShapeError
from pipeline.values import Bool, Continuity, Float32, Float64, Rows, Status

TOLERANCE = (
    1e-4  # between a program's errors and the engine's, relative to the largest of error, its median and the floor
)
LEAST_WINDOWS = 32  # that both have scored, or the comparison says nothing

ERROR_FLOOR = 1e-3  # smaller errors count as this: with float32 readings of about 1 less is rounding
_RECORD = re.compile(
    r"[^/]+/(archive_(format|version)|byteorder|\.data/(version|serialization_id|alignment)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json))"
)
_MADE_UP = 256  # windows that every export is tried on


def export_member(bundle: Bundle, group: int, index: int) -> ExportedProgram:
    """Return member `index` of a group as a program with a dynamic batch; `models.deployed` says what goes in and out.

    Raises
    ------
    BundleError : tensors that are missing, or do not fit the member; a streaming member, which has no window to take.
    """
    if bundle.streaming:
        raise BundleError(f"bundle {bundle.id} is a streaming one: its scores are not those of windows, export conv")
    spec, channels = bundle.members[index], len(bundle.channels)
    example = (torch.zeros(2, spec.window, channels), torch.ones(2, spec.window, channels, dtype=torch.bool))
    batch = Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            DeployedMember(bundle, group, index).eval().requires_grad_(False),
            example,
            dynamic_shapes={"x": {0: batch}, "observed": {0: batch}},
        )
    program.example_inputs = None  # the one thing that would be pickled
    return program


def save_program(program: ExportedProgram, path: Path) -> str:
    """Write a program; return the SHA-256 of the file.

    Raises
    ------
    BundleError : something in it is pickled.
    """
    torch.export.save(program, path)
    check_archive(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_program(path: Path, sha256: str) -> ExportedProgram:
    """Read a program that `save_program` wrote.

    Raises
    ------
    BundleError : the file has another hash, is no program, or holds anything that would be unpickled.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(f"{path}: not the file that was exported: its sha256 is another than {sha256}")
    check_archive(path)
    return torch.export.load(io.BytesIO(content))


def check_archive(path: Path) -> None:
    """Refuse an archive with a record that `torch.export.load` would hand to pickle.

    Raises
    ------
    BundleError : with the first record that is not raw bytes, JSON or empty.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                _check_record(path, record, archive.read(record) if record.filename.endswith(".json") else b"")
    except (zipfile.BadZipFile, ValueError) as error:
        raise BundleError(f"{path}: not an exported program: {error}") from None


def _check_record(path: Path, record: zipfile.ZipInfo, content: bytes) -> None:
    name = record.filename
    if not _RECORD.fullmatch(name):
        raise BundleError(f"{path}: unknown record {name!r}: it was not written by `midwatch models export`")
    if name.endswith("model.pt") and record.file_size:
        raise BundleError(f"{path}: {name} holds pickled example inputs: nothing is read from this file")
    if name.endswith("_config.json"):
        pickled = [key for key, payload in json.loads(content)["config"].items() if payload["use_pickle"]]
        if pickled:
            raise BundleError(f"{path}: {name} has {pickled[0]} pickled: nothing is read from this file")


def run_program(program: ExportedProgram, x: Float32, observed: Bool) -> dict[str, np.ndarray]:
    """Run a program on windows (n, w, C); return its outputs by name."""
    with torch.inference_mode():
        out: dict[str, torch.Tensor] = program.module()(torch.from_numpy(x), torch.from_numpy(observed))
    return {name: value.numpy() for name, value in out.items()}


def engine_errors(bundle: Bundle, group: int, index: int, x: Float32, observed: Bool) -> Float64:
    """Return the errors (n,) that the serving engine gives windows through one member alone; NaN: it abstains.

    Raises
    ------
    ShapeError : windows of other rows or channels than the member's.
    """
    spec, channels = bundle.members[index], len(bundle.channels)
    n = len(x)
    if x.shape[1:] != (spec.window, channels):
        raise ShapeError(f"windows are {x.shape}, member {index} takes (n, {spec.window}, {channels})")
    engine = open_engine(_alone(bundle, group, index), "cpu")
    rows = Rows(
        partition=0,
        asset=np.repeat(np.arange(n, dtype=np.int32), spec.window),
        ts_ns=np.arange(n * spec.window, dtype=np.int64),
        x=np.where(observed, x, np.float32(0)).reshape(-1, channels),
        observed=observed.reshape(-1, channels),
        quality=np.zeros((n * spec.window, channels), np.uint8),
        offset=np.arange(n * spec.window, dtype=np.int64),
        row=np.zeros(n * spec.window, np.int32),
        continuity=np.tile(np.array([Continuity.FRESH] + [0] * (spec.window - 1), np.uint8), n),
    )
    slots = engine.allocate([str(i) for i in range(n)])
    scores = engine.push([(rows, slots[rows.asset])])[0]
    last = slice(spec.window - 1, None, spec.window)
    return np.where(scores.status[last] == Status.CALIBRATED, scores.score[last], np.nan).astype(np.float64)


def disagreement(
    program: ExportedProgram, bundle: Bundle, group: int, index: int, x: Float32, observed: Bool
) -> dict[str, Any]:
    """Hold a program against the serving engine on windows (n, w, C).

    Returns
    -------
    `windows`: how many both scored; `largest`: the largest difference of errors, relative to the engine's error, the
    median of all or `ERROR_FLOOR`, whichever is largest.

    Raises
    ------
    BundleError : they differ by more than `TOLERANCE`, or fewer than `LEAST_WINDOWS` were scored.
    """
    want = engine_errors(bundle, group, index, x, observed)
    got = run_program(program, x, observed)["error"]
    scored = np.isfinite(want)
    what = f"bundle {bundle.id}: member {index} ({bundle.members[index].kind}) of group {bundle.groups[group]!r}"
    if scored.sum() < LEAST_WINDOWS:
        raise BundleError(f"{what}: the engine scored {scored.sum()} of {len(x)} windows: too few to compare")
    typical = max(float(np.median(want[scored])), ERROR_FLOOR)
    apart = np.abs(got[scored] - want[scored]) / np.maximum(want[scored], typical)
    largest = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    if not largest <= TOLERANCE:
        raise BundleError(f"{what}: the exported program is {largest:.3g} off the engine, {TOLERANCE:g} allowed")
    return {"windows": int(scored.sum()), "largest": largest}


def made_up_windows(bundle: Bundle, group: int, index: int, seed: int = 0) -> tuple[Float32, Bool]:
    """Return windows (n, w, C) around the group's usual readings: quiet, broken, with gaps and without."""
    spec, channels = bundle.members[index], len(bundle.channels)
    random = np.random.default_rng(seed)
    loc, scale = (np.asarray(bundle.tensor(group, "scaler", n), np.float64) for n in ("loc", "scale"))
    x = random.normal(size=(_MADE_UP, spec.window, channels)).cumsum(axis=1) / np.sqrt(spec.window)
    x[random.random(_MADE_UP) < 0.2, -1] *= 30  # far beyond the soft clip
    observed = random.random(x.shape) >= 0.1
    observed[: _MADE_UP // 2] = True
    return (loc + scale * x).astype(np.float32), observed


def _alone(bundle: Bundle, group: int, index: int) -> Bundle:
    """Return a bundle of one member of one group, which scores whatever it is given."""
    own, scaler = f"g{group}.m{index}.", f"g{group}.scaler."
    tensors = {n.replace(own, "g0.m0.", 1): t for n, t in bundle.tensors.items() if n.startswith(own)}
    tensors |= {n.replace(scaler, "g0.scaler.", 1): t for n, t in bundle.tensors.items() if n.startswith(scaler)}
    return replace(
        bundle,
        members=(bundle.members[index],),
        groups=(bundle.groups[group],),
        asset_group={},
        default_group=0,
        tensors=tensors,
    )
