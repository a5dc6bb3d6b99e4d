"""One version of an object, read in ranges."""

import io
import os
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import PreconditionError

from nap_stream.errors import ScoredLogError
from nap_stream.scored_log.object_errors import typed_store_errors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore.store import S3Store


class ObjectFile(io.RawIOBase):
    """A file over conditional range requests: it never mixes two versions of an object.

    Args:
        objects: The store.
        path: The object's path in it.
        e_tag: The version's.
        size: Of the version, in bytes.
        where: For messages.
    """

    def __init__(self, objects: "S3Store", path: str, e_tag: str, size: int, where: str) -> None:
        super().__init__()
        self._objects = objects
        self._path = path
        self._e_tag = e_tag
        self._size = size
        self._where = where
        self._position = 0

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether the position can be moved: yes."""
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
        """All from the position on, in one request.

        Raises:
            ScoredLogError: The version is gone, or the store failed.
        """
        content = self._range(self._position, self._size)
        self._position += len(content)
        return content

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer from the position on, as far as the object goes.

        Raises:
            ScoredLogError: The version is gone, or the store failed.
        """
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
