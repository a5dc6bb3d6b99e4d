"""Objects created exclusively in an object store of a cloud, or one that speaks its protocol.

Requests have bounds on time and retries, errors are said in the log's terms, and one version of an
object is read in ranges.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from nap_stream.clock import Clock, SystemClock
from nap_stream.clouds import (
    Client,
    as_log_error,
    connect,
    forms,
    is_beyond_the_end,
    is_missing_bucket,
    is_panic,
    is_too_often,
    parsed,
)
from nap_stream.errors import ConfigError, LogRootError, ScoredLogError
from nap_stream.text import without_secrets

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


Found = TypeVar("Found")
_ENDS = 5
"""Looks for the end of an object that is replaced by one of another size between them."""
_REMOVALS = 5
"""After the first only what somebody else removes at the same time is missing."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How long a request to the object store may take, and how often it is tried.

    A request ends within ``retry_timeout_s + request_timeout_s``; twice that where it asks for a
    token first. Reading is one, or two, as of the end of an object of Azure's; listing is one for
    each 1,000 names. `create` and `replace` begin further ones for ``retry_timeout_s``, as `remove`
    does in each of its rounds.
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


def request_options(limits: RequestLimits) -> dict[str, Any]:
    """What a cloud's client is made with, for requests within these limits."""
    return {
        "client_options": {
            "connect_timeout": timedelta(seconds=limits.connect_timeout_s),
            "timeout": timedelta(seconds=limits.request_timeout_s),
            # An endpoint without TLS is used only where the environment names one.
            "allow_http": True,
        },
        "retry_config": {
            "max_retries": limits.max_retries,
            "retry_timeout": timedelta(seconds=limits.retry_timeout_s),
            "backoff": {
                "init_backoff": timedelta(seconds=limits.backoff_initial_s),
                "max_backoff": timedelta(seconds=limits.backoff_max_s),
                "base": 2,
            },
        },
    }


@contextlib.contextmanager
def typed_store_errors(where: str) -> Iterator[None]:
    """Raise `as_log_error` of any error of the object store within."""
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, BaseError | OSError) or is_panic(error)):
            raise
        # Not chained: the cause would show the whole answer in a traceback.
        raise as_log_error(error, where) from None


