"""What librdkafka says, as errors of ours."""

from __future__ import annotations

import logging
from typing import Final

from confluent_kafka import KafkaError

from connectors.kafka_client import kafka_error
from pipeline.errors import PipelineError, StateError

log = logging.getLogger(__name__)

# Errors that only librdkafka has, as the broker's error they come down to.
_LOCAL: Final = {
    KafkaError._FENCED: KafkaError.PRODUCER_FENCED,
    KafkaError._AUTHENTICATION: KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._UNKNOWN_TOPIC: KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION: KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_TRANSIENT: Final = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._RESOLVE,
    KafkaError._WAIT_COORD,
    KafkaError._SSL,
    KafkaError._QUEUE_FULL,
}


def heard(error: KafkaError) -> None:
    """Take what librdkafka says on its own. Without this, it comes up as an exception within some other call."""
    log.warning("%s: %s", error.name(), error.str())


def translated(error: KafkaError, doing: str) -> PipelineError:
    """Return the error of ours for one of librdkafka's."""
    code = _LOCAL.get(error.code(), error.code())
    retriable = error.retriable() or error.code() in _TRANSIENT
    if error.code() == KafkaError._STATE:
        return StateError(f"{doing}: {error.str()}")
    return kafka_error(code, f"{error.name()}: {error.str()}", retriable, doing)
