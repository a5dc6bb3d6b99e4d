"""Steps of the file system that fail, or at which the process dies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from nap_stream.scored_log.stores.local import PosixOperations

T = TypeVar("T")


class Killed(BaseException):
    """The process is gone: nothing that it would still do is done."""


class FailingOperations(PosixOperations):
    """Real steps; those that are told to fail do so once each.

    ``done`` holds the names of the steps that were begun, ``synced`` the files of which an fsync
    was tried.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.synced: list[str] = []
        self._errors: dict[str, list[tuple[int, bool]]] = {}
        self._kill_at: int | None = None

    def fail(self, step: str, number: int, *, after: bool = False) -> None:
        """Let the next such step fail with an errno, before it is done or after."""
        self._errors.setdefault(step, []).append((number, after))

    def kill_after(self, steps: int) -> None:
        """Die once so many more steps are done."""
        self._kill_at = len(self.done) + steps

    def mkdir(self, folder: Path) -> None:
        step = super().mkdir
        self._attempt("mkdir", lambda: step(folder))

    def create(self, path: Path) -> BinaryIO:
        step = super().create
        return self._attempt("create", lambda: step(path))

    def write(self, file: BinaryIO, content: bytes) -> None:
        half = len(content) // 2
        super().write(file, content[:half])  # a full disk takes what fits
        step = super().write
        self._attempt("write", lambda: step(file, content[half:]))

    def fsync(self, file: BinaryIO) -> None:
        self.synced.append(file.name)
        step = super().fsync
        self._attempt("fsync", lambda: step(file))

    def link(self, temporary: Path, final: Path) -> None:
        step = super().link
        self._attempt("link", lambda: step(temporary, final))

    def rename(self, temporary: Path, final: Path) -> None:
        step = super().rename
        self._attempt("rename", lambda: step(temporary, final))

    def fsync_folder(self, folder: Path) -> None:
        self.synced.append(str(folder))
        step = super().fsync_folder
        self._attempt("fsync_folder", lambda: step(folder))

    def unlink(self, path: Path) -> None:
        step = super().unlink
        self._attempt("unlink", lambda: step(path))

    def _attempt(self, name: str, step: Callable[[], T]) -> T:
        if self._kill_at is not None and len(self.done) >= self._kill_at:
            raise Killed
        self.done.append(name)
        number, after = self._errors[name].pop(0) if self._errors.get(name) else (0, False)
        if number and not after:
            raise OSError(number, os.strerror(number))
        result = step()
        if number:
            raise OSError(number, os.strerror(number))
        return result
