"""How a bench measures: contestants take turns, round by round, so that a machine that drifts hits all of them.

A bench is a function `(trial: Trial) -> Result`; `jobs.benches.catalogue` gives it its name, must and goal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.values import Float64

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Trial:
    """How much is measured.

    Attributes
    ----------
    quick : sizes and rounds just large enough to go through every line of a bench; the figures mean nothing.
    device : what benches of a device run on, as `models.engine.open_engine` takes it.
    """

    quick: bool = False
    device: str = "auto"

    @property
    def count(self) -> int:
        """Rounds that count."""
        return 1 if self.quick else 7

    @property
    def least_s(self) -> float:
        """How long a contestant's turn takes at least."""
        return 0.0 if self.quick else 0.15

    def size(self, full: int, quick: int) -> int:
        """Return the size of something: the one that is defined, or the smallest that does."""
        return quick if self.quick else full

    def rounds(
        self, contestants: Mapping[str, Callable[[int], object]], clock: Callable[[], float] = time.process_time
    ) -> dict[str, np.ndarray]:
        """Run every contestant once a round, in turn; return the seconds of one call, (count,) for each.

        `clock` counts the CPU time of this process: other programs on the machine disturb it less, and a second
        thread is not free. Where work is done elsewhere (a device, a child), pass `time.perf_counter`.
        """
        return rounds(contestants, self.count, self.least_s, clock)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One comparison: the median over the rounds, with the lowest and the highest round."""

    yardstick: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a bench: `ratio` to `yardstick`, median over the rounds, with the lowest and the highest round.

    `more` holds what else was found: mappings with a `name`, and a `value` or a `ratio` with its `low` and `high`.
    """

    name: str
    ratio: float
    yardstick: str
    low: float
    high: float
    better: Better = "higher"
    more: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the line as it is printed with --json."""
        return asdict(self)


def rounds(
    contestants: Mapping[str, Callable[[int], object]],
    count: int,
    least_s: float = 0.15,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Run every contestant `count` times in turn; return the seconds of one call, (count,) for each.

    A contestant is called with the number of the call, counted over the whole bench; a round repeats it until
    `least_s` has passed. One round before the counted ones warms up.
    """
    calls = dict.fromkeys(contestants, 0)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(count + 1):
        for name, run in contestants.items():
            seconds = each(run, calls[name], least_s, clock)
            calls[name] += len(seconds)
            if turn:
                taken[name].append(float(seconds.mean()))
    return {name: np.array(seconds) for name, seconds in taken.items()}


def each(
    run: Callable[[int], object], first: int, least_s: float, clock: Callable[[], float] = time.process_time
) -> Float64:
    """Call `run` with `first` and the numbers after it until `least_s` has passed; return the seconds of each call."""
    times = [clock()]
    while len(times) == 1 or times[-1] - times[0] < least_s:
        run(first + len(times) - 1)
        times.append(clock())
    return np.diff(times)


def against(yardstick: str, ratios: np.ndarray) -> Ratio:
    """Return a comparison from one ratio a round."""
    return Ratio(yardstick, float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def worst(lines: Sequence[Ratio], better: Better = "higher") -> list[Ratio]:
    """Return comparisons at several sizes with the worst one first."""
    pick = min if better == "higher" else max
    first = pick(lines, key=lambda line: line.ratio)
    return [first, *(line for line in lines if line is not first)]


def result(
    name: str, lines: Sequence[Ratio], figures: Mapping[str, float] | None = None, better: Better = "higher"
) -> Result:
    """Return the result of a bench: the first line is its ratio, the others and plain figures come under `more`."""
    first = lines[0]
    more: list[Mapping[str, Any]] = [
        {"name": f"to {line.yardstick}", "ratio": line.ratio, "low": line.low, "high": line.high} for line in lines[1:]
    ]
    more += [{"name": key, "value": float(value)} for key, value in (figures or {}).items()]
    return Result(name, first.ratio, first.yardstick, first.low, first.high, better, more)
