"""The peer's end of a paired measurement: stands by, and times one of its contestants each time it is told to.

It imports nothing but the standard library: it runs in the peer's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

# A contestant: what to call, with the number of the call, and how many rows one call scores.
Contestants = Mapping[str, tuple[Callable[[int], object], int]]


def take_turns(contestants: Contestants) -> None:
    """Answer each line of standard input, {"name": ..., "least_s": ...}, with the CPU seconds per row of each call."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not come between the answers
    out.write(json.dumps(sorted(contestants)) + "\n")
    out.flush()
    calls = dict.fromkeys(contestants, 0)
    for line in sys.stdin:
        asked = json.loads(line)
        run, rows = contestants[asked["name"]]
        out.write(json.dumps([s / rows for s in _timed(run, asked["least_s"], calls, asked["name"])]) + "\n")
        out.flush()


def _timed(run: Callable[[int], object], least_s: float, calls: dict[str, int], name: str) -> list[float]:
    """Return the CPU seconds of each call, of as many as take `least_s` together."""
    times = [time.process_time()]
    while len(times) == 1 or times[-1] - times[0] < least_s:
        run(calls[name])
        calls[name] += 1
        times.append(time.process_time())
    return [after - before for before, after in pairwise(times)]
