"""The object stores that are known: their addresses, their clients, and what their errors mean.

Credentials come from the environment, in each cloud's usual variables, or from the machine's role.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from nap_stream.errors import LogRootError, ScoredLogError
from nap_stream.text import printable

Client = S3Store | GCSStore | AzureStore


@dataclass(frozen=True, slots=True)
class Cloud:
    """A kind of object store, and how people speak of it."""

    scheme: str
    client: type[Client]
    bucket: str
    """What it calls a bucket."""
    names: re.Pattern[str]
    """Of buckets."""
    credentials: str
    """What to do where they are missing or refused."""
    check: str
    """The variables that lead to the store."""
    condition: str = "If-None-Match on PUT"
    """What a store must honour for a log."""
    suffix_ranges: bool = True
    """Whether the end of an object can be asked for without knowing its size."""


_MAY = "that may list the {}, and get, put and delete its objects"
CLOUDS = {
    cloud.scheme: cloud
    for cloud in (
        Cloud(
            "s3",
            S3Store,
            "bucket",
            re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role " + _MAY.format("bucket"),
            "AWS_ENDPOINT_URL",
        ),
        Cloud(
            "gs",
            GCSStore,
            "bucket",
            re.compile(r"(?=.{3,222}\Z)(?!.*[^.]{64})[a-z0-9][a-z0-9._-]*[a-z0-9]"),
            "Name in GOOGLE_APPLICATION_CREDENTIALS the file of a service account's key, or give "
            "the machine a service account, " + _MAY.format("bucket"),
            "GOOGLE_BASE_URL",
            condition="x-goog-if-generation-match on PUT",
        ),
        Cloud(
            "az",
            AzureStore,
            "container",
            re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
            "Set AZURE_STORAGE_ACCOUNT_NAME and, to its own, AZURE_STORAGE_ACCOUNT_KEY or "
            "AZURE_STORAGE_SAS_TOKEN, or give the machine an identity " + _MAY.format("container"),
            "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT",
            suffix_ranges=False,
        ),
    )
}
"""By the scheme of their addresses."""
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[^/]+)"
    r"(?:/(?P<prefix>(?!\.)[\w.=-]+(?:/(?!\.)[\w.=-]+)*))?/?",
    re.ASCII,
)


def forms(last: str = "prefix") -> str:
    """The addresses that can be given, for messages; ``last`` is what stands behind the bucket."""
    *some, one = (f"{cloud.scheme}://{cloud.bucket}/{last}" for cloud in CLOUDS.values())
    return f"{', '.join(some)} or {one}"


def parsed(address: str) -> tuple[Cloud, str, str | None] | None:
    """The cloud, the bucket and the prefix of an address; None where it is none."""
    match = _ADDRESS.fullmatch(address)
    cloud = None if match is None else CLOUDS.get(match["scheme"])
    if match is None or cloud is None or cloud.names.fullmatch(match["bucket"]) is None:
        return None
    return cloud, match["bucket"], match["prefix"]


def connect(
    cloud: Cloud, bucket: str, prefix: str | None, where: str, options: dict[str, Any]
) -> Client:
    """The client of a bucket, with all that the environment says of it.

    Raises:
        LogRootError: What the environment says cannot be used.
    """
    try:
        return cloud.client(bucket, prefix=prefix, **options)
    except Exception as error:  # noqa: BLE001  obstore documents none; any is of the environment
        raise _unusable(str(error), where, cloud) from None


_UNUSABLE = (
    ("MissingAccount", "no storage account is named"),
    ("InvalidAccessKey", "the storage account's key is not base64"),
    ("Unable to open", "the file of the credentials cannot be opened"),
    (
        "service account|pem file|CryptoProvider",
        "the credentials are not the key of a service account (external_account is not supported)",
    ),
)


def _unusable(text: str, where: str, cloud: Cloud) -> LogRootError:
    """The text may repeat what it was given, so it is not shown."""
    for pattern, problem in _UNUSABLE:
        if re.search(pattern, text, re.IGNORECASE):
            return LogRootError(problem, where, cloud.credentials)
    return LogRootError(
        "a variable of the environment cannot be used for the store",
        where,
        f"Look at {cloud.check} and the other {cloud.check.partition('_')[0]}_… variables: "
        "a wrong form, a space, a line break",
    )


_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_OF_REMOVAL = re.compile(
    r"request failed for key .*\(code: (\w{1,80})\)\s*(?:\Z|Debug source)", re.DOTALL
)
"""Of one object among many that a request removes: a status of Azure's, a code of S3's."""
_MESSAGE = re.compile(r"<Message>([^<\n]{1,200})")
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_DENIED_STATUS = {"401", "403"}
_CONFLICT = "409"
_TOO_MANY = "429"
_LATER = {"408", "425", _TOO_MANY}
"""Statuses of requests that another time may be answered well."""
_OF_THE_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect"}
_WRONG_REGION = "incorrectly configured region"
_OF_ALL = (
    (_DENIED - {"AccessDenied"})
    | _OF_THE_REGION
    | {
        *("InvalidToken", "RequestTimeout", "AccountProblem", "AllAccessDisabled"),
        *("AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"),
        *("AccountIsDisabled", "PublicAccessNotPermitted"),
    }
)
"""Codes of S3's and Google's, then of Azure's, whose status is that of a refused object."""
_NO_CREDENTIALS = re.compile(
    r"//169\.254\.|//[^/\s]+/(?:latest/(?:api/token|meta-data/iam)|computeMetadata/v1|"
    r"metadata/identity/oauth2)|source: (?:AzureCli|FederatedTokenFile)|"
    r"Failed to read (?:EKS )?token file"
)
"""Names of objects stand in an error's text too, without spaces, and behind a bucket."""
_TOKEN = "performing token request"  # noqa: S105  a piece of a message
_WRONG_CLOCK = re.compile(
    "<Code>RequestTimeTooSkewed</Code>|Request date header too old|in a reasonable timeframe"
)
"""As S3, Azure, and Google's service of tokens say it."""
_TOKEN_CODE = re.compile(r'\\?"error\\?":\s*\\?"(\w{1,80})')
_TIMED_OUT = re.compile(r"(?:kind|source): Time(?:dO|o)ut|timed out")
_UNREACHABLE = re.compile("kind: Connect|error sending request")
_UNTRUSTED, _NO_TLS = re.compile(r"InvalidCertificate\(\s*(\w+)"), re.compile("InvalidContentType")
"""In the words of rustls, which obstore speaks TLS by."""
_NO_SUCH_RANGE = re.compile(r"status code: 416|StartTooLarge|NotPartial|CONTENT_RANGE")
_PANIC = "PanicException"
_MISSING_BUCKET = re.compile(
    "<Code>(?:NoSuchBucket|ContainerNotFound)</Code>|specified container does not exist"
)


