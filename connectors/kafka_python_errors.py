"""What goes wrong in kafka-python, in the words of `pipeline.errors`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from kafka.errors import (
    BrokerResponseError,
    FencedInstanceIdError,
    IllegalGenerationError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
    SaslAuthenticationFailedError,
    UnknownMemberIdError,
)

from connectors.kafka_client import kafka_error
from pipeline.errors import BrokerUnavailable, PipelineError


def translated(error: KafkaError, doing: str) -> PipelineError:
    """Return the error of ours for one of kafka-python's."""
    # The error that put a producer out of order is an argument of those that follow, or only named in their text.
    told = [error, *error.args, error.__cause__]
    cause = next((e for e in told if isinstance(e, BrokerResponseError)), None)
    if cause is None:
        cause = next((kind() for kind in _NAMED if kind.__name__ in str(error)), None)
    if cause is not None and cause.errno is not None:
        return kafka_error(cause.errno, str(cause), bool(cause.retriable), doing)
    return kafka_error(-1, str(error), bool(error.retriable), doing)


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Raise the error of ours for one of kafka-python's, met while `doing` something."""
    try:
        yield
    except KafkaError as failed:
        raise translated(failed, doing) from failed


# Errors of which some others only quote the name.
_NAMED: Final = (ProducerFencedError, FencedInstanceIdError, IllegalGenerationError, UnknownMemberIdError)


class _Reasons(logging.Handler):
    """Hears why connections failed: the client tells its log, and the caller only that time is up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the reason of a failed attempt."""
        if "onnection" in (text := record.getMessage()) and "failed: " in text:
            self.heard.append(text.split("failed: ", 1)[1].split(" (backoff", 1)[0])


@contextlib.contextmanager
def connecting(doing: str) -> Iterator[None]:
    """As `told`, with the reason for which connections failed."""
    reasons, network = _Reasons(), logging.getLogger("kafka.net")
    network.addHandler(reasons)
    try:
        yield
    except KafkaTimeoutError as failed:
        # The first attempt had the most time: the last one may have been cut off.
        said = reasons.heard[0] if reasons.heard else "no answer"
        if any("SaslAuthenticationFailed" in reason for reason in reasons.heard):
            raise translated(SaslAuthenticationFailedError(said), doing) from failed
        # After a wrong password brokers hang up so fast that their answer is not always read.
        hung_up = any("disconnected" in reason for reason in reasons.heard)
        hint = "; a wrong user name or password looks like that, too" if hung_up else ""
        raise BrokerUnavailable(f"{doing}: {failed}: {said}{hint}") from failed
    except KafkaError as failed:
        raise translated(failed, doing) from failed
    finally:
        network.removeHandler(reasons)
