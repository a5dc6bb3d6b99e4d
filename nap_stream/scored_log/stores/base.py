"""What the chain needs of the place where its files lie."""

from collections.abc import Sequence
from typing import BinaryIO, Protocol


class SegmentStore(Protocol):
    """Whole files by path, created exclusively. Paths are relative to the log's root."""

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        ...

    def prepare(self, folder: str) -> None:
        """Make a folder where files are to be created; harmless where it is there.

        Raises:
            ScoredLogError: It cannot be made.
        """
        ...

    def names(self, folder: str, first: str = "") -> list[str]:
        """Names of the files and folders in a folder, in any order.

        Args:
            folder: None are found where it is missing.
            first: Leave out the names before this one; what follows may cost less to list.

        Raises:
            ScoredLogError: It cannot be listed.
        """
        ...

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing.

        Raises:
            ScoredLogError: It cannot be read.
        """
        ...

    def open(self, path: str) -> BinaryIO | None:
        """A file to read and seek in; None where it is missing.

        It shows one version of the file to the end, also where the file is replaced or removed
        meanwhile. The caller closes it.

        Raises:
            ScoredLogError: It cannot be opened.
        """
        ...

    def create(self, path: str, content: bytes) -> bool:
        """Create a file with all its content, durably, or not at all.

        Returns:
            False where the name is taken: then nothing has changed.

        Raises:
            ScoredLogError: It could not be made durable. The name is free as a rule; where the
                failure came after the name was taken, the next `create` of it says so.
        """
        ...

    def replace(self, path: str, content: bytes) -> None:
        """Put other content under a name that is taken: at every moment the old or the new.

        Raises:
            ScoredLogError: It could not be made durable; the name holds the old or the new.
        """
        ...

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        """Remove what writers that died have left of unfinished files, last written long ago.

        Args:
            folder: Where to look.
            before_ms: Only what was written before, milliseconds since the epoch, UTC.

        Returns:
            How many. What cannot be removed does no harm and is left. 0 in a store where an
            unfinished file leaves nothing.
        """
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, durably; those that are missing are harmless. A folder keeps the order.

        Raises:
            ScoredLogError: One cannot be removed.
        """
        ...