class ObjectFile(io.RawIOBase):
    """A file over conditional range requests: it never mixes two versions of an object.

    Reading raises ScoredLogError where the version is gone, or the store failed.
    """

    def __init__(self, objects: Client, path: str, e_tag: str, size: int, where: str) -> None:
        super().__init__()
        self._objects, self._path, self._where = objects, path, where
        self._e_tag, self._size, self._position = e_tag, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, in bytes from the start, from here or from the end.

        Raises:
            ValueError: It would lie before the start.
        """
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a position before the start: {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position, in bytes from the start."""
        return self._position

    def readall(self) -> bytes:
        """All from the position on, in one request."""
        content = self._range(self._position, self._size)
        self._position += len(content)
        return content

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer from the position on, as far as the object goes."""
        with memoryview(buffer).cast("B") as target:
            content = self._range(self._position, min(self._position + len(target), self._size))
            target[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _range(self, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        with typed_store_errors(self._where):
            try:
                found = obstore.get(
                    self._objects,
                    self._path,
                    options={"range": (start, end), "if_match": self._e_tag},
                )
                return found.bytes().to_bytes()
            except (PreconditionError, FileNotFoundError):
                raise ScoredLogError(
                    "the object was replaced or removed while it was read",
                    self._where,
                    "Read it again",
                ) from None


class ObjectStore:
    """Objects below a prefix of a bucket; a `nap_stream.scored_log.stores.SegmentStore`.

    Credentials, region and endpoint come from the environment, or from the machine's role
    (`nap_stream.clouds`). The store must create objects conditionally (S3 and Azure
    ``If-None-Match: *``, Google ``x-goog-if-generation-match: 0``):
    `nap_stream.scored_log.stores.check_store` tells.
    Where there is no such bucket, or no permission, every method raises LogRootError.

    ``root`` is ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``;
    ``limits`` are of time and retries, which the clock measures.

    Raises:
        ConfigError: The root has another form.
        LogRootError: What the environment says of the store cannot be used.
    """

    def __init__(
        self, root: str, *, limits: RequestLimits | None = None, clock: Clock | None = None
    ) -> None:
        place = parsed(root)
        if place is None:
            raise ConfigError(
                "not the root of a scored log in an object store",
                without_secrets(root),
                f"Give {forms()}",
            )
        self._cloud, bucket, prefix = place
        self._root = root.rstrip("/")
        self._limits = RequestLimits() if limits is None else limits
        self._clock = SystemClock() if clock is None else clock
        self._objects = connect(
            self._cloud, bucket, prefix, self._root, request_options(self._limits)
        )

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        return self._root

    def prepare(self, folder: str) -> None:
        """Do nothing: an object store has no folders."""

    def names(self, folder: str, first: str = "") -> list[str]:
        """Names of the objects and prefixes in a folder, from ``first`` on.

        Without ``first`` a request brings 1,000 names. With it the listing begins there, and
        goes through what lies below the prefixes too.
        """
        prefix = f"{folder}/" if folder else ""
        with typed_store_errors(self._where(folder)):
            paths = self._list_from(prefix, first) if first else self._list(folder)
        names = dict.fromkeys(path.removeprefix(prefix).split("/", 1)[0] for path in paths)
        return [name for name in names if name >= first]

    def folders(self, folder: str) -> list[str]:
        """The prefixes in a folder."""
        with typed_store_errors(self._where(folder)):
            found = obstore.list_with_delimiter(self._objects, folder or None)["common_prefixes"]
        return [path.rpartition("/")[2] for path in found]

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes of the objects in a folder, of 1,000 a request."""
        with typed_store_errors(self._where(folder)):
            found = obstore.list_with_delimiter(self._objects, folder or None)["objects"]
        return {
            entry["path"].rpartition("/")[2]: entry["size"]
            for entry in found
            if entry["path"] != folder
        }

    def read(self, path: str) -> bytes | None:
        """A whole object; None where it is missing."""
        found = self._get(path)
        if found is None:
            return None
        with typed_store_errors(self._where(path)):
            return found.bytes().to_bytes()

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        """Bytes of an object, and its size; None where it is missing.

        Raises:
            ScoredLogError: Its end cannot be read, as it is replaced again and again.
        """
        if start >= 0:
            return self._part(path, (start, start + count), count)
        if self._cloud.suffix_ranges:
            return self._part(path, {"suffix": -start}, count)
        found = self._part(path, (0, 1), 1)
        if found is None:
            return None
        for _ in range(_ENDS):
            size = found[1]
            first = max(0, size + start)
            found = self._part(path, (first, first + count), count)
            # One that was replaced meanwhile ends elsewhere.
            if found is None or found[1] == size:
                return found
        raise ScoredLogError(
            f"the object was replaced {_ENDS} times while its end was read",
            self._where(path),
            "Let nothing but nap-stream write what lies there, and try again",
        )

    def open(self, path: str) -> BinaryIO | None:
        """An object to read and seek in; None where it is missing.

        One that is larger than ``max_whole_bytes`` is read in ranges of the version that was
        opened: where that version is gone, reading on raises ScoredLogError.
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

        The store may refuse, or not answer, although it has done the write. So what has the name
        is compared with the content: the same content counts as this call's own.

        Raises:
            LogRootError: There is no such bucket, no permission, or no conditional PUT.
            ScoredLogError: The store did not do it within the limits. A write that is still on
                its way may take the name later; the next `create` of it says so.
        """
        pauses = self._pauses()
        while (failure := self._put_new(path, content)) is not None:
            existing = self.read(path)
            if existing is not None:
                return existing == content
            if not next(pauses):
                raise failure
        return True

    def replace(self, path: str, content: bytes) -> None:
        """Put other content under a name: a PUT changes an object as a whole.

        Raises:
            ScoredLogError: The store did not do it within the limits; it may have, or may yet.
        """
        with typed_store_errors(self._where(path)):
            self._in_time(
                lambda: obstore.put(
                    self._objects, path, content, mode="overwrite", use_multipart=False
                )
            )

    def remove_leftovers(self, folder: str, before_ms: int) -> int:  # noqa: ARG002
        """Find nothing: an unfinished PUT leaves no object."""
        return 0

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects, in any order: of S3 1,000 a request, of Azure 256, of Google one.

        Where some are missing a listing more tells what is left, and that is removed.
        """
        left = list(paths)
        for _ in range(_REMOVALS):
            if not left or self._remove_all(left):
                return
            left = self._those_there(left) if len(left) > 1 else []
        raise ScoredLogError(
            f"{len(left)} objects come and go while they are removed",
            self._where(left[0]),
            "Let nothing but nap-stream change what lies there, and try again",
        )

    def _remove_all(self, paths: list[str]) -> bool:
        """Whether all were there, and are removed; the first that is missing may end it."""
        with typed_store_errors(self._where(paths[0])):
            try:
                self._in_time(lambda: obstore.delete(self._objects, paths))
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise
                return False
            return True

    def _those_there(self, paths: list[str]) -> list[str]:
        in_folders: dict[str, set[str]] = {}
        for path in paths:
            folder, _, name = path.rpartition("/")
            in_folders.setdefault(folder, set()).add(name)
        there = {
            f"{folder}/{name}" if folder else name
            for folder, wanted in in_folders.items()
            # Of the root a listing from a name on would go through all folders.
            for name in wanted.intersection(self.names(folder, min(wanted) if folder else ""))
        }
        return [path for path in paths if path in there]

    def _in_time(self, request: Callable[[], object]) -> None:
        """Repeat what may be done again, for as long as the store finds it too often."""
        pauses = self._pauses()
        while True:
            try:
                request()
            except BaseError as error:
                if not is_too_often(error) or not next(pauses):
                    raise
            else:
                return

    def _pauses(self) -> Iterator[bool]:
        """Pause before each further attempt; False where it would begin too late."""
        give_up = self._clock.monotonic() + self._limits.retry_timeout_s
        pause_s = self._limits.backoff_initial_s
        while self._clock.monotonic() + pause_s <= give_up:
            self._clock.sleep(pause_s)
            yield True
            pause_s = min(pause_s * 2, self._limits.backoff_max_s)
        yield False

    def _where(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _found(self, path: str, request: Callable[[], Found]) -> Found | None:
        """What a request for an object brings; None where the object is missing."""
        with typed_store_errors(self._where(path)):
            try:
                return request()
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise
                return None

    def _get(self, path: str) -> "obstore.GetResult | None":
        return self._found(path, lambda: obstore.get(self._objects, path))

    def _part(
        self, path: str, wanted: "tuple[int, int] | obstore.SuffixRange", count: int
    ) -> tuple[bytes, int] | None:
        def ask() -> tuple[bytes, int]:
            try:
                found = obstore.get(self._objects, path, options={"range": wanted})
                return found.bytes().to_bytes()[:count], found.meta["size"]
            except BaseError as error:
                if not is_beyond_the_end(error):
                    raise
                size = obstore.head(self._objects, path)["size"]
                if size > (wanted[0] if isinstance(wanted, tuple) else 0):
                    raise
                return b"", size

        return self._found(path, ask)

    def _put_new(self, path: str, content: bytes) -> ScoredLogError | None:
        """One conditional PUT; what kept it from being done.

        Raises:
            LogRootError: To try again would not help.
        """
        try:
            with typed_store_errors(self._where(path)), contextlib.suppress(AlreadyExistsError):
                # A multipart upload would not be conditional.
                obstore.put(self._objects, path, content, mode="create", use_multipart=False)
                return None
        except LogRootError:
            raise
        except ScoredLogError as failure:
            return failure
        # 412: the name is taken. 409: another write of it is under way, and may fail.
        return ScoredLogError(
            "the object store refuses a free name: another write of it is under way",
            self._where(path),
            "Try again",
        )

    def _list(self, folder: str) -> list[str]:
        found = obstore.list_with_delimiter(self._objects, folder or None)
        # Consoles make a folder as an empty object whose name ends with a slash.
        objects = (path for entry in found["objects"] if (path := entry["path"]) != folder)
        return [*found["common_prefixes"], *objects]

    def _list_from(self, prefix: str, first: str) -> list[str]:
        # The listing begins after its offset; all names from `first` on come after its own prefix.
        stream = obstore.list(
            self._objects, prefix or None, offset=prefix + first[:-1], chunk_size=1_000
        )
        return [entry["path"] for chunk in stream for entry in chunk]
