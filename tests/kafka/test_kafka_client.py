from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka_client import (
    Columns,
    Place,
    gather,
    has_crc32c,
    kafka_error,
    missing_topic,
    out_of_range,
    watchdog,
)
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, PipelineError, Rebalanced, StateError

Message = tuple[int, int, bytes]  # offset, ms, body


class Log:
    """Two partitions whose messages come a few at a time, then nothing."""

    def __init__(self, bodies: Sequence[bytes], fails_at: int = -1) -> None:
        self.left = [(("t", i % 2), (i // 2, 1000 + i, body)) for i, body in enumerate(bodies)]
        self.fails_at = fails_at
        self.asked: list[int] = []

    def take(self, most: int, wait_s: float) -> tuple[Mapping[Place, Sequence[Message]], PipelineError | None]:
        self.asked.append(most)
        if len(self.asked) - 1 == self.fails_at:
            return {}, StateError("torn")
        out: dict[Place, list[Message]] = {}
        for place, message in self.left[: min(most, 3)]:
            out.setdefault(place, []).append(message)
        self.left = self.left[min(most, 3) :]
        return out, None


def size(message: Message) -> int:
    return len(message[2])


def columns(messages: Sequence[Message]) -> Columns:
    offset, ms, body = zip(*messages, strict=True)
    return offset, ms, body, [None] * len(messages)


@settings(deadline=None, max_examples=60)
@given(bodies=st.lists(st.binary(min_size=1, max_size=30), max_size=40), most=st.integers(1, 50))
def test_polls_give_every_message_once_in_order_and_never_more_than_asked(bodies: list[bytes], most: int) -> None:
    log = Log(bodies)
    seen: dict[int, list[bytes | None]] = {0: [], 1: []}
    for _ in range(len(bodies) + 1):
        polls, failed = gather(log.take, size, columns, most, 1 << 20, 0.0)
        assert failed is None
        assert sum(map(len, polls)) <= most
        for polled in polls:
            assert polled.offset.tolist() == list(range(len(seen[polled.partition]), polled.position))
            seen[polled.partition] += polled.value
    assert seen == {0: bodies[0::2], 1: bodies[1::2]}


def test_a_poll_gathers_until_its_time_is_up() -> None:
    log = Log([b"x"] * 7)
    polls, _ = gather(log.take, size, columns, 100, 1 << 20, 0.05)
    assert sum(map(len, polls)) == 7
    assert len(log.asked) > 3


def test_a_poll_stops_at_about_the_bytes_it_may_hold() -> None:
    log = Log([b"x" * 1000] * 60)
    polls, _ = gather(log.take, size, columns, 100, 9000, 5.0)
    assert 9 <= sum(map(len, polls)) <= 12
    assert log.asked[0] == 1, "before the size of messages is known, few are asked for"


def test_messages_that_came_before_a_failure_are_handed_over_with_it() -> None:
    polls, failed = gather(Log([b"x"] * 20, fails_at=2).take, size, columns, 100, 1 << 20, 5.0)
    assert sum(map(len, polls)) == 6
    assert isinstance(failed, StateError)


def test_a_message_without_a_time_has_the_time_0_and_others_are_in_nanoseconds() -> None:
    def take(most: int, wait_s: float) -> tuple[Mapping[Place, Sequence[Message]], None]:
        return {("t", 0): [(0, -1, b""), (1, 0, b""), (2, 1_700_000_000_123, b"")]}, None

    (polled,), _ = gather(take, size, columns, 3, 1 << 20, 0.0)
    assert polled.log_ts_ns.tolist() == [0, 0, 1_700_000_000_123_000_000]


@pytest.mark.parametrize(
    ("code", "retriable", "kind"),
    [
        (47, False, Fenced),  # INVALID_PRODUCER_EPOCH
        (90, True, Fenced),  # PRODUCER_FENCED: never tried again, whatever the client says
        (3, True, ConfigError),  # UNKNOWN_TOPIC_OR_PART
        (29, False, ConfigError),  # TOPIC_AUTHORIZATION_FAILED
        (58, False, ConfigError),  # SASL_AUTHENTICATION_FAILED
        (10, False, StateError),  # MSG_SIZE_TOO_LARGE
        (22, False, Rebalanced),  # ILLEGAL_GENERATION
        (16, False, BrokerUnavailable),  # NOT_COORDINATOR
        (-1, True, BrokerUnavailable),
        (-1, False, StateError),
    ],
)
def test_what_kafka_says_becomes_one_of_our_errors(code: int, retriable: bool, kind: type[PipelineError]) -> None:
    error = kafka_error(code, "WHAT_KAFKA_SAYS", retriable, "doing this")
    assert type(error) is kind
    assert "WHAT_KAFKA_SAYS" in str(error)
    assert "doing this" in str(error)
    assert error.retriable == issubclass(kind, BrokerUnavailable)


def test_a_missing_topic_comes_with_the_command_that_creates_it() -> None:
    said = missing_topic("kafka.state_topic", "state")
    assert (said.key, said.value) == ("kafka.state_topic", "state")
    assert "`midwatch topics create`" in str(said)


def test_an_offset_out_of_range_names_topic_partition_offset_and_what_is_there() -> None:
    aged = str(out_of_range("in", 3, 10, 250, 900))
    assert all(part in aged for part in ("'in'", "partition 3", "offset 10", "earliest available is 250", "240"))
    assert "offset 901 is past the end, 900" in str(out_of_range("in", 3, 901, 250, 900))


def test_a_watchdog_ends_the_process_when_a_call_does_not_return() -> None:
    code = "import time; from connectors.kafka_client import watchdog\nwith watchdog(0.2, 'the commit'): time.sleep(30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 75
    assert "the commit has not returned after 0 s" in done.stderr


def test_a_watchdog_does_nothing_when_the_call_returns_in_time() -> None:
    with watchdog(0.05, "this"):
        pass
    time.sleep(0.15)


def test_the_native_checksum_is_installed() -> None:
    assert has_crc32c()
