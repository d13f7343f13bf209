"""The figures as a page: one table in Markdown, the machine they were taken on, what limits what is below its goal."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.benches.catalogue import BENCHES
from jobs.benches.limits import LIMITS
from jobs.benches.measure import Result
from jobs.version import versions

_HEAD = """# Figures

Made by `./dev bench --table BENCH.md`; do not edit. Each line is a ratio to a yardstick that took its turns in the same
process, in CPU seconds, one thread: the median of seven rounds, the lowest and the highest. *must* is the least with
which the work is called done, *goal* what the best known way reaches, neither is asserted anywhere. `midwatch bench
--json` prints the same, `jobs/benches` says what is run.
"""


def write_table(path: Path, results: Sequence[Result]) -> None:
    """Write the page."""
    path.write_text("\n".join(_page(results)) + "\n", encoding="utf-8")


def _page(results: Sequence[Result]) -> Iterable[str]:
    yield _HEAD
    yield from _machine()
    yield ""
    yield "| bench | ratio | spread | must | goal | stands | against |"
    yield "| --- | ---: | --- | ---: | ---: | --- | --- |"
    for result in results:
        yield _row(result)
    measured = {result.name for result in results}
    left = [name for name in BENCHES if name not in measured]
    if left:
        yield ""
        yield f"Not measured here: {', '.join(left)}."
    yield from _limits(results)
    yield ""
    yield "## More"
    for result in results:
        if result.more:
            yield ""
            yield f"`{result.name}`: " + "; ".join(_more(entry) for entry in result.more) + "."


def _row(result: Result) -> str:
    entry = BENCHES[result.name]
    sign = "" if result.better == "higher" else "≤ "
    levels = ["" if level is None else f"{sign}{_short(level)}" for level in (entry.must, entry.goal)]
    cells = [
        f"`{result.name}`",
        _short(result.ratio),
        f"{_short(result.low)} – {_short(result.high)}",
        *levels,
        entry.stands(result),
        result.yardstick,
    ]
    return f"| {' | '.join(cells)} |"


def _limits(results: Sequence[Result]) -> Iterable[str]:
    told = [(r.name, LIMITS[r.name]) for r in results if BENCHES[r.name].stands(r) != "goal" and r.name in LIMITS]
    if not told:
        return
    yield ""
    yield "## What limits those below their goal"
    for name, text in told:
        yield ""
        yield f"`{name}`: {text}"


def _more(entry: Mapping[str, Any]) -> str:
    if "ratio" not in entry:
        return f"{entry['name']} {_short(entry['value'])}"
    levels = [f"{key} {_short(entry[key])}" for key in ("must", "goal") if key in entry]
    spread = f"{_short(entry['low'])} – {_short(entry['high'])}"
    return f"{entry['name']} {_short(entry['ratio'])} ({', '.join([spread, *levels])})"


def _machine() -> Iterable[str]:
    found = versions()
    packages = ", ".join(
        f"{name} {found[name]}" for name in ("python", "numpy", "numba", "torch", "onnxruntime") if name in found
    )
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
    yield f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {cores}; {packages}."


def _processor() -> str:
    """Return the processor's name as the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
