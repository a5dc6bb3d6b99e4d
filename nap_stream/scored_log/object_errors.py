"""An object store's errors, said in the log's terms."""

import contextlib
import re
from collections.abc import Iterator

from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from nap_stream.errors import LogRootError, ScoredLogError

_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_WRONG_REGION = re.compile(
    "AuthorizationHeaderMalformed|PermanentRedirect|incorrectly configured region"
)
_NO_CREDENTIALS = re.compile(r"/latest/api/token|/latest/meta-data|169\.254\.|CredentialProvider")
_TIMED_OUT = re.compile(r"TimedOut|timed out|Timeout")
_UNREACHABLE = re.compile("kind: Connect|error sending request")

MISSING_BUCKET = "NoSuchBucket"


def error_code(error: Exception) -> str | None:
    """The store's own code for what went wrong, such as NoSuchKey; None where it gave none."""
    match = _CODE.search(str(error))
    return None if match is None else match[1]


def as_log_error(error: Exception, where: str) -> ScoredLogError:
    """What an object store's error means for the log, and what to do about it.

    What the store answered is not repeated but for its code and status: a refusal may hold the
    access key and what was signed with it.
    """
    text, code = str(error), error_code(error)
    if code == MISSING_BUCKET:
        return LogRootError("there is no such bucket", where, "Make it, or set log.root")
    if isinstance(error, NotSupportedError):
        return LogRootError(
            "the store does not create objects conditionally",
            where,
            "Use one that honours If-None-Match on PUT",
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or code in _DENIED:
        return LogRootError(
            f"no permission: {code or 'the request was denied'}",
            where,
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role that may list the bucket, "
            "and get, put and delete its objects",
        )
    if _WRONG_REGION.search(text):
        return LogRootError("the bucket is in another region", where, "Set AWS_REGION")
    return ScoredLogError(
        f"the object store failed: {_failure(text, code)}",
        where,
        "Check AWS_ENDPOINT_URL, the network and the store",
    )


def _failure(text: str, code: str | None) -> str:
    if _NO_CREDENTIALS.search(text):
        return "no credentials were found"
    status = _STATUS.search(text)
    if status is not None and code is not None:
        return f"it answered {status[1]} {code}"
    if status is not None:
        return f"it answered {status[1]}"
    if _TIMED_OUT.search(text):
        return "it did not answer in time"
    if _UNREACHABLE.search(text):
        return "it cannot be reached"
    return "the request could not be sent or its answer not be read"


@contextlib.contextmanager
def typed_store_errors(where: str) -> Iterator[None]:
    """Raise `as_log_error` of any error of the object store within."""
    try:
        yield
    except (BaseError, OSError) as error:
        # Not chained: the cause would show the whole answer in a traceback.
        raise as_log_error(error, where) from None
