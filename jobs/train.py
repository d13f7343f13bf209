"""`midwatch train`: fit a model on files or on the history, calibrate it, put it through its gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import build
from jobs.config import specs
from jobs.confirmed import read_confirmed
from jobs.gather import Gathered, gather, merge, normal_unless_faulty
from jobs.settings import config_id
from models.calibration import CalibrationSpec
from models.fitting import Progress
from models.judging import Stretch
from models.profiles import FALLBACK, by_name, choose
from models.retraining import Candidate, RetrainSpec, retrain
from models.series import Series
from pipeline.errors import GateRefused, TooLittleHistory

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings


def train(settings: Settings, files: tuple[Path, ...], promote: bool, console: Console) -> None:
    """Train on `files`, where every row without a sensor fault counts as normal, or on the confirmed-normal history.

    The candidate is registered, whatever its gate says, so that it can be looked at and promoted by hand; the gate
    decides whether it becomes champion now. One record says how it went.

    Raises
    ------
    GateRefused : the gate refused it; the champion, if there is one, stays.
    TooLittleHistory : how much there is, how much is needed.
    InputError : two files hold rows of the same asset that overlap in time.
    """
    faults: tuple[Stretch, ...] = ()
    if files:
        series, told = read_files(settings, files, console)
    else:
        found = read_confirmed(settings, None, settings.train.days)
        series, faults, told = found.series, found.faults, found.told()
    candidate = fit_candidate(settings, series, faults, told, console)
    conclude(settings, candidate, promote, told, console)


def fit_candidate(
    settings: Settings, series: Sequence[Series], faults: Sequence[Stretch], told: Mapping[str, Any], console: Console
) -> Candidate:
    """Fit, calibrate and judge a candidate against the champion.

    Raises
    ------
    TooLittleHistory : fewer normal rows than `train.min_rows`, or too few windows in a part.
    """
    require_rows(settings, series)
    champion = build.champion(settings)
    spec = retrain_spec(settings)
    with _progress(settings, len(series), console) as advance:
        return retrain(series, spec, champion, faults, {"config_id": config_id(settings), "data": told}, advance)


def require_rows(settings: Settings, series: Sequence[Series]) -> None:
    """Refuse to learn from too little.

    Raises
    ------
    TooLittleHistory : fewer normal rows than `train.min_rows`.
    """
    normal = sum(int(one.normal.sum()) for one in series)
    if normal < settings.train.min_rows:
        raise TooLittleHistory(normal, settings.train.min_rows, "normal rows (train.min_rows)")


def retrain_spec(settings: Settings) -> RetrainSpec:
    """Return how candidates are made here. One thread, so that a night run twice gives the same bits."""
    import torch

    torch.set_num_threads(1)
    run = settings.run
    judged = choose(run.device, run.precision, run.priority)
    more = (FALLBACK, *map(by_name, settings.train.profiles))  # a CPU must be able to take over from anything
    if "stream" in settings.train.members:
        judged, more = FALLBACK, (FALLBACK,)  # the one that a streaming model is served by
    return RetrainSpec(
        train=specs.train_spec(settings),
        calibration=CalibrationSpec(percentile=settings.train.percentile),
        holdout_share=settings.train.holdout_share,
        test_share=settings.train.test_share,
        profiles=(judged, *(p for p in dict.fromkeys(more) if p.name != judged.name)),
    )


def conclude(settings: Settings, candidate: Candidate, promote: bool, told: Mapping[str, Any], console: Console) -> str:
    """Register a candidate, promote it if it may be, print what came of it; return its id.

    Raises
    ------
    GateRefused : it may not.
    """
    registry, report = build.registry(settings), candidate.report
    before, now = registry.champion(), time.time_ns()
    bundle = registry.add(candidate.bundle, now)
    if promote and report.passed:
        registry.promote(bundle.id, "its gate let it", now)
    console.record(
        {
            "id": bundle.id,
            "champion": registry.champion(),
            "champion_before": before,
            "promoted": promote and report.passed and before != bundle.id,
            "passed": report.passed,
            "reasons": list(report.reasons),
            "warnings": list(report.warnings),
            "members": [f"{member.kind} w{member.window}" for member in bundle.members],
            "figures": dict(report.figures),
            **told,
        }
    )
    if not report.passed:
        kept = f"{before} stays champion" if before else "there is no champion yet"
        refused = GateRefused(report.reasons)
        refused.add_note(f"{kept}; `midwatch models promote {bundle.id}` promotes it all the same")
        raise refused
    return bundle.id


def read_files(
    settings: Settings, files: Sequence[Path], console: Console
) -> tuple[tuple[Series, ...], dict[str, Any]]:
    """Return the series of files, where every row without a sensor fault counts as normal, and what was read."""
    parts: list[Gathered] = []
    logs: list[str] = []
    with console.progress("reading") as advance:
        for path in files:
            source, mapping = build.file_source(settings, path)
            logs += [topic for topic, _ in source.partitions()]
            parts.append(gather(source, specs.chain_spec(settings, mapping.format), _steps(advance)))
            source.close()
    found = merge(parts)
    series = normal_unless_faulty(found)
    faulty = sum(int(bad.sum()) for bad in found.faulty)
    told = {
        "source": "files",
        "files": [path.name for path in files],
        "logs": logs,
        "rows": found.rows,
        "late": found.late,
        "dead": found.dead,
        "normal": sum(int(one.normal.sum()) for one in series),
        "left_out": {"quality": faulty} if faulty else {},
    }
    return series, told


@contextmanager
def _progress(settings: Settings, assets: int, console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show the steps of every network of every group; principal components are one step."""
    t = settings.train
    groups = assets + 1 if t.per_group == "asset" and assets > 1 else 1
    with console.progress("fitting", groups * sum(1 if kind == "pca" else t.steps for kind in t.members)) as advance:
        done: dict[tuple[str, str], int] = {}

        def told(at: Progress) -> None:
            key = (at.group, at.member)
            advance(at.step - done.get(key, 0))
            done[key] = at.step

        yield told


def _steps(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that takes how far it is, for one that takes how much further it got."""
    last = 0

    def told(now: int) -> None:
        nonlocal last
        advance(now - last)
        last = now

    return told
