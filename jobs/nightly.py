"""`midwatch nightly`: retrain or recalibrate on the confirmed-normal history, gate, promote. Made for cron.

A night is a function of the history, the labels and the configuration. Run again on the same history it makes the same
bundle, with the same id, and changes nothing. What it removes by `history.keep_days` is older than what it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jobs import build
from jobs.confirmed import Confirmed, read_confirmed
from jobs.train import conclude, fit_candidate, require_rows, retrain_spec
from models.retraining import Candidate, recalibrated
from pipeline.errors import BundleError
from pipeline.values import NS_PER_DAY

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings
    from pipeline.bundle import Bundle


def nightly(settings: Settings, recalibrate_only: bool, as_of_ns: int | None, console: Console) -> None:
    """Run one night.

    Parameters
    ----------
    recalibrate_only : keep the champion's weights, take new thresholds from the last `train.recalibrate_days`.
    as_of_ns : the night's end: later rows are not read; None: the end of the history. Never the time of day.

    Raises
    ------
    GateRefused : the candidate may not serve; the champion stays.
    TooLittleHistory : how much there is, how much is needed.
    ConfigError : there is no champion whose thresholds could be taken anew.
    """
    t = settings.train
    champion = build.require_champion(settings) if recalibrate_only else None
    found = read_confirmed(settings, as_of_ns, t.recalibrate_days if recalibrate_only else t.days)
    _warn(found, console)
    _retire(settings, found.as_of_ns, console)
    if champion is not None:
        candidate = _recalibrate(settings, champion, found)
    else:
        candidate = fit_candidate(settings, found.series, found.faults, found.told(), console)
    conclude(settings, candidate, True, found.told(), console)


def _retire(settings: Settings, end_ns: int, console: Console) -> None:
    from connectors.history_files import retire

    h = settings.history
    if h.keep_days != "off":
        gone = retire(Path(h.root), settings.feed.name, end_ns - round(h.keep_days * NS_PER_DAY))
        console.say(f"{len(gone)} files of the history were older than history.keep_days and are removed")


def _recalibrate(settings: Settings, champion: Bundle, found: Confirmed) -> Candidate:
    require_rows(settings, found.series)
    return recalibrated(
        champion, _as_trained(settings, champion), found.series, retrain_spec(settings), found.faults,
        {"data": found.told()},
    )  # fmt: skip


def _as_trained(settings: Settings, champion: Bundle) -> Bundle:
    """Return the bundle that the champion's weights were trained as, with its first calibration."""
    origin = champion.provenance.get("recalibrated", {}).get("from")
    if origin is None:
        return champion
    try:
        return build.registry(settings).load(origin)
    except BundleError as error:
        raise BundleError(
            f"champion {champion.id} has the weights of {origin}, from which its thresholds start every night: {error}"
        ) from None


def _warn(found: Confirmed, console: Console) -> None:
    if found.conflicts:
        console.warn(f"people disagree about {found.conflicts} alerts or times: those rows are not learned from")
    if found.unmatched:
        console.warn(f"{found.unmatched} labels are about alerts that the history does not have: they change nothing")
