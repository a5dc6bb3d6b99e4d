"""Files created exclusively and durably on a local or shared POSIX file system."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from nap_stream.errors import LogRootError, NotAFileError, ScoredLogError
from nap_stream.scored_log.format import is_temporary, temporary_name

LEFTOVER_AGE_MS = 86_400_000
"""A temporary file so old belongs to a writer that died: writing one takes milliseconds. A clock
that is wrong by hours removes none of another writer."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
_NO_FILE = {errno.EISDIR, errno.ENXIO, errno.ELOOP}


def as_log_error(error: OSError, where: Path) -> ScoredLogError:
    """What an operating system's error means for the log, and what to do about it."""
    said = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return ScoredLogError(f"the disk is full: {said}", str(where), "Free space on it")
    if error.errno in _DENIED:
        return LogRootError(
            f"no permission: {said}", str(where), "Give this user access, or choose another root"
        )
    if error.errno in _NO_FOLDER:
        return LogRootError(
            f"not a usable folder: {said}", str(where), "Choose a folder that can be made"
        )
    if error.errno in _NO_FILE:
        return NotAFileError("a folder, a pipe or a device", str(where), "Remove it")
    if error.errno in _NO_DESCRIPTORS:
        return ScoredLogError(f"no file can be opened: {said}", str(where), "Raise ulimit -n")
    return ScoredLogError(f"the file system failed: {said}", str(where), "Check the disk")


@contextlib.contextmanager
def typed_os_errors(where: Path) -> Iterator[None]:
    """Raise `as_log_error` of any OSError within."""
    try:
        yield
    except OSError as error:
        raise as_log_error(error, where) from error


class PosixOperations:
    """The steps by which files change, each of which may fail."""

    def mkdir(self, folder: Path) -> None:
        """Make a folder and those above it; harmless where it is there."""
        folder.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> BinaryIO:
        """Create an empty file under a free name, opened to write, without a buffer."""
        # A buffer that could not be written out would be tried again when the file is closed.
        return path.open("xb", buffering=0)

    def write(self, file: BinaryIO, content: bytes) -> None:
        """Write all of the content."""
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]

    def fsync(self, file: BinaryIO) -> None:
        """Make a file's content durable."""
        os.fsync(file.fileno())

    def link(self, temporary: Path, final: Path) -> None:
        """Give a file a second name, which must be free."""
        os.link(temporary, final)

    def rename(self, temporary: Path, final: Path) -> None:
        """Give a file another name, atomically, in place of the file that has it."""
        temporary.replace(final)

    def fsync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()