def is_missing_bucket(error: BaseException) -> bool:
    """Whether there is no such bucket, where something is missing."""
    return _MISSING_BUCKET.search(str(error)) is not None


def is_of_object(error: BaseException) -> bool:
    """Whether a store refuses the object that is asked for, and would give another one.

    What it says of whoever asks, or of the whole bucket, is of all of them; so is what it says of
    itself, and no answer.
    """
    text = str(error)
    status, code = answer(text)
    if _NO_CREDENTIALS.search(text) or _TOKEN in text or _WRONG_CLOCK.search(text):
        return False
    is_of_all = code in _OF_ALL or is_missing_bucket(error) or _WRONG_REGION in text
    return (status or "").startswith("4") and status not in {"401", *_LATER} and not is_of_all


def is_too_often(error: Exception) -> bool:
    """Whether requests come too fast, as writes of one object of Google's do."""
    return f"status code: {_TOO_MANY}" in str(error)


def is_beyond_the_end(error: Exception) -> bool:
    """Whether an object seems to have none of the bytes that were asked for."""
    return _NO_SUCH_RANGE.search(str(error)) is not None


def is_panic(error: BaseException) -> bool:
    """Whether the client broke down over a request that it could not even write.

    So it does where an endpoint is no address, or a token ends with a line break. Its class is no
    Exception, and cannot be imported.
    """
    return type(error).__name__ == _PANIC


