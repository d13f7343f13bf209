"""Calls made beside the watch, in threads that never keep the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Makes calls in a thread of its own, one after the other.

    A pool of the standard library would be waited for at exit.
    """

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
            _make(*self._calls.get())


def side_by_side(calls: Sequence[Callable[[], None]], within_s: float) -> None:
    """Make calls at the same time and wait for them; those that take longer than `within_s` are left behind.

    The errors of the others are raised, the first one's.
    """
    futures = []
    for call in calls:
        futures.append(Future[None]())
        threading.Thread(target=_make, args=(call, futures[-1]), daemon=True).start()
    ended = wait(futures, within_s).done
    for future in futures:
        if future in ended:
            future.result()


def _make(call: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(call())
    except BaseException as failed:
        future.set_exception(failed)
