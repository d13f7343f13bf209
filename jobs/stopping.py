"""How programs that go on for ever are ended: SIGTERM or SIGINT asks, and what was begun is finished."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class until_signal:  # noqa: N801 - a context manager that reads as a clause
    """Yields a function that says whether SIGTERM or SIGINT has come. A second one ends the process at once."""

    def __enter__(self) -> Callable[[], bool]:
        self._stopped = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return lambda: self._stopped

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._stopped:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._stopped = True
