"""`midwatch demo`: made-up pumps, a real run. Train, watch, alert, one nightly job, and what came of it.

Everything that is printed was measured in the run. It goes through the programs that anybody would use, with a
configuration file that stays in the folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.simulate import CHANNELS, Fault, Fleet, asset_name, day_start_ns, plan_faults, simulate, write_parquet
from pipeline.errors import GateRefused
from pipeline.values import NS_PER_S, Alert

if TYPE_CHECKING:
    from jobs.console import Console
    from jobs.settings import Settings

PUMPS, PERIOD_S, NORMAL_DAYS = 8, 20.0, 6
_DAY_ROWS = int(86_400 / PERIOD_S)
_END_NS = 1_790_640_000 * NS_PER_S  # the demo's own midnight: two runs with one seed print the same figures
_SETTLE_NS = 3600 * NS_PER_S  # what a fault stirs up may be told until this long after its end
_MADE = ("history", "models", "state", "normal.parquet", "live.ndjson", "midwatch.toml", "labels.ndjson", "report.html")


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a fault was found, and when."""

    fault: Fault
    alert: Alert | None  # the first of the right kind, on the right asset, in time
    delay_s: float


def demo(folder: Path, seed: int, device: str, console: Console) -> None:
    """Run the whole demonstration in `folder`, and print `N/M faults found` last."""
    clock = _Clock(console)
    settings = _prepare(folder, device)
    start_ns = day_start_ns(NORMAL_DAYS + 1, _END_NS)
    live_s = NORMAL_DAYS * 86_400.0
    faults = plan_faults(PUMPS, live_s, live_s + 86_400, seed)
    fleet = simulate(PUMPS, (NORMAL_DAYS + 1) * _DAY_ROWS, PERIOD_S, start_ns, seed, faults)
    first_live = NORMAL_DAYS * _DAY_ROWS
    write_parquet(folder / "normal.parquet", fleet, first_live)
    _write_ndjson(folder / "live.ndjson", fleet, first_live)
    clock.say(
        "data", f"{PUMPS} pumps x {len(CHANNELS)} channels, {NORMAL_DAYS} normal days and one with faults, seed {seed}"
    )

    from jobs.train import train

    train(settings=settings, files=(folder / "normal.parquet",), promote=True, console=_mute(console))
    clock.say("model", f"trained on {first_live * PUMPS} rows: {_champion(settings)}")

    opened = _watch(settings, console, clock)
    clock.say("watch", f"{_DAY_ROWS * PUMPS} rows; {len(opened)} alerts opened")
    clock.say("night", _night(settings, console))

    findings = [_find(f, opened, start_ns) for f in faults]
    false = [a for a in opened if not any(_belongs(a, f, start_ns) for f in faults)]
    report = folder / "report.html"
    report.write_text(_report(settings, findings, false, start_ns, seed), encoding="utf-8")
    _tell(findings, false, report, console)


class _Clock:
    """Says things with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console, self._start = console, time.monotonic()

    def say(self, what: str, text: str) -> None:
        self._console.say(f"[{time.monotonic() - self._start:5.1f}s] {what:6} {text}")


def _prepare(folder: Path, device: str) -> Settings:
    """Empty what an earlier demo left in the folder, write the configuration, and read it like any other."""
    from jobs.settings import load

    folder.mkdir(parents=True, exist_ok=True)
    for name in _MADE:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    config = folder / "midwatch.toml"
    config.write_text(_toml(folder.resolve()), encoding="utf-8")
    return load(config, {"run.device": device}, environ={}).settings


def _toml(folder: Path) -> str:
    names = ", ".join(json.dumps(c) for c in CHANNELS)
    return f"""[feed]
name = "pumps"
period_s = {PERIOD_S:g}
channels = [{names}]

[mapping]
asset = "asset"
time = "ts"
time_unit = "ns"

[train]
per_group = "fleet"
pca_variance = 0.98
steps = 500
percentile = 99.9

[alert]
open_at = 2.0
close_at = 1.0
merge_gap_s = 900

[source]
type = "file"
path = "{folder}/live.ndjson"

[sinks]
alerts = ""
dead = ""

[history]
root = "{folder}/history"

[registry]
root = "{folder}/models"

[labels]
path = "{folder}/labels.ndjson"

[run]
state = "{folder}/state"
"""


def _write_ndjson(path: Path, fleet: Fleet, first: int) -> None:
    """Write the rest as the messages that a gateway would send; a lost channel is not in them."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(first, len(fleet.ts_ns)):
            for p in range(PUMPS):
                seen = zip(CHANNELS, fleet.x[p, i].tolist(), fleet.observed[p, i].tolist(), strict=True)
                body = {name: round(value, 4) for name, value, there in seen if there}
                file.write(json.dumps({"asset": asset_name(p), "ts": int(fleet.ts_ns[i]), **body}) + "\n")