class LocalStore:
    """Files below a folder; a `nap_stream.scored_log.stores.SegmentStore`.

    A file that could not be made durable is never synced again: a second fsync may succeed
    although the first one's failure has dropped the data. Whoever tries again writes it anew.
    Where a folder cannot be made or used, or there is no permission, methods raise LogRootError.

    The root need not be there yet.
    """

    def __init__(self, root: Path, operations: PosixOperations | None = None) -> None:
        self._root = root
        self._operations = PosixOperations() if operations is None else operations

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        return str(self._root)

    def prepare(self, folder: str) -> None:
        """Make a folder and those above it, durably."""
        path = self._root / folder
        with typed_os_errors(path):
            missing = {p for p in (self._root, *self._root.parents) if not p.exists()}
            self._operations.mkdir(path)
            # Those within the root may have been made by a writer that died before it synced.
            for made in (path, *path.parents):
                if made in missing or self._root in made.parents:
                    self._operations.fsync_folder(made.parent)

    def names(self, folder: str, first: str = "") -> list[str]:
        """What lies in a folder, from ``first`` on."""
        return [entry.name for entry in self._entries(folder) if entry.name >= first]

    def folders(self, folder: str) -> list[str]:
        """The folders in a folder, and no links."""
        return [
            entry.name for entry in self._entries(folder) if entry.is_dir(follow_symlinks=False)
        ]

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        path = self._root / folder
        with typed_os_errors(path):
            try:
                with os.scandir(path) as entries:
                    return list(entries)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes of the files in a folder; one that is removed meanwhile has none."""
        found: dict[str, int] = {}
        for name in self.names(folder):
            file = self._root / folder / name
            with typed_os_errors(file), contextlib.suppress(FileNotFoundError):
                status = file.lstat()
                if stat.S_ISREG(status.st_mode):
                    found[name] = status.st_size
        return found

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing."""
        file = self.open(path)
        if file is None:
            return None
        with typed_os_errors(self._root / path), file:
            return file.read()

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        """Bytes of a file, and its size; None where it is missing."""
        file = self.open(path)
        if file is None:
            return None
        with typed_os_errors(self._root / path), file:
            size = os.fstat(file.fileno()).st_size
            return os.pread(
                file.fileno(), count, start if start >= 0 else max(0, size + start)
            ), size

    def open(self, path: str) -> BinaryIO | None:
        """A file to read and seek in; None where it is missing.

        What is open stays readable when it is replaced or removed. On NFS that holds for what
        this machine removes.

        Raises:
            NotAFileError: It is a folder, a pipe or a device, which may never end.
        """
        file = self._root / path
        with typed_os_errors(file):
            try:
                # Does not wait for who may write into a pipe.
                opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                if not file.is_symlink():
                    return None
                # One that leads nowhere: the name is taken, and no file will ever have it.
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                os.close(opened)
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            return os.fdopen(opened, "rb")

    def create(self, path: str, content: bytes) -> bool:
        """Create a file exclusively and durably: temporary sibling, fsync, link, folder fsync.

        Returns:
            False where the name is taken. That it is taken is durable then: the loser goes on
            from there.

        Raises:
            ScoredLogError: It could not be made durable. Only where the folder's fsync failed
                is the name taken all the same: others may have seen it and built on it.
        """
        final = self._root / path
        with self._temporary(final, content) as temporary:
            won = self._link(temporary, final)
            self._operations.fsync_folder(final.parent)
        return won

    def replace(self, path: str, content: bytes) -> None:
        """Put other content under a name: temporary sibling, fsync, rename, folder fsync."""
        final = self._root / path
        with self._temporary(final, content) as temporary:
            self._operations.rename(temporary, final)
            self._operations.fsync_folder(final.parent)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files in this order, then sync their folders. After a failure the rest stay."""
        files = [self._root / path for path in paths]
        for file in files:
            with typed_os_errors(file), contextlib.suppress(FileNotFoundError):
                self._operations.unlink(file)
        for folder in dict.fromkeys(file.parent for file in files):
            with typed_os_errors(folder), contextlib.suppress(FileNotFoundError):
                self._operations.fsync_folder(folder)

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        """Remove temporary files that were last written before ``before_ms``."""
        removed = 0
        with contextlib.suppress(OSError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                if is_temporary(entry.name):
                    removed += self._remove_if_older(entry, before_ms)
        return removed

    def _remove_if_older(self, entry: "os.DirEntry[str]", before_ms: int) -> bool:
        with contextlib.suppress(OSError):
            if entry.stat().st_mtime_ns // 1_000_000 < before_ms:
                self._operations.unlink(Path(entry.path))
                return True
        return False

    @contextlib.contextmanager
    def _temporary(self, final: Path, content: bytes) -> Iterator[Path]:
        """A durable hidden sibling with the content, which is gone afterwards."""
        temporary = final.with_name(temporary_name())
        with typed_os_errors(final):
            try:
                with self._operations.create(temporary) as file:
                    self._operations.write(file, content)
                    self._operations.fsync(file)
                yield temporary
            finally:
                with contextlib.suppress(OSError):
                    self._operations.unlink(temporary)

    def _link(self, temporary: Path, final: Path) -> bool:
        try:
            self._operations.link(temporary, final)
        except FileExistsError:
            # A network file system can lose the answer to a link that was made.
            return _same_file(temporary, final)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise LogRootError(
                f"the file system makes no hard links: {error.strerror}",
                str(final.parent),
                "Choose a file system with hard links: a local disk or NFSv4",
            ) from error
        return True


def _same_file(temporary: Path, final: Path) -> bool:
    try:
        return os.path.samestat(temporary.stat(), final.stat())
    except FileNotFoundError:
        # Compaction has removed what had the name.
        return False
