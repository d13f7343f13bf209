from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from connectors.kafka_settings import KafkaSettings
from connectors.kafka_via_confluent import ConfluentClient
from pipeline.errors import BrokerUnavailable


@pytest.fixture
def consumer():
    """A consumer of a broker that is not there; what it asks is answered from `answers`."""
    made = ConfluentClient(KafkaSettings(bootstrap="127.0.0.1:1")).consumer("group")
    made._consumer.close()

    def answered(partition, timeout):
        answer = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer

    made._consumer = SimpleNamespace(get_watermark_offsets=answered)
    return made


def test_a_partition_without_a_leader_is_asked_again_until_it_has_one(consumer):
    consumer.answers = [KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, (3, 8)]
    assert consumer.end_offsets([("in", 2)], 30.0) == {("in", 2): 8}


@pytest.mark.parametrize("code", [KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._TIMED_OUT])
def test_what_does_not_pass_in_time_is_an_error(consumer, code):
    consumer.answers = [code]
    with pytest.raises(BrokerUnavailable, match="asking for the offsets of topic 'in', partition 2"):
        consumer.first_offsets([("in", 2)], 0.1)
