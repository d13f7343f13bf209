"""How to reach a Kafka cluster, and the same settings in the words of each client."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError

SECURITY_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the brokers are, and who we are to them. Secrets are left out of `repr`.

    Parameters
    ----------
    bootstrap : host:port of one or more brokers, separated by commas.
    security_protocol : PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    sasl_mechanism : PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; "" unless the protocol is a SASL one.
    ssl_ca : PEM file of the authorities to trust; "" trusts those of the system.
    ssl_certificate, ssl_key, ssl_key_password : PEM files of the client's own certificate, where brokers want one.
    allow_plaintext : send the password over a connection without TLS all the same.

    Raises
    ------
    ConfigError : settings that do not go together; nothing has been connected to.
    """

    bootstrap: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca: str = ""
    ssl_certificate: str = ""
    ssl_key: str = ""
    ssl_key_password: str = field(default="", repr=False)
    allow_plaintext: bool = False
    client_id: str = "midwatch"

    def __post_init__(self) -> None:
        for server in self.bootstrap.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError("kafka.bootstrap", self.bootstrap, "host:port, more of them separated by commas")
        _one_of("kafka.security_protocol", self.security_protocol, SECURITY_PROTOCOLS)
        self._check_sasl()
        self._check_tls()

    @property
    def tls(self) -> bool:
        """True when the connection is encrypted."""
        return self.security_protocol.endswith("SSL")

    @property
    def sasl(self) -> bool:
        """True when a user name and a password are sent."""
        return self.security_protocol.startswith("SASL")

    def _check_sasl(self) -> None:
        if not self.sasl:
            if self.sasl_mechanism or self.sasl_username or self.sasl_password:
                fix = "set it to SASL_SSL, or take the sasl_* settings out: they would not be used"
                raise ConfigError("kafka.security_protocol", self.security_protocol, fix)
            return
        _one_of("kafka.sasl_mechanism", self.sasl_mechanism, SASL_MECHANISMS)
        if not self.sasl_username:
            raise ConfigError("kafka.sasl_username", "", f"{self.security_protocol} needs a user name")
        if not self.sasl_password:
            raise ConfigError("kafka.sasl_password", "", f"{self.security_protocol} needs a password")
        if not self.tls and not self.allow_plaintext:
            fix = "sends the password over a connection without TLS: use SASL_SSL, or set kafka.allow_plaintext = true"
            raise ConfigError("kafka.security_protocol", self.security_protocol, fix)

    def _check_tls(self) -> None:
        files = {"ssl_ca": self.ssl_ca, "ssl_certificate": self.ssl_certificate, "ssl_key": self.ssl_key}
        for name, path in files.items():
            if path and not self.tls:
                fix = f"is set, but {self.security_protocol} uses no TLS: use SSL or SASL_SSL, or take it out"
                raise ConfigError(f"kafka.{name}", path, fix)
            if path and not Path(path).is_file():
                raise ConfigError(f"kafka.{name}", path, "no such file")
        if bool(self.ssl_certificate) != bool(self.ssl_key):
            given, other = ("ssl_certificate", "ssl_key") if self.ssl_certificate else ("ssl_key", "ssl_certificate")
            raise ConfigError(f"kafka.{given}", files[given], f"needs kafka.{other} beside it")


def for_kafka_python(settings: KafkaSettings) -> dict[str, Any]:
    """Return the settings as keyword arguments of kafka-python's clients."""
    servers = [server.strip() for server in settings.bootstrap.split(",")]
    words: dict[str, Any] = {"bootstrap_servers": servers, "security_protocol": settings.security_protocol}
    if settings.sasl:
        words["sasl_mechanism"] = settings.sasl_mechanism
        words["sasl_plain_username"] = settings.sasl_username
        words["sasl_plain_password"] = settings.sasl_password
    if settings.tls:
        words["ssl_check_hostname"] = True
        words["ssl_cafile"] = settings.ssl_ca or None
        words["ssl_certfile"] = settings.ssl_certificate or None
        words["ssl_keyfile"] = settings.ssl_key or None
        words["ssl_password"] = settings.ssl_key_password or None
    return words


def for_confluent(settings: KafkaSettings) -> dict[str, Any]:
    """Return the settings as the configuration of confluent-kafka's clients."""
    words: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap,
        "security.protocol": settings.security_protocol,
    }
    if settings.sasl:
        words["sasl.mechanism"] = settings.sasl_mechanism
        words["sasl.username"] = settings.sasl_username
        words["sasl.password"] = settings.sasl_password
    if settings.tls:
        words["ssl.endpoint.identification.algorithm"] = "https"
        optional = {
            "ssl.ca.location": settings.ssl_ca,
            "ssl.certificate.location": settings.ssl_certificate,
            "ssl.key.location": settings.ssl_key,
            "ssl.key.password": settings.ssl_key_password,
        }
        words.update({key: value for key, value in optional.items() if value})
    return words


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(key, value, f"one of {', '.join(known)}")