def as_log_error(error: BaseException, where: str) -> ScoredLogError:
    """What an object store's error means for the log, and what to do about it.

    ``where`` is an address, whose scheme tells the cloud. What the store answered is not repeated
    but for its code, its status, and what it says of a fault of its own: a refusal may hold the
    access key and what was signed with it.
    """
    cloud = CLOUDS[where.partition(":")[0]]
    text = str(error)
    if is_panic(error):
        return _unusable("", where, cloud)
    status, code = answer(text)
    if _NO_CREDENTIALS.search(text):
        return ScoredLogError("no credentials were found", where, cloud.credentials)
    if _WRONG_CLOCK.search(text):
        return ScoredLogError(
            "this machine's clock is wrong: the request's date is refused",
            where,
            "Set the clock, and keep it right (NTP)",
        )
    if _TOKEN in text:
        return _without_token(text, status, where, cloud)
    refusal = _refusal(error, status, code, cloud)
    if refusal is not None:
        problem, action = refusal
        return LogRootError(problem, where, action)
    return ScoredLogError(
        f"the object store failed: {_failure(text, (status, code))}",
        where,
        f"Check {cloud.check}, the network and the store",
    )


def _refusal(
    error: BaseException, status: str | None, code: str | None, cloud: Cloud
) -> tuple[str, str] | None:
    """What is wrong with the root, and what to do; None where it may be as it is."""
    text = str(error)
    if _MISSING_BUCKET.search(text):
        return f"there is no such {cloud.bucket}", "Make it, or name another one"
    if isinstance(error, NotSupportedError):
        return (
            "the store does not create objects conditionally",
            f"Use one that honours {cloud.condition}",
        )
    is_denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    if is_denied or code in _DENIED or status in _DENIED_STATUS:
        return f"no permission: {code or 'the request was denied'}", cloud.credentials
    if status == _CONFLICT and _OF_REMOVAL.search(text):
        return (
            "it keeps what is to be removed",
            f"Look for a policy of immutability, or snapshots, in the {cloud.bucket}",
        )
    if code in _OF_THE_REGION or _WRONG_REGION in text:
        return "the bucket is in another region", "Set AWS_REGION"
    return None


def _without_token(text: str, status: str | None, where: str, cloud: Cloud) -> ScoredLogError:
    """An identity asks another service for tokens: it may refuse, or be away."""
    said = (status, _first(_TOKEN_CODE, text))
    problem = f"the credentials got no token: {_failure(text, said)}"
    if status is not None and status.startswith("4") and status not in _LATER:
        return LogRootError(problem, where, cloud.credentials)
    return ScoredLogError(problem, where, "Check the network, and the service that gives tokens")


def _failure(text: str, answered: Sequence[str | None]) -> str:
    """What went wrong; ``answered`` is the status and the code, as far as there was any."""
    status = answered[0]
    if any(answered):
        said = f"it answered {' '.join(part for part in answered if part is not None)}"
        # Of a fault of its own a store speaks of itself; a refusal may repeat what was signed.
        message = _first(_MESSAGE, text) if (status or "").startswith("5") else None
        return said if message is None else f"{said}: {printable(message)}"
    if _TIMED_OUT.search(text):
        return "it did not answer in time"
    if (why := _first(_UNTRUSTED, text)) is not None:
        return f"its certificate is refused ({why}); SSL_CERT_FILE names the CAs to trust"
    if _NO_TLS.search(text):
        return "it speaks no TLS, and its address says https"
    if _UNREACHABLE.search(text):
        return "it cannot be reached"
    return "the request could not be sent or its answer not be read"


def answer(text: str) -> tuple[str | None, str | None]:
    """The status and the code of what a store answered, by its error; None where there is none."""
    of_removal = _first(_OF_REMOVAL, text)
    if of_removal is None:
        return _first(_STATUS, text), _first(_CODE, text)
    return (of_removal, None) if of_removal.isdecimal() else (None, of_removal)


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return None if match is None else match[1]
