"""Files created exclusively and durably on a POSIX file system."""

import contextlib
import errno
import os
from pathlib import Path

from nap_stream.errors import LogRootError
from nap_stream.scored_log.layout import is_temporary, temporary_name
from nap_stream.scored_log.os_errors import names_in, typed_os_errors

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, final: Path) -> bool:
    try:
        os.link(temporary, final)
    except FileExistsError:
        # A network file system can lose the answer to a link that was made.
        return os.path.samestat(temporary.stat(), final.stat())
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise LogRootError(
            f"the file system makes no hard links: {error.strerror}",
            str(final.parent),
            "Set log.root to a file system with hard links: a local disk or NFSv4",
        ) from error
    return True


class LocalStore:
    """Files below a folder.

    Args:
        root: The log's root. It need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self, folder: str) -> None:
        """Make a folder and those above it, durably.

        Raises:
            LogRootError: It cannot be made.
        """
        path = self._root / folder
        with typed_os_errors(path):
            missing = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for made in missing:
                _fsync_folder(made.parent)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none where it is missing.

        Raises:
            ScoredLogError: It cannot be listed.
        """
        return names_in(self._root / folder)

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing.

        Raises:
            ScoredLogError: It cannot be read.
        """
        file = self._root / path
        with typed_os_errors(file):
            try:
                return file.read_bytes()
            except FileNotFoundError:
                return None

    def create(self, path: str, content: bytes) -> bool:
        """Create a file exclusively and durably: temporary sibling, fsync, link, folder fsync.

        Returns:
            False where the name is taken.

        Raises:
            ScoredLogError: It could not be made durable.
        """
        final = self._root / path
        temporary = final.with_name(temporary_name())
        with typed_os_errors(final):
            try:
                _write_durably(temporary, content)
                won = _link(temporary, final)
                if won:
                    _fsync_folder(final.parent)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        return won

    def remove(self, path: str) -> None:
        """Remove a file that is no part of the log; harmless where it is missing.

        Raises:
            ScoredLogError: It cannot be removed.
        """
        file = self._root / path
        with typed_os_errors(file):
            file.unlink(missing_ok=True)

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        """Remove temporary files last written before ``before_ms`` (since the epoch, UTC).

        Returns:
            How many. A file that cannot be removed does no harm and is left.
        """
        removed = 0
        with contextlib.suppress(OSError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                if is_temporary(entry.name):
                    removed += _remove_if_older(entry, before_ms)
        return removed


def _remove_if_older(entry: "os.DirEntry[str]", before_ms: int) -> bool:
    with contextlib.suppress(OSError):
        if entry.stat().st_mtime_ns // 1_000_000 < before_ms:
            Path(entry.path).unlink()
            return True
    return False
