from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
from kafka_fixture import PASSWORD, USER, Broker, FeedTopics, an_alert

from connectors.kafka_client import connect
from connectors.kafka_commit import KafkaCommitter
from connectors.kafka_settings import KafkaSettings, for_confluent, for_kafka_python
from pipeline.errors import ConfigError, Unavailable
from pipeline.protocols import Batch

SASL: dict[str, Any] = {
    "bootstrap": "a:1,b:2",
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "u",
    "sasl_password": "p",
}


@pytest.fixture
def pem(tmp_path: Path) -> str:
    path = tmp_path / "some.pem"
    path.write_text("-----BEGIN CERTIFICATE-----")
    return str(path)


def test_every_setting_reaches_both_clients_under_its_own_name(pem: str) -> None:
    settings = KafkaSettings(**SASL, ssl_ca=pem, ssl_certificate=pem, ssl_key=pem, ssl_key_password="k")
    assert for_kafka_python(settings) == {
        "bootstrap_servers": ["a:1", "b:2"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
        "ssl_check_hostname": True,
        "ssl_cafile": pem,
        "ssl_certfile": pem,
        "ssl_keyfile": pem,
        "ssl_password": "k",
    }
    assert for_confluent(settings) == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.endpoint.identification.algorithm": "https",
        "ssl.ca.location": pem,
        "ssl.certificate.location": pem,
        "ssl.key.location": pem,
        "ssl.key.password": "k",
    }


def test_without_security_only_the_servers_and_the_protocol_are_set() -> None:
    plain = KafkaSettings("h:9092")
    assert for_kafka_python(plain) == {"bootstrap_servers": ["h:9092"], "security_protocol": "PLAINTEXT"}
    assert for_confluent(plain) == {"bootstrap.servers": "h:9092", "security.protocol": "PLAINTEXT"}


def test_a_password_without_tls_is_refused_unless_it_is_allowed() -> None:
    open_line = {**SASL, "security_protocol": "SASL_PLAINTEXT"}
    with pytest.raises(ConfigError, match="without TLS"):
        KafkaSettings(**open_line)
    assert KafkaSettings(**open_line, allow_plaintext=True).sasl


def test_secrets_are_in_no_text_about_the_settings() -> None:
    settings = KafkaSettings(**{**SASL, "sasl_password": "hunter2"}, ssl_key_password="hunter3")
    assert "hunter" not in repr(settings)
    assert "hunter" not in str(settings)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"bootstrap": ""}, "kafka.bootstrap"),
        ({"bootstrap": "host"}, "kafka.bootstrap"),
        ({"bootstrap": "a:1,b:x"}, "kafka.bootstrap"),
        ({"security_protocol": "TLS"}, "kafka.security_protocol"),
        ({"sasl_mechanism": "OAUTHBEARER"}, "kafka.sasl_mechanism"),
        ({"sasl_mechanism": ""}, "kafka.sasl_mechanism"),
        ({"sasl_username": ""}, "kafka.sasl_username"),
        ({"sasl_password": ""}, "kafka.sasl_password"),
        ({"security_protocol": "SSL"}, "kafka.security_protocol"),
        ({"ssl_ca": "/no/such.pem"}, "kafka.ssl_ca"),
    ],
)
def test_settings_that_cannot_be_used_are_named(changed: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        KafkaSettings(**{**SASL, **changed})
    assert refused.value.key == key


def test_a_certificate_without_its_key_or_without_tls_is_refused(pem: str) -> None:
    with pytest.raises(ConfigError, match="ssl_key beside it"):
        KafkaSettings("h:1", "SSL", ssl_certificate=pem)
    with pytest.raises(ConfigError, match="ssl_certificate beside it"):
        KafkaSettings("h:1", "SSL", ssl_key=pem)
    with pytest.raises(ConfigError, match="uses no TLS"):
        KafkaSettings("h:1", ssl_ca=pem)


def test_an_unknown_client_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of kafka-python, confluent"):
        connect(KafkaSettings("h:1"), "pykafka")


def secure(broker: Broker, password: str = PASSWORD, ca: str | None = None) -> KafkaSettings:
    if not broker.secure_bootstrap:
        pytest.skip("no keytool to make a certificate with")
    return KafkaSettings(
        broker.secure_bootstrap, "SASL_SSL", "PLAIN", USER, password, ssl_ca=str(broker.ca) if ca is None else ca
    )


@pytest.mark.kafka
@pytest.mark.parametrize("library", ["kafka-python", "confluent"])
def test_a_commit_goes_through_an_encrypted_connection_with_a_password(
    library: str, broker: Broker, feed: FeedTopics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = connect(secure(broker), library)
    committer = KafkaCommitter(client, group=feed.group, slot=0, **feed.topics())
    committer.commit(Batch({(feed.input, 0): 5}, [an_alert()]))
    committer.close()
    assert [key for key, _ in feed.read(feed.alerts)] == [b"pump-7"]
    assert PASSWORD not in caplog.text


@pytest.mark.kafka
@pytest.mark.parametrize("library", ["kafka-python", "confluent"])
def test_a_wrong_password_is_what_the_error_names(library: str, broker: Broker) -> None:
    client = connect(secure(broker, password="wrong"), library)
    # kafka-python does not always get to read the broker's answer.
    kinds = (ConfigError,) if library == "confluent" else (ConfigError, Unavailable)
    with pytest.raises(kinds, match=r"(?i)authentication|wrong user name or password"):
        client.topics(timeout_s=2)


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python leaves sockets to the gc
@pytest.mark.parametrize("library", ["kafka-python", "confluent"])
def test_a_broker_whose_certificate_nobody_vouches_for_is_not_talked_to(library: str, broker: Broker) -> None:
    client = connect(secure(broker, ca=""), library)
    with pytest.raises(Unavailable, match=r"(?i)certificate verify failed"):
        client.topics(timeout_s=2)
    gc.collect()
