"""The files of the log as DuckDB asks for them. Nothing else can be reached through it."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from nap_stream.errors import ConfigError, ScoredLogError
from nap_stream.scored_log.files import PROTOCOL, LogFile, ReplacedError, open_listed
from nap_stream.scored_log.stores import SegmentStore


class _SharedFile:
    """A file that several threads read: each has a position of its own in it."""

    def __init__(self, file: BinaryIO, lock: "threading.Lock | None" = None) -> None:
        self._file, self._lock = file, threading.Lock() if lock is None else lock
        self._own = threading.local()

    def again(self) -> "_SharedFile":
        """The same file, opened once more: with positions of its own."""
        return _SharedFile(self._file, self._lock)

    def seek(self, position: int) -> int:
        self._own.position = position
        return position

    def tell(self) -> int:
        return int(getattr(self._own, "position", 0))

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            self._file.seek(self.tell())
            content = self._file.read(size)
        self._own.position = self.tell() + len(content)
        return content

    def close(self) -> None:
        """Leave it open: others read it, too. `StoreFiles.show` closes it."""

    def end(self) -> None:
        """Close it for all who read it."""
        self._file.close()


class StoreFiles(AbstractFileSystem):  # type: ignore[misc]  # it has no types
    """The listed files of a log, as DuckDB asks for files. Nothing else is in it."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, store: SegmentStore) -> None:
        super().__init__()
        self._store = store
        self.listed: dict[str, LogFile] = {}
        self.replaced = False
        self.failure: ScoredLogError | ConfigError | None = None
        self._opened: dict[str, _SharedFile] = {}
        self._opening = threading.Lock()

    def show(self, files: Sequence[LogFile]) -> None:
        """Have these files in it, and no others; closes what was opened before."""
        # DuckDB does not close them.
        while self._opened:
            self._opened.popitem()[1].end()
        self.listed = {file.path: file for file in files}
        self.replaced, self.failure = False, None

    def _listed(self, path: str) -> LogFile:
        file = self.listed.get(path.removeprefix(f"{PROTOCOL}://"))
        if file is None:
            self.failure = ConfigError(
                f"not a file of the log that is asked: {path}", "the SQL", "Ask the view records"
            )
            raise self.failure
        return file

    def open(self, path: str, mode: str = "rb", **_: Any) -> _SharedFile:
        """Open a listed file."""
        file = self._listed(path)
        if mode != "rb":
            raise PermissionError(f"the log is only read: {path}")
        # DuckDB opens each twice, and an object store would have to send it twice.
        if (found := self._opened.get(file.path)) is None:
            try:
                found = _SharedFile(open_listed(self._store, file))
            except ReplacedError:
                self.replaced = True
                raise
            except ScoredLogError as error:
                self.failure = error
                raise
            with self._opening:
                first = self._opened.setdefault(file.path, found)
            if first is not found:
                # Another thread was sooner.
                found.end()
                found = first
        return found.again()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What a listed file is."""
        return {"name": path, "size": self._listed(path).size, "type": "file"}

    def glob(self, path: str, **_: Any) -> list[str]:
        """The path itself: there are no patterns."""
        return [path]

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        """A moment that never changes."""
        # DuckDB asks to know whether what it remembers holds: it remembers nothing.
        return datetime.fromtimestamp(0, UTC)
