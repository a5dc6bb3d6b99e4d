"""From kafka-python's errors to ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors

from nap_stream.errors import BrokerError, BrokerUnavailableError, NapStreamError
from nap_stream.settings import KafkaSettings

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
    if isinstance(error, REFUSALS):
        return BrokerError(
            f"the broker refused the credentials: {detail}",
            where,
            "Check the credentials (kafka.sasl_… settings), and that the user may log in",
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


def _grant(error: errors.AuthorizationError, settings: KafkaSettings) -> str:
    """Which permission is missing, in the words of Kafka's ACLs."""
    user = f"user {settings.sasl_username}" if settings.sasl_username else "the client"
    if isinstance(error, errors.GroupAuthorizationFailedError):
        return f"Allow {user} to READ group {settings.group_id}"
    if isinstance(error, errors.TopicAuthorizationFailedError):
        return (
            f"Allow {user} to READ and DESCRIBE topic {settings.topic}, and to WRITE and DESCRIBE "
            "the alert topic and the dead-letter topic"
        )
    if isinstance(error, errors.ClusterAuthorizationFailedError):
        return f"Allow {user} what it asked of the cluster: CREATE for topics that are missing"
    return f"Check what {user} may do"
