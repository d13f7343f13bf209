"""`midwatch bench`: figures as ratios to yardsticks that are measured beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from jobs.benches.measure import Result
    from jobs.console import Console


def _e2e_json_dense() -> Result:
    from jobs.benches.e2e import json_dense

    return json_dense()


_BENCHES: dict[str, Callable[[], Result]] = {"e2e.json.dense": _e2e_json_dense}
_COLUMNS = ("name", "ratio", "low", "high", "better", "yardstick")


def bench(names: tuple[str, ...], out: Path | None, device: str, console: Console) -> None:
    """Run the benches of those names (all of them without any) and print a line for each.

    Raises
    ------
    ConfigError : a name that is no bench.
    """
    unknown = [name for name in names if name not in _BENCHES]
    if unknown:
        raise ConfigError("bench", unknown[0], f"choose from {', '.join(_BENCHES)}")
    results = []
    for name in names or _BENCHES:
        with console.progress(name):
            results.append(_BENCHES[name]().record())
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if console.as_json:
        console.line(json.dumps(results))
        return
    console.rows([{k: _short(v) for k, v in r.items()} for r in results], _COLUMNS)
    for result in results:
        console.rows([{k: _short(v) for k, v in m.items()} for m in result["more"]], ("name", "value"))


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
