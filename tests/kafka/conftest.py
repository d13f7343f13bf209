from __future__ import annotations

import pytest
from kafka_fixture import Broker, FeedTopics, shared_broker


@pytest.fixture(scope="session")
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def feed(broker: Broker) -> FeedTopics:
    return FeedTopics(broker.bootstrap).create()
