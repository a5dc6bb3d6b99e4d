"""A store whose process dies at a step of its choice."""

from collections.abc import Sequence
from typing import BinaryIO

from nap_stream.scored_log.stores import SegmentStore


class Killed(Exception):  # noqa: N818 (no error that anybody handles: the process is gone)
    """Stands for SIGKILL: nothing that the process would do afterwards happens."""


class DyingStore:
    """Changes another store until its process dies, and is of no more use then.

    A removal of several files is several steps. Each step dies before it has done anything, so
    that the death after a step is the one before the next.

    Args:
        store: What outlives the process.
        steps: How many changes it makes before it dies; None for ever.
    """

    def __init__(self, store: SegmentStore, steps: int | None = None) -> None:
        self._store, self._left = store, steps

    @property
    def root(self) -> str:
        return self._store.root

    def _step(self) -> None:
        if self._left is None:
            return
        if self._left == 0:
            raise Killed
        self._left -= 1

    def prepare(self, folder: str) -> None:
        self._store.prepare(folder)

    def names(self, folder: str, first: str = "") -> list[str]:
        self._check()
        return self._store.names(folder, first)

    def folders(self, folder: str) -> list[str]:
        self._check()
        return self._store.folders(folder)

    def sizes(self, folder: str) -> dict[str, int]:
        self._check()
        return self._store.sizes(folder)

    def read(self, path: str) -> bytes | None:
        self._check()
        return self._store.read(path)

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        self._check()
        return self._store.read_part(path, start, count)

    def open(self, path: str) -> BinaryIO | None:
        self._check()
        return self._store.open(path)

    def create(self, path: str, content: bytes) -> bool:
        self._step()
        return self._store.create(path, content)

    def replace(self, path: str, content: bytes) -> None:
        self._step()
        self._store.replace(path, content)

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._step()
            self._store.remove([path])

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        return self._store.remove_leftovers(folder, before_ms)

    def _check(self) -> None:
        """A dead process reads nothing either, such as the lock that it would give back."""
        if self._left == 0:
            raise Killed
