"""`midwatch models export`: a bundle as `torch.export` programs with a description, for use without midwatch.

    <out>/export.json               what each program takes and gives, what finishes the job, hashes, agreement
    <out>/g0.m0.pt2, ...            a program for each group and member (`models.export`)
    <out>/calibration.safetensors   the arrays of the scalers and of every profile's calibration

The folder appears by one rename when all programs were read back and agree with the serving engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import build
from pipeline.errors import ConfigError, TooLittleHistory

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings
    from models.series import Series
    from pipeline.bundle import Bundle
    from pipeline.values import Bool, Float32

FORMAT = 1
_MOST_WINDOWS = 1024  # of the held part, for each program

_INPUTS = {
    "x": "float32 (batch, window, channels): readings in input units, oldest row first; any value where not observed",
    "observed": "bool (batch, window, channels): whether each reading was seen",
}
_OUTPUTS = {
    "expected": "float32 (batch, channels): the last row as the member expects it, in input units",
    "residual": "float32 (batch, channels), in scales of the channel: of the last row, came less expected "
    "(error = last), or root mean square over the window (error = window); 0 where weight is 0",
    "weight": "float32 (batch, channels): how many readings the residual rests on",
    "error": "float64 (batch,): the member's error before the smoother, NaN where nothing that counts was observed",
}
_RULES = {
    "score": "geometric mean of the errors of the group's members, each at least 1e-30, for an asset's newest window",
    "windows": "each member sees the newest rows of the longest window, as many as its own window has",
    "abstain": "no score where under half of the longest window's readings were observed, or none of its last row's",
    "shares": "a channel's part in the alert: weight * residual^2 over its sum, of channels observed in the last row; "
    "mean over members",
    "smoother": "c = (score - median) / mad by the asset's row of its calibration (0: pooled), where for channels j "
    "missing from the last row log score is first put to log median + g (log score - log median - d), d the sum of "
    "missing_shift[j] and g the product, within 1/2 to 2, of missing_gain[j]; then the rolling median and MAD over "
    "admitted c, min(c, z), EWMA: bundle.smoother has the sizes, calibration.start the first memory",
    "alert": "smoothed / threshold > 1",
}


def export_bundle(settings: Settings, bundle: str, out: Path, files: tuple[Path, ...], console: Console) -> None:
    """Export every member of every group, check each program on held windows, and print where they are.

    Parameters
    ----------
    out : a folder that does not exist, or is empty.
    files : rows to try the programs on: the newest share of `files`, or of the history's confirmed-normal rows where
        none are given. Windows that are made up, with gaps and faults, are tried in any case.

    Raises
    ------
    ConfigError : `out` has something in it.
    BundleError : no such bundle, or a program that differs from the serving engine; nothing is written.
    """
    from models.manifest import pack

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", str(out), "give a folder that does not exist, or is empty")
    found = build.registry(settings).load(bundle)
    held = _held(settings, files, console)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)  # left by a process that died here
    fresh.mkdir()
    try:
        programs = _write_programs(found, held, settings.train.holdout_share, fresh, console)
        packed = pack(found, 0)
        description = {
            "format": FORMAT,
            "id": bundle,
            "torch": _torch_version(),
            "programs": programs,
            "inputs": _INPUTS,
            "outputs": _OUTPUTS,
            "rules": _RULES,
            "bundle": packed.manifest["bundle"],
            "calibration": _write_calibration(packed.weights, fresh),
        }
        (fresh / "export.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        fresh.replace(out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    agreement = [p["agreement"] for p in programs]
    console.record(
        {
            "id": bundle,
            "out": str(out),
            "programs": len(programs),
            "windows": sum(a["held"]["windows"] + a["made_up"]["windows"] for a in agreement),
            "largest_difference": max(max(a["held"]["largest"], a["made_up"]["largest"]) for a in agreement),
        }
    )


def _write_programs(
    bundle: Bundle, held: Sequence[Series], share: float, folder: Path, console: Console
) -> list[dict[str, Any]]:
    from models import export

    told = []
    with console.progress("exporting", len(bundle.groups) * len(bundle.members)) as advance:
        for g, group in enumerate(bundle.groups):
            for m, member in enumerate(bundle.members):
                path = folder / f"g{g}.m{m}.pt2"
                digest = export.save_program(export.export_member(bundle, g, m), path)
                program = export.load_program(path, digest)
                made_up = export.disagreement(program, bundle, g, m, *export.made_up_windows(bundle, g, m))
                windows = _held_windows(bundle, g, member.window, held, share)
                tried = {"windows": 0, "largest": 0.0}
                if len(windows[0]) >= export.LEAST_WINDOWS:
                    tried = export.disagreement(program, bundle, g, m, *windows)
                told.append(
                    {
                        "file": path.name,
                        "bytes": path.stat().st_size,
                        "sha256": digest,
                        "group": group,
                        "kind": member.kind,
                        "window": member.window,
                        "channels": len(bundle.channels),
                        "error": member.error,
                        "aggregate": member.aggregate,
                        "agreement": {"tolerance": export.TOLERANCE, "held": tried, "made_up": made_up},
                    }
                )
                advance(1)
    return told


def _held(settings: Settings, files: tuple[Path, ...], console: Console) -> tuple[Series, ...]:
    """Return the series of files, or of the history, to try programs on."""
    from jobs.confirmed import read_confirmed
    from jobs.train import read_files

    if files:
        return read_files(settings, files, console)[0]
    try:
        if Path(settings.history.root).is_dir():
            return read_confirmed(settings, None, settings.train.days).series
    except TooLittleHistory:
        pass
    console.warn("no history to try the programs on: they are held against the engine on windows that are made up")
    return ()


def _held_windows(
    bundle: Bundle, group: int, window: int, series: Sequence[Series], share: float
) -> tuple[Float32, Bool]:
    """Return the newest share of the normal windows of a group's assets; of all assets, if it scores the others."""
    from models.series import thinned, window_ends, windows

    x: list[Float32] = []
    observed: list[Bool] = []
    for one in series:
        if bundle.asset_group.get(one.asset, bundle.default_group) != group and bundle.default_group != group:
            continue
        ends = window_ends(one, window)
        ends = thinned(ends[len(ends) - int(share * len(ends)) :], max(_MOST_WINDOWS // len(series), 1))
        gathered = windows(one.x, one.observed, ends, window)
        x.append(gathered[0])
        observed.append(gathered[1])
    if not x:
        shape = (0, window, len(bundle.channels))
        return np.empty(shape, np.float32), np.empty(shape, np.bool_)
    return np.concatenate(x), np.concatenate(observed)


def _write_calibration(weights: bytes, folder: Path) -> dict[str, Any]:
    """Write the arrays that finish the job beside the programs; return their file and hash."""
    from safetensors.numpy import load, save_file

    path = folder / "calibration.safetensors"
    kept = {n: array for n, array in load(weights).items() if n.startswith("cal.") or ".scaler." in n}
    save_file(kept, path)
    content = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "arrays": {name: list(array.shape) for name, array in sorted(kept.items())},
    }


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
