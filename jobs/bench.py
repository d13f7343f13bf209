"""`midwatch bench`: figures as ratios to yardsticks that are measured beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.benches.catalogue import BENCHES
from jobs.benches.measure import Result, Trial
from pipeline.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from jobs.console import Console

_COLUMNS = ("name", "ratio", "low", "high", "must", "goal", "stands", "yardstick")
_MORE = ("name", "value", "low", "high", "must", "goal")


def bench(
    names: Sequence[str],
    trial: Trial,
    console: Console,
    *,
    out: Path | None = None,
    table: Path | None = None,
    peers: Path | None = None,
) -> list[Result]:
    """Run the benches of those names (all of them without any) and print a line for each.

    Without names, what this machine has no device or package for is left out, and said so.

    Parameters
    ----------
    out : also gets the figures as JSON.
    table : also gets them as a table in Markdown, with what is known of the machine.
    peers : a folder with an environment for each peer; what is missing there is made. None: no peer is run.

    Raises
    ------
    ConfigError : a name that is no bench.
    Unavailable : a bench that was named cannot be run here.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigError("bench", unknown[0], f"choose from {', '.join(BENCHES)}")
    found = _run(names or list(BENCHES), trial, console, all_must=bool(names))
    results = [result if peers is None else _beside_peers(result, peers, trial, console) for result in found]
    records = [_record(result) for result in results]
    if out is not None:
        out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if table is not None:
        from jobs.benches.table import write_table

        write_table(table, results)
    if console.as_json:
        console.line(json.dumps(records))
        return results
    console.rows([_line(result) for result in results], _COLUMNS)
    for result in results:
        if result.more:
            console.line("")
            console.line(result.name)
            console.rows([_short({"value": m.get("ratio"), **m}) for m in result.more], _MORE)
    return results


def _run(names: Sequence[str], trial: Trial, console: Console, all_must: bool) -> Iterator[Result]:
    for name in names:
        with console.progress(name):
            try:
                result = BENCHES[name].run(trial)
            except Unavailable as error:
                if all_must:
                    raise
                console.warn(f"{name} not measured: {error}")
                continue
        console.detail(f"{name} {result.ratio:.4g} of {result.yardstick}")
        yield result


def _beside_peers(result: Result, peers: Path, trial: Trial, console: Console) -> Result:
    from jobs.benches.pairs import compare

    try:
        return replace(result, more=[*result.more, *compare(result.name, peers, trial)])
    except Unavailable as error:
        console.warn(f"{result.name} without its peers: {error}")
        return result


def _record(result: Result) -> dict[str, Any]:
    """Return a result as JSON has it; what it must and should reach stands under `more`."""
    entry = BENCHES[result.name]
    levels = {"must": entry.must, "goal": entry.goal}
    record = result.record()
    record["more"] = [*record["more"], *({"name": n, "value": v} for n, v in levels.items() if v is not None)]
    return record


def _line(result: Result) -> dict[str, object]:
    entry = BENCHES[result.name]
    return _short({**result.record(), "must": entry.must, "goal": entry.goal, "stands": entry.stands(result)})


def _short(line: Mapping[str, object]) -> dict[str, object]:
    return {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()}
