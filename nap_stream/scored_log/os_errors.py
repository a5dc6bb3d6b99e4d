"""The operating system's errors, said in the log's terms."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nap_stream.errors import LogRootError, ScoredLogError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}


def as_log_error(error: OSError, where: Path) -> ScoredLogError:
    """What an operating system's error means for the log, and what to do about it."""
    said = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return ScoredLogError(f"the disk is full: {said}", str(where), "Free space on it")
    if error.errno in _DENIED:
        return LogRootError(
            f"no permission: {said}", str(where), "Give this user access, or set log.root"
        )
    if error.errno in _NO_FOLDER:
        return LogRootError(
            f"not a usable folder: {said}", str(where), "Set log.root to a folder that can be made"
        )
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


def names_in(folder: Path) -> list[str]:
    """Names of what is in a folder, in any order; none where it is no folder.

    Raises:
        ScoredLogError: It cannot be listed.
    """
    with typed_os_errors(folder):
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
