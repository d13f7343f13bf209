from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fault_stage import Attempt, Stage, shared_stage


@pytest.fixture(scope="session")
def stage() -> Stage:
    return shared_stage()


@pytest.fixture
def attempt(stage: Stage) -> Iterator[Callable[..., Attempt]]:
    """Open runs over the stage's input; what is left of them ends with the test, and every broker runs again."""
    opened: list[Attempt] = []

    def one(name: str, **options: object) -> Attempt:
        opened.append(stage.attempt(name, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield one
    for made in opened:
        made.close()
    stage.cluster.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """kafka-python leaves sockets to brokers that were killed to the garbage collector, which tells of them."""
    for item in items:
        if "/faults/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
