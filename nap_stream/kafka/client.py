"""How to reach Kafka: options, secrets, clients, topics, and kafka-python's errors as ours."""

import logging
import socket
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport
from kafka.structs import TopicPartition as KafkaPartition

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import (
    BrokerError,
    BrokerUnavailableError,
    NapStreamError,
    TopicNotFoundError,
)
from nap_stream.files import read_secret
from nap_stream.kafka.handshake import Certificate, greet
from nap_stream.kafka.tokens import tokens
from nap_stream.records import TopicPartition
from nap_stream.settings.schema import KafkaSettings
from nap_stream.settings.topics import TopicSelection

REFUSALS = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.AuthorizationError,
)
_UNREACHABLE = (
    errors.KafkaTimeoutError,
    errors.KafkaConnectionError,
    errors.NodeNotReadyError,
    errors.RequestTimedOutError,
    errors.MetadataEmptyBrokerList,
)


def to_native(partition: TopicPartition) -> KafkaPartition:
    """Our partition as kafka-python names it."""
    return KafkaPartition(partition.topic, partition.partition)


def from_native(native: KafkaPartition) -> TopicPartition:
    """Kafka-python's partition as we name it."""
    return TopicPartition(native.topic, native.partition)


@contextmanager
def translated_errors(settings: KafkaSettings, what: str) -> Iterator[None]:
    """Turn kafka-python's errors into ours, saying what was being done.

    Raises:
        BrokerUnavailableError: Nobody answers, or not in time.
        BrokerError: The broker refused.
    """
    try:
        yield
    except NapStreamError:
        raise
    except errors.KafkaError as error:
        raise as_broker_error(error, settings, what) from error


def as_broker_error(error: errors.KafkaError, settings: KafkaSettings, what: str) -> NapStreamError:
    """The typed error for one of kafka-python's; the typed one behind it where there is one."""
    if isinstance(error.__cause__, NapStreamError):
        return error.__cause__
    where = f"{', '.join(settings.bootstrap_servers)}, {what}"
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, errors.AuthorizationError):
        return BrokerError(f"the broker refused: {detail}", where, _grant(error, settings))
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        return BrokerError(
            f"the broker has not switched on {settings.sasl_mechanism}: {detail}",
            where,
            "Set kafka.sasl_mechanism to one that the listener has",
        )
    if isinstance(error, REFUSALS):
        return BrokerError(
            f"the broker refused the credentials: {detail}",
            where,
            _who(settings),
        )
    if isinstance(error, _UNREACHABLE) or error.retriable:
        # A broker that refuses credentials hangs up, and kafka-python may miss why.
        credentials = ", the credentials" if settings.security_protocol != "PLAINTEXT" else ""
        return BrokerUnavailableError(
            f"no broker answered: {detail}",
            where,
            f"Check kafka.bootstrap_servers, the network{credentials}, and that the broker runs",
        )
    return BrokerError(detail, where)


def _who(settings: KafkaSettings) -> str:
    if settings.sasl_mechanism == "OAUTHBEARER":
        return "Check that the broker trusts the token's issuer, its audience and scope, and clocks"
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        return "Check kafka.aws_region, the clock, and that IAM allows kafka-cluster:Connect"
    return "Check the credentials (kafka.sasl_… settings), and that the user may log in"


def _grant(error: errors.AuthorizationError, settings: KafkaSettings) -> str:
    """Which permission is missing, in the words of Kafka's ACLs."""
    user = f"user {settings.sasl_username}" if settings.sasl_username else "the client"
    if isinstance(error, errors.GroupAuthorizationFailedError):
        return f"Allow {user} to READ group {settings.group_id}"
    if isinstance(error, errors.TopicAuthorizationFailedError):
        return (
            f"Allow {user} to READ and DESCRIBE {settings.selection()}, and to WRITE and DESCRIBE "
            "the alert topic and the dead-letter topic"
        )
    if isinstance(error, errors.ClusterAuthorizationFailedError):
        return f"Allow {user} what it asked of the cluster: CREATE for topics that are missing"
    return f"Check what {user} may do"


