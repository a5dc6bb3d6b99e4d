"""The client of an object store, with bounds on time and retries."""

from dataclasses import dataclass
from datetime import timedelta

from obstore.store import S3Store


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How long a request to the object store may take, and how often it is tried.

    Reading or listing ends within twice ``retry_timeout_s + request_timeout_s``, `create` within
    four times as much.
    """

    connect_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    """From connecting to the end of the answer's body."""
    max_retries: int = 3
    """Of one request, after a dropped connection or a 5xx; reading also after a time-out."""
    retry_timeout_s: float = 30.0
    """No retry of a request, and no further attempt to create, begins so long after the first."""
    backoff_initial_s: float = 0.1
    backoff_max_s: float = 2.0
    max_whole_bytes: int = 8 * 2**20
    """`ObjectStore.open` reads objects up to this size at once, larger ones in ranges."""


def connect(bucket: str, prefix: str | None, limits: RequestLimits) -> S3Store:
    """The client of a bucket, with credentials, region and endpoint from the environment."""
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "connect_timeout": timedelta(seconds=limits.connect_timeout_s),
            "timeout": timedelta(seconds=limits.request_timeout_s),
            # An endpoint without TLS is used only where AWS_ENDPOINT_URL names one.
            "allow_http": True,
        },
        retry_config={
            "max_retries": limits.max_retries,
            "retry_timeout": timedelta(seconds=limits.retry_timeout_s),
            "backoff": {
                "init_backoff": timedelta(seconds=limits.backoff_initial_s),
                "max_backoff": timedelta(seconds=limits.backoff_max_s),
                "base": 2,
            },
        },
    )