def _watch(settings: Settings, console: Console, clock: _Clock) -> list[Alert]:
    """Run the watch over the live day; return every alert at its opening."""
    from jobs.run import run

    opened: list[Alert] = []

    def told(step: Any) -> None:
        for alert in step.output.alerts:
            if alert.state == "open":
                opened.append(alert)
                top = " ".join(f"{t.name} {t.share:.0%}" for t in alert.top_channels[:2])
                clock.say("ALERT", f"{alert.asset} {alert.kind:8} score {alert.ratio:.1f}x  {top}")

    run(settings=settings, console=_mute(console), told=told)
    return opened


def _night(settings: Settings, console: Console) -> str:
    """Run one nightly job; both of its outcomes are good news."""
    from jobs.nightly import nightly

    before = _champion(settings)
    try:
        nightly(settings=settings, recalibrate_only=False, as_of_ns=None, console=_mute(console))
    except GateRefused as refused:
        return f"candidate refused, {before} stays: {refused}"
    return f"{_champion(settings)} promoted over {before}"


def _champion(settings: Settings) -> str:
    from jobs.build import require_champion

    return require_champion(settings).id


def _mute(console: Console) -> Console:
    """Return a console for the programs within: their data is not the demo's."""
    from jobs.console import Console as Fresh

    class Silent(Fresh):
        def line(self, text: str) -> None:
            self.detail(text)

    return Silent(quiet=True, verbose=console.verbose)


def _find(fault: Fault, opened: Sequence[Alert], start_ns: int) -> Finding:
    begin = start_ns + round(fault.start_s * NS_PER_S)
    until = begin + round(fault.within_s * NS_PER_S)
    for alert in opened:
        if alert.asset == fault.asset and alert.kind == fault.event and begin <= alert.opened_ns <= until:
            return Finding(fault, alert, (alert.opened_ns - begin) / NS_PER_S)
    return Finding(fault, None, np.nan)


def _belongs(alert: Alert, fault: Fault, start_ns: int) -> bool:
    """Return whether an alert is of a fault's kind, on its asset, while it lasts or settles."""
    begin, end = (start_ns + round(s * NS_PER_S) for s in (fault.start_s, fault.end_s))
    return alert.asset == fault.asset and alert.kind == fault.event and begin <= alert.opened_ns <= end + _SETTLE_NS


def _row(finding: Finding) -> tuple[str, ...]:
    fault, alert = finding.fault, finding.alert
    if alert is None:
        return (fault.kind, fault.asset, fault.event, "not found", f"{fault.within_s:.0f} s", "")
    top = ", ".join(f"{t.name} {t.share:.0%}" for t in alert.top_channels[:3])
    return (fault.kind, fault.asset, fault.event, f"{finding.delay_s:.0f} s", f"{fault.within_s:.0f} s", top)


_HEADER = ("fault", "asset", "told as", "delay", "allowed", "channels named")


def _tell(findings: Sequence[Finding], false: Sequence[Alert], report: Path, console: Console) -> None:
    found = [f for f in findings if f.alert is not None]
    for finding in findings:
        console.say("  " + "  ".join(f"{cell:14}" for cell in _row(finding)).rstrip())
    for alert in false:
        console.say(f"  false alarm    {alert.asset}  {alert.kind}  {alert.ratio:.1f}x")
    console.say(f"report {report}")
    if console.as_json:
        delays = {f.fault.kind: f.delay_s for f in found}
        console.record({"found": len(found), "faults": len(findings), "false_alarms": len(false), "delay_s": delays})
    else:
        console.line(f"{len(false)} false alarms")
        console.line(f"{len(found)}/{len(findings)} faults found")


def _report(settings: Settings, findings: Sequence[Finding], false: Sequence[Alert], start_ns: int, seed: int) -> str:
    from jobs.report import render
    from jobs.report_panels import panel_of

    panels = [panel_of(settings, f.fault, f.alert, start_ns) for f in findings]
    found = sum(f.alert is not None for f in findings)
    lead = (
        f"{found} of {len(findings)} injected faults found, {len(false)} false alarms, on {PUMPS} simulated pumps "
        f"over one day (seed {seed}). The model was trained on the {NORMAL_DAYS} days before. Alerts open at ratio "
        f"{settings.alert.open_at:g}."
    )
    return render("midwatch demo", lead, _HEADER, [_row(f) for f in findings], panels)
