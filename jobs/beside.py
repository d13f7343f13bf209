"""One thread beside the watch, that makes calls one after the other and never keeps the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Makes calls in a thread of its own. A pool of the standard library would be waited for at exit."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], T], Future[T]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def spawn(self, call: Callable[[], T]) -> Future[T]:
        """Make a call after those before it."""
        future: Future[T] = Future()
        self._calls.put((call, future))
        return future

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as failed:
                future.set_exception(failed)