ATTEMPT_S = 5.0
"""How long one attempt to reach a broker may take; the deadline is the settings' own."""
BACKOFF_MAX_S = 2.0
WARN_BEFORE = timedelta(days=30)
_WIRE_LOGGERS = ("kafka.net.connection", "kafka.net.transport", "kafka.protocol.parser")
"""Where kafka-python logs at DEBUG what it sends: with SASL PLAIN, the password as it is."""


_RECEIVED_BYTES = 2**18
"""Read from a socket at once. kafka-python's 4 KiB cost a tenth of the time of a stream of photos:
each read of one thread gives way to all others."""


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # no types
    """Reads in large pieces, and gives up as soon as it hears that credentials are refused.

    kafka-python itself tries again until its time is up, and then says that nobody answered. It
    does not always hear: an answer that arrives together with the end of the connection is lost.
    """

    _refusal: errors.KafkaError | None = None

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        if self.bootstrapped:
            return super().get_connection(*arguments, **options)
        if self._refusal is not None:
            raise self._refusal
        connection = super().get_connection(*arguments, **options)
        connection.init_future.add_errback(self._note)
        return connection

    def _note(self, error: Exception) -> None:
        if isinstance(error, REFUSALS):
            self._refusal = error

    async def _build_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = await super()._build_transport(*arguments, **options)
        # TLS gives out a record at a time, and must be read until it has none.
        if type(transport) is KafkaTCPTransport:
            transport._sock_recv = partial(_received, transport._sock)  # noqa: SLF001  no option
        return transport


def _received(connection: socket.socket) -> tuple[bytes, Exception | None]:
    """What has arrived, and what is wrong with the connection."""
    try:
        data = connection.recv(_RECEIVED_BYTES)
    except (BlockingIOError, InterruptedError):
        return b"", None
    except OSError as error:
        return b"", errors.KafkaConnectionError(error)
    return data, None if data else errors.KafkaConnectionError("socket disconnected")


class _Secret(str):
    """A password that does not show where kafka-python logs its options."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """What every kafka-python client needs to connect. Holds the password: never log it.

    With SASL, kafka-python no longer logs at DEBUG what goes over the wire: it would show it.

    Raises:
        ConfigError: A secret cannot be read.
        BrokerError: There is no token to log in with.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": "nap-stream",
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": 5_000,
        "bootstrap_timeout_ms": int(settings.connect_timeout_s * 1000),
    }
    if settings.security_protocol.startswith("SASL"):
        for name in _WIRE_LOGGERS:
            logging.getLogger(name).addFilter(_above_debug)
        options |= _login(settings)
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(settings, name)
        if path is not None:
            options[name] = str(path)
    return options


def _above_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def producer_options(settings: KafkaSettings, max_message_bytes: int) -> dict[str, Any]:
    """For producers whose messages must not be lost, doubled or reordered."""
    return client_options(settings) | {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "max_request_size": max_message_bytes,
    }


