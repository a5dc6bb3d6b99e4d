"""What the chain needs of the place where its files lie, and that place in memory."""

import io
import threading
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

        Only what lies in ``folder`` and was written before ``before_ms``, milliseconds since the
        epoch, UTC.

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


class MemoryStore:
    """A `SegmentStore` in memory, safe for threads.

    Compaction writes a merged file to one, and reads it back, before it touches the log.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        return "memory"

    def prepare(self, folder: str) -> None:
        """Do nothing: folders are no things of their own here."""

    def names(self, folder: str, first: str = "") -> list[str]:
        """What lies in a folder, from ``first`` on."""
        prefix = f"{folder}/" if folder else ""
        with self._lock:
            below = [path for path in self._files if path.startswith(prefix)]
        names = dict.fromkeys(path.removeprefix(prefix).split("/", 1)[0] for path in below)
        return [name for name in names if name >= first]

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing."""
        with self._lock:
            return self._files.get(path)

    def open(self, path: str) -> BinaryIO | None:
        """A file to read and seek in; None where it is missing."""
        content = self.read(path)
        return None if content is None else io.BytesIO(content)

    def create(self, path: str, content: bytes) -> bool:
        """Keep a new file."""
        with self._lock:
            if path in self._files:
                return False
            self._files[path] = content
            return True

    def replace(self, path: str, content: bytes) -> None:
        """Keep other content under a name."""
        with self._lock:
            self._files[path] = content

    def remove(self, paths: Sequence[str]) -> None:
        """Forget files; those that are missing are harmless."""
        with self._lock:
            for path in paths:
                self._files.pop(path, None)

    def remove_leftovers(self, folder: str, before_ms: int) -> int:  # noqa: ARG002
        """Find nothing: a file is there whole or not at all."""
        return 0
