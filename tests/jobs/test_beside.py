from __future__ import annotations

import threading

import pytest

from jobs.beside import side_by_side


def test_a_call_that_does_not_return_is_left_behind_and_the_others_are_made():
    never, made = threading.Event(), threading.Event()
    side_by_side([lambda: never.wait() and None, made.set], 0.2)
    assert made.is_set()
    never.set()


def test_calls_are_waited_for_while_there_is_time():
    first, second = threading.Event(), threading.Event()
    side_by_side([lambda: first.wait() and second.set(), first.set], 60.0)
    assert second.is_set()


def test_the_error_of_a_call_is_raised_after_the_others_were_made():
    made = threading.Event()

    def fails() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        side_by_side([fails, made.set], 60.0)
    assert made.is_set()