def open_client(kind: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Build a kafka-python client; one that cannot be built leaves no thread behind.

    Raises:
        KafkaError: kafka-python's own; no broker answers in ``bootstrap_timeout_ms``.
    """
    networks: list[Any] = []

    def network(**arguments: Any) -> Any:
        selector = NetworkSelector(**arguments)
        manager = _Manager(selector, **arguments)
        networks.append(KafkaNetClient(net=selector, manager=manager, **arguments))
        return networks[-1]

    try:
        return kind(**options, kafka_client=network)
    except BaseException:
        for one in networks:
            one.close()
        raise


def send_once(settings: KafkaSettings, topic: str, value: bytes, timeout_s: float) -> None:
    """Send one message, with a producer of its own; return when all in-sync replicas have it.

    Raises:
        BrokerUnavailableError: It was not delivered in time.
        BrokerError: The broker refused it.
    """
    time_ms = int(timeout_s * 1000)
    options = producer_options(settings, len(value) + 2**16) | {
        "delivery_timeout_ms": time_ms,
        "request_timeout_ms": time_ms // 2,
        "max_block_ms": time_ms,
    }
    with translated_errors(settings, f"publishing to {topic}"):
        producer = open_client(KafkaProducer, options)
        try:
            producer.send(topic, value=value).get(timeout=timeout_s)
        finally:
            close_producer(producer, 0)


def close_producer(producer: Any, timeout_s: float) -> None:
    """Close a producer, and give up what it could not deliver in time. Safe to call twice."""
    try:
        producer.close(timeout=timeout_s)
    except errors.KafkaTimeoutError:
        # It raises before it has stopped its thread, and has no other way to stop it.
        producer._sender.force_close()  # noqa: SLF001
        structlog.get_logger().warning("producer_closed_undelivered", waited_s=timeout_s)


def connect(settings: KafkaSettings, clock: Clock | None = None) -> tuple[Certificate, ...]:
    """Wait until a broker answers, for ``connect_timeout_s`` seconds at the most.

    A certificate that ends within `WARN_BEFORE` is logged.

    Returns:
        The certificates that took part: a broker's, and the client's. None without TLS.

    Raises:
        BrokerUnavailableError: None did in time.
        BrokerError: A broker refused the credentials, or TLS fails.
        ConfigError: A file of certificates cannot be used.
    """
    clock = clock or SystemClock()
    deadline = Deadline(clock, settings.connect_timeout_s)
    servers = ", ".join(settings.bootstrap_servers)
    pause_s = 0.2
    while True:
        try:
            attempt_s = max(0.1, min(ATTEMPT_S, deadline.remaining_s()))
            certificates = greet(settings, attempt_s)
            with _admin(settings, attempt_s) as admin:
                admin.describe_cluster()
        except BrokerUnavailableError:
            if deadline.expired():
                raise
            structlog.get_logger().warning(
                "waiting_for_broker", servers=servers, seconds_left=round(deadline.remaining_s(), 1)
            )
            clock.sleep(min(pause_s, deadline.remaining_s()))
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        else:
            for warning in endings(certificates, datetime.now(UTC)):
                structlog.get_logger().warning("certificate_ends", certificate=warning)
            return certificates


def endings(certificates: Iterable[Certificate], now: datetime) -> tuple[str, ...]:
    """Those that end within `WARN_BEFORE`, and in how many days."""
    return tuple(
        f"{certificate}: in {(certificate.ends - now).days} days"
        for certificate in certificates
        if certificate.ends - now < WARN_BEFORE
    )


def topics_missing(settings: KafkaSettings, names: Sequence[str]) -> tuple[str, ...]:
    """Which of these topics do not exist.

    Raises:
        BrokerError: The broker cannot be asked.
    """
    counts = partition_counts(settings, names)
    return tuple(name for name in names if counts[name] == 0)


def topics_read(settings: KafkaSettings, reads: TopicSelection) -> tuple[str, ...]:
    """The names of the topics that are read and exist, in order; at least one.

    Raises:
        TopicNotFoundError: One that is named, or any that fits the pattern, does not exist.
        BrokerError: The broker cannot be asked.
    """
    if reads.pattern is None:
        require_topics(settings, reads.names)
        return reads.names
    with _admin(settings) as admin:
        names = admin.list_topics()
    found = reads.among(names)
    if not found:
        but = ", ".join(TopicSelection((), reads.pattern).among(names))
        raise TopicNotFoundError(
            f"no topic fits the pattern {reads.pattern}"
            + (f" but {but}, which this monitor writes" if but else ""),
            ", ".join(settings.bootstrap_servers),
            "Check kafka.topic_pattern, a regular expression (.* and not *) for the whole name, "
            "and that the user may DESCRIBE the topics; or create one",
        )
    return found


def require_topics(settings: KafkaSettings, names: Sequence[str]) -> None:
    """Refuse to go on without these topics.

    Raises:
        TopicNotFoundError: Naming those that do not exist.
        BrokerError: The broker cannot be asked.
    """
    missing = topics_missing(settings, names)
    if missing:
        raise TopicNotFoundError(
            f"no such topic: {', '.join(missing)}",
            ", ".join(settings.bootstrap_servers),
            "Create it, or run `nap-stream doctor --config FILE --create-topics`",
        )


def create_topics(settings: KafkaSettings, names: Sequence[str], partitions: int = -1) -> None:
    """Create topics; those that exist are left alone. Returns when they can be used.

    ``partitions`` are of each, -1 for the broker's default. Replicas are always the default's.

    Raises:
        BrokerError: The broker refused.
    """
    wanted = {name: {"num_partitions": partitions} for name in topics_missing(settings, names)}
    with _admin(settings) as admin:
        for name, options in wanted.items():
            try:
                admin.create_topics({name: options}, wait_for_metadata=True)
            except errors.TopicAlreadyExistsError:
                continue


@contextmanager
def _admin(settings: KafkaSettings, timeout_s: float | None = None) -> Iterator[Any]:
    options = client_options(settings)
    if timeout_s is not None:
        options["bootstrap_timeout_ms"] = max(1, int(timeout_s * 1000))
    with (
        translated_errors(settings, "asking for metadata"),
        closing(open_client(KafkaAdminClient, options)) as admin,
    ):
        yield admin


def partition_counts(settings: KafkaSettings, names: Sequence[str]) -> Mapping[str, int]:
    """How many partitions each of these topics has; 0 where there is no such topic.

    Raises:
        BrokerError: The broker cannot be asked.
    """
    with _admin(settings) as admin:
        found = {topic["name"]: topic for topic in described(admin, settings, names)}
    return {name: len(found[name]["partitions"]) if name in found else 0 for name in names}


class TopicCounter:
    """Counts the partitions of the topics that are read. For one thread.

    Its client is kept: another one for each question would log in each time.
    """

    def __init__(self, settings: KafkaSettings, reads: TopicSelection) -> None:
        self._settings, self._reads = settings, reads
        self._admin: Any = None

    def __call__(self) -> Mapping[str, int]:
        """How many partitions each topic has: 0 of one that is named and is not there.

        Raises:
            BrokerError: The broker cannot be asked.
        """
        try:
            with translated_errors(self._settings, f"counting the partitions of {self._reads}"):
                if self._admin is None:
                    self._admin = open_client(KafkaAdminClient, client_options(self._settings))
                names = None if self._reads.pattern is not None else self._reads.names
                found = list(described(self._admin, self._settings, names, self._reads))
        except BaseException:
            self.close()
            raise
        counts = {topic["name"]: len(topic["partitions"]) for topic in found}
        return dict.fromkeys(self._reads.names, 0) | counts

    def close(self) -> None:
        """Close the client, from whatever thread; the next question opens another one."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


def described(
    admin: Any,
    settings: KafkaSettings,
    names: Sequence[str] | None,
    reads: Container[str] | None = None,
) -> Iterator[Any]:
    """What the broker says of those of the topics that exist; None asks for all that are ``reads``.

    Of ``reads``, one that may not be seen counts as one that does not exist.

    Raises:
        BrokerError: It may not, or cannot, say it.
    """
    for topic in admin.describe_topics(None if names is None else list(names)):
        if reads is not None and topic["name"] not in reads:
            continue
        problem = errors.for_code(topic["error_code"])
        is_hidden = reads is not None and problem is errors.TopicAuthorizationFailedError
        if problem is errors.NoError:
            yield topic
        elif not (is_hidden or problem is errors.UnknownTopicOrPartitionError):
            raise as_broker_error(problem(), settings, f"describing topic {topic['name']}")


def _login(settings: KafkaSettings) -> dict[str, Any]:
    """How to log in. Asks for the first token here, where errors reach whoever waits."""
    if (provider := tokens(settings)) is not None:
        provider.current()
        # Amazon's signer makes tokens for this mechanism.
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": provider}
    if settings.sasl_password is not None:
        password = settings.sasl_password.get_secret_value()
    else:
        assert settings.sasl_password_file is not None, "settings have a password or its file"
        password = read_secret(settings.sasl_password_file, "kafka.sasl_password_file")
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": _Secret(password),
    }
