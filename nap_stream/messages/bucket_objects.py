"""Objects in buckets that are allowed, from the stores that the environment names."""

import threading

import obstore
from obstore.exceptions import BaseError, NotFoundError

from nap_stream.clouds import (
    CLOUDS,
    Client,
    answer,
    as_log_error,
    connect,
    is_missing_bucket,
    is_of_object,
    is_panic,
)
from nap_stream.errors import LogRootError
from nap_stream.messages.pieces import Away, Reference, Unreadable
from nap_stream.objects import RequestLimits, request_options
from nap_stream.records import Status
from nap_stream.settings.messages import FetchSettings

PREFIXES = tuple(f"{scheme}://" for scheme in CLOUDS)
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion"})
_PIECE_BYTES = 2**18
_VERSION = "?versionId="


def shown_reference(reference: Reference) -> str:
    """A reference as a URI."""
    version = f"{_VERSION}{reference.version_id}" if reference.version_id else ""
    return f"{_bucket(reference)}/{reference.key}{version}"


def parsed_reference(text: str) -> Reference:
    """What a URI names: s3://bucket/key, gs://bucket/key or az://container/key.

    Of S3 also a version, behind ?versionId=. The scheme may be in capitals.

    Raises:
        Unreadable: It names no object.
    """
    scheme, _, rest = text.partition("://")
    scheme, (bucket, _, key) = scheme.lower(), rest.partition("/")
    version = None
    if scheme == "s3":
        key, _, version = key.partition(_VERSION)
    if not bucket or not key:
        raise Unreadable(
            f"fetch: not an object's address, {scheme}://{CLOUDS[scheme].bucket}/key",
            Status.FETCH_FAILED,
        )
    return Reference(bucket, key, version or None, scheme=scheme)


class BucketObjects:
    """Fetches objects; called by several threads at once.

    Credentials, region and endpoint come from the environment, as for a log in an object store.
    """

    def __init__(self, settings: FetchSettings, max_bytes: int) -> None:
        self._settings, self._max_bytes = settings, max_bytes
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}

    def get(self, reference: Reference) -> bytes:
        """An object's bytes, in one attempt.

        Raises:
            Unreadable: It is not there, not allowed, too large, or not given.
            Away: The store does not answer, or refuses all.
        """
        bucket = _bucket(reference)
        if bucket not in self._settings.allow_buckets:
            raise Unreadable(
                f"fetch: {bucket[:80]!r} is not in allow_buckets of messages.read",
                Status.NOT_ALLOWED,
            )
        if any(part in ("", ".", "..") for part in reference.key.split("/")):
            raise Unreadable(
                "fetch: the key has an empty part, . or .. between slashes, which is not asked for",
                Status.FETCH_FAILED,
            )
        if reference.size_bytes is not None:
            self._require_size(reference.size_bytes)
        try:
            found = obstore.get(
                self._client(reference),
                reference.key,
                options={"version": reference.version_id} if reference.version_id else None,
            )
            self._require_size(found.meta["size"])
            data = b"".join(bytes(part) for part in found.stream(min_chunk_size=_PIECE_BYTES))
        except BaseException as error:
            if not (isinstance(error, BaseError | OSError | ValueError) or is_panic(error)):
                raise
            # Not chained: what the store answered may hold the access key.
            raise _meaning(error, bucket) from None
        self._require_size(len(data))
        return data

    def _require_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Unreadable(
                f"fetch: {size} bytes, where {self._max_bytes} are the most that is fetched",
                Status.TOO_LARGE,
            )

    def _client(self, reference: Reference) -> Client:
        bucket = _bucket(reference)
        with self._lock:
            if bucket not in self._clients:
                timeout_s = self._settings.timeout_s
                # Attempts are counted where others are, too.
                limits = RequestLimits(timeout_s / 2, timeout_s, 0, timeout_s)
                cloud = CLOUDS[reference.scheme]
                try:
                    client = connect(cloud, reference.bucket, None, bucket, request_options(limits))
                except LogRootError as error:
                    raise Away(bucket, f"{error.problem}. {error.action}") from None
                self._clients[bucket] = client
            return self._clients[bucket]


def _bucket(reference: Reference) -> str:
    return f"{reference.scheme}://{reference.bucket}"


def _meaning(error: BaseException, bucket: str) -> Unreadable | Away:
    """What a store's error means; what it answered is not repeated but for code and status."""
    status, code = answer(str(error))
    said = " ".join(part for part in (status, code) if part)
    is_missing = isinstance(error, NotFoundError | FileNotFoundError)
    if (is_missing and not is_missing_bucket(error)) or code in _MISSING:
        return Unreadable(f"fetch: no such object ({said or 'not found'})", Status.MISSING)
    if isinstance(error, ValueError):
        return Unreadable("fetch: no store can be asked for such a key", Status.FETCH_FAILED)
    if is_of_object(error):
        return Unreadable(f"fetch: the store refuses the object ({said})", Status.FETCH_FAILED)
    told = as_log_error(error, bucket)
    return Away(bucket, f"{told.problem}. {told.action}" if is_panic(error) else told.problem)
