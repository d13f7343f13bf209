"""The peer's end of a paired measurement: stands by, and times one of its contestants each time it is told to.

It imports nothing but the standard library: it runs in the peer's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count, pairwise

# A contestant: what to call, with the number of the call, and how many rows one call scores.
Contestants = Mapping[str, tuple[Callable[[int], object], int]]


def take_turns(contestants: Contestants) -> None:
    """Answer each line of standard input, {"name": ..., "least_s": ...}, with the CPU seconds per row of each call."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not come between the answers
    out.write(json.dumps(sorted(contestants)) + "\n")
    out.flush()
    numbers = {name: count() for name in contestants}  # of the calls
    for line in sys.stdin:
        asked = json.loads(line)
        run, rows = contestants[asked["name"]]
        out.write(json.dumps([s / rows for s in _each(run, numbers[asked["name"]], asked["least_s"])]) + "\n")
        out.flush()


def _each(run: Callable[[int], object], numbers: Iterator[int], least_s: float) -> list[float]:
    """Return the CPU seconds of each call, of as many as take `least_s` together."""
    times = [time.process_time()]
    while len(times) == 1 or times[-1] - times[0] < least_s:
        run(next(numbers))
        times.append(time.process_time())
    return [after - before for before, after in pairwise(times)]
