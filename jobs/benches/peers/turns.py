"""The peer's end of a paired measurement: stands by, and times one of its contestants each time it is told to.

It imports nothing but the standard library: it runs in the peer's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping

# A contestant: what to call, with the number of the call, and how many rows one call scores.
Contestants = Mapping[str, tuple[Callable[[int], object], int]]


def take_turns(contestants: Contestants) -> None:
    """Answer each line of standard input, {"name": ..., "least_s": ...}, with the CPU seconds per row."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not come between the answers
    out.write(json.dumps(sorted(contestants)) + "\n")
    out.flush()
    calls = dict.fromkeys(contestants, 0)
    for line in sys.stdin:
        asked = json.loads(line)
        run, rows = contestants[asked["name"]]
        start, done = time.process_time(), 0
        while done == 0 or time.process_time() - start < asked["least_s"]:
            run(calls[asked["name"]])
            calls[asked["name"]] += 1
            done += 1
        out.write(json.dumps((time.process_time() - start) / (done * rows)) + "\n")
        out.flush()
