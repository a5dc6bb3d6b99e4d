"""Objects created exclusively in S3, or in a store that speaks its protocol."""

import io
from collections.abc import Sequence
from typing import BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from nap_stream.clock import Clock, SystemClock
from nap_stream.errors import ConfigError, LogRootError, ScoredLogError
from nap_stream.scored_log.object_client import RequestLimits, connect
from nap_stream.scored_log.object_errors import (
    MISSING_BUCKET,
    as_log_error,
    error_code,
    typed_store_errors,
)
from nap_stream.scored_log.object_file import ObjectFile
from nap_stream.settings import S3_ROOT


class ObjectStore:
    """Objects below a prefix of a bucket; implements `nap_stream.scored_log.store.SegmentStore`.

    Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL) or from the machine's role. The store
    must honour ``If-None-Match: *`` on PUT; `nap_stream.scored_log.stores.check_writable` tells.

    Args:
        root: The log's root, as ``s3://bucket/prefix``.
        limits: Of time and retries.
        clock: Measures them.

    Raises:
        ConfigError: The root has another form.
    """

    def __init__(
        self, root: str, *, limits: RequestLimits | None = None, clock: Clock | None = None
    ) -> None:
        match = S3_ROOT.fullmatch(root)
        if match is None:
            raise ConfigError(
                "not the root of a scored log in an object store", root, "Give s3://bucket/prefix"
            )
        self._root = root.rstrip("/")
        self._limits = RequestLimits() if limits is None else limits
        self._clock = SystemClock() if clock is None else clock
        self._objects = connect(match["bucket"], match["prefix"], self._limits)

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        return self._root

    def prepare(self, folder: str) -> None:
        """Nothing: an object store has no folders."""

    def names(self, folder: str, first: str = "") -> list[str]:
        """Names of the objects and prefixes in a folder from ``first`` on.

        Without ``first`` a request brings 1,000 names. With it the listing begins there, and
        goes through what lies below the prefixes too.

        Raises:
            LogRootError: There is no such bucket, or no permission.
            ScoredLogError: It cannot be listed.
        """
        prefix = f"{folder}/" if folder else ""
        with typed_store_errors(self._where(folder)):
            paths = self._list_from(prefix, first) if first else self._list(folder)
        names = dict.fromkeys(path.removeprefix(prefix).split("/", 1)[0] for path in paths)
        return [name for name in names if name >= first]

    def read(self, path: str) -> bytes | None:
        """A whole object; None where it is missing.

        Raises:
            LogRootError: There is no such bucket, or no permission.
            ScoredLogError: It cannot be read.
        """
        found = self._get(path)
        if found is None:
            return None
        with typed_store_errors(self._where(path)):
            return found.bytes().to_bytes()

    def open(self, path: str) -> BinaryIO | None:
        """An object to read and seek in; None where it is missing.

        One that is larger than ``max_whole_bytes`` is read in ranges of the version that was
        opened: where that version is gone, reading on raises ScoredLogError.

        Raises:
            LogRootError: There is no such bucket, or no permission.
            ScoredLogError: It cannot be read.
        """
        found = self._get(path)
        if found is None:
            return None
        meta = found.meta
        if meta["size"] > self._limits.max_whole_bytes and meta["e_tag"] is not None:
            return io.BufferedReader(
                ObjectFile(self._objects, path, meta["e_tag"], meta["size"], self._where(path)),
                buffer_size=2**20,
            )
        with typed_store_errors(self._where(path)):
            return io.BytesIO(found.bytes().to_bytes())

    def create(self, path: str, content: bytes) -> bool:
        """Create an object with a PUT that the store refuses where the name is taken.

        A refusal, or no answer, may follow on a write that was done: then what stands under the
        name is compared with the content, and the same content is this call's own.

        Returns:
            False where other content has the name.

        Raises:
            LogRootError: There is no such bucket, no permission, or no conditional PUT.
            ScoredLogError: The store did not do it within the limits. A write that is still on
                its way may take the name later; the next `create` of it says so.
        """
        give_up = self._clock.monotonic() + self._limits.retry_timeout_s
        pause_s = self._limits.backoff_initial_s
        while (failure := self._put_new(path, content)) is not None:
            existing = self.read(path)
            if existing is not None:
                return existing == content
            if self._clock.monotonic() + pause_s > give_up:
                raise failure
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, self._limits.backoff_max_s)
        return True

    def replace(self, path: str, content: bytes) -> None:
        """Put other content under a name: a PUT changes an object as a whole.

        Raises:
            LogRootError: There is no such bucket, or no permission.
            ScoredLogError: The store did not do it within the limits; it may have, or may yet.
        """
        with typed_store_errors(self._where(path)):
            obstore.put(self._objects, path, content, mode="overwrite", use_multipart=False)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects, 1,000 a request, in any order; missing ones are harmless.

        Raises:
            LogRootError: There is no such bucket, or no permission.
            ScoredLogError: One cannot be removed.
        """
        if not paths:
            return
        with typed_store_errors(self._where(paths[0])):
            obstore.delete(self._objects, list(paths))

    def _where(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _get(self, path: str) -> "obstore.GetResult | None":
        with typed_store_errors(self._where(path)):
            try:
                return obstore.get(self._objects, path)
            except FileNotFoundError as error:
                if error_code(error) == MISSING_BUCKET:
                    raise
                return None

    def _put_new(self, path: str, content: bytes) -> ScoredLogError | None:
        """One conditional PUT; what kept it from being done.

        Raises:
            LogRootError: To try again would not help.
        """
        try:
            # A multipart upload would not be conditional.
            obstore.put(self._objects, path, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            # 412: the name is taken. 409: another write of it is under way, and may fail.
            return ScoredLogError(
                "the object store refuses a free name: another write of it is under way",
                self._where(path),
                "Try again",
            )
        except (BaseError, OSError) as error:
            failure = as_log_error(error, self._where(path))
            if isinstance(failure, LogRootError):
                raise failure from None
            return failure
        return None

    def _list(self, folder: str) -> list[str]:
        found = obstore.list_with_delimiter(self._objects, folder or None)
        return [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]

    def _list_from(self, prefix: str, first: str) -> list[str]:
        # The listing begins after its offset; all names from `first` on come after its own prefix.
        stream = obstore.list(
            self._objects, prefix or None, offset=prefix + first[:-1], chunk_size=1_000
        )
        return [entry["path"] for chunk in stream for entry in chunk]
