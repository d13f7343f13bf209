"""What loops do now and then."""

from __future__ import annotations

import time
from collections.abc import Callable


class Every:
    """Calls something when at least so many seconds have passed since it was last called, or since this was made.

    Parameters
    ----------
    seconds : least time between two calls.
    call : what to call.
    """

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds, self._call = seconds, call
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Call it if it is due."""
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            self._call()
