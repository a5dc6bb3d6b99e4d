"""Objects in buckets that are allowed, from the store that the environment names."""

import re
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from nap_stream.messages.pieces import Away, Reference, Unreadable
from nap_stream.records import Status
from nap_stream.settings.messages import FetchSettings

if TYPE_CHECKING:
    from obstore.store import S3Store

_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_OF_THE_OBJECT = frozenset({"AccessDenied", "NoSuchKey", "NoSuchVersion", "InvalidObjectState"})
"""Refusals of one object, however the store is."""
_PIECE_BYTES = 2**18
_VERSION = "?versionId="


def shown_reference(reference: Reference) -> str:
    """A reference as a URI."""
    version = f"{_VERSION}{reference.version_id}" if reference.version_id else ""
    return f"s3://{reference.bucket}/{reference.key}{version}"


def parsed_reference(text: str) -> Reference:
    """The bucket and key of a URI, s3://bucket/key or s3://bucket/key?versionId=….

    Raises:
        Unreadable: It names no object.
    """
    bucket, _, key = text.removeprefix("s3://").partition("/")
    key, _, version = key.partition(_VERSION)
    if not bucket or not key:
        raise Unreadable("fetch: not an object's address, s3://bucket/key", Status.FETCH_FAILED)
    return Reference(bucket, key, version or None)


class S3Objects:
    """Fetches objects; called by several threads at once.

    Credentials, region and endpoint come from the environment, as for a log in an object store.
    """

    def __init__(self, settings: FetchSettings, max_bytes: int) -> None:
        self._settings, self._max_bytes = settings, max_bytes
        self._lock = threading.Lock()
        self._stores: dict[str, S3Store] = {}

    def get(self, reference: Reference) -> bytes:
        """An object's bytes, in one attempt.

        Raises:
            Unreadable: It is not there, not allowed, too large, or not given.
            Away: The store does not answer, or refuses all.
        """
        # Importing it takes a while that runs without references need not wait.
        import obstore  # noqa: PLC0415
        from obstore.exceptions import BaseError, NotFoundError  # noqa: PLC0415

        from nap_stream.clouds import is_panic  # noqa: PLC0415

        if reference.bucket not in self._settings.allow_buckets:
            raise Unreadable(
                f"fetch: bucket {reference.bucket[:80]!r} is not in allow_buckets of messages.read",
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
                self._store(reference.bucket),
                reference.key,
                options={"version": reference.version_id} if reference.version_id else None,
            )
            self._require_size(found.meta["size"])
            data = b"".join(bytes(part) for part in found.stream(min_chunk_size=_PIECE_BYTES))
        except BaseException as error:
            if is_panic(error):
                place, problem = (
                    f"s3://{reference.bucket}",
                    "AWS_ENDPOINT_URL or a key is malformed",
                )
                raise Away(place, problem) from None
            if not isinstance(error, BaseError | OSError | ValueError):
                raise
            # Not chained: what the store answered may hold the access key.
            is_missing = isinstance(error, NotFoundError | FileNotFoundError)
            raise _meaning(str(error), reference.bucket, is_missing=is_missing) from None
        self._require_size(len(data))
        return data

    def _require_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Unreadable(
                f"fetch: {size} bytes, where {self._max_bytes} are the most that is fetched",
                Status.TOO_LARGE,
            )

    def _store(self, bucket: str) -> "S3Store":
        from obstore.store import S3Store  # noqa: PLC0415  as above

        with self._lock:
            if bucket not in self._stores:
                timeout = timedelta(seconds=self._settings.timeout_s)
                self._stores[bucket] = S3Store(
                    bucket,
                    client_options={
                        "connect_timeout": timeout / 2,
                        "timeout": timeout,
                        # An endpoint without TLS is used only where AWS_ENDPOINT_URL names one.
                        "allow_http": True,
                    },
                    # Attempts are counted where others are, too.
                    retry_config={"max_retries": 0, "retry_timeout": timeout},
                )
            return self._stores[bucket]


def _meaning(text: str, bucket: str, *, is_missing: bool) -> Unreadable | Away:
    """What a store's error means; what it answered is not repeated but for code and status."""
    from nap_stream.clouds import has_no_credentials  # noqa: PLC0415  as above

    code, status = _CODE.search(text), _STATUS.search(text)
    said = " ".join(match[1] for match in (status, code) if match)
    name = code[1] if code else ""
    if (is_missing and name != "NoSuchBucket") or name in ("NoSuchKey", "NoSuchVersion"):
        return Unreadable(f"fetch: no such object ({said or 'not found'})", Status.MISSING)
    is_of_object = name in _OF_THE_OBJECT or (status is not None and status[1] == "400")
    if is_of_object:
        return Unreadable(f"fetch: the store refuses the object ({said})", Status.FETCH_FAILED)
    if name == "NoSuchBucket":
        return Away(f"s3://{bucket}", "there is no such bucket")
    if has_no_credentials(text):
        return Away(f"s3://{bucket}", "no credentials were found")
    return Away(f"s3://{bucket}", f"the store answers {said}" if said else "it cannot be reached")
