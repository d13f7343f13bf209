"""How a bench measures: contestants take turns, round by round, so that a machine that drifts hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a bench: `ratio` to `yardstick`, median over the rounds, with the lowest and the highest round."""

    name: str
    ratio: float
    yardstick: str
    low: float
    high: float
    better: Literal["higher", "lower"] = "higher"
    more: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the line as it is printed with --json."""
        return asdict(self)


def rounds(
    contestants: Mapping[str, Callable[[int], object]], count: int, least_s: float = 0.15
) -> dict[str, np.ndarray]:
    """Run every contestant `count` times in turn; return the seconds of one call, (count,) for each.

    A contestant is called with the number of the call, counted over the whole bench; a round repeats it until
    `least_s` has passed. One round before the counted ones warms up.
    """
    calls = dict.fromkeys(contestants, 0)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(count + 1):
        for name, run in contestants.items():
            start, done = time.perf_counter(), 0
            while done == 0 or time.perf_counter() - start < least_s:
                run(calls[name])
                calls[name] += 1
                done += 1
            if turn:
                taken[name].append((time.perf_counter() - start) / done)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def ratio(name: str, yardstick: str, ratios: np.ndarray, better: Literal["higher", "lower"], **more: Any) -> Result:
    """Return the result of one ratio a round."""
    return Result(
        name,
        float(np.median(ratios)),
        yardstick,
        float(ratios.min()),
        float(ratios.max()),
        better,
        [{"name": k, "value": float(v)} for k, v in more.items()],
    )
