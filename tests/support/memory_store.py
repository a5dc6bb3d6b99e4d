import io
import threading
from collections.abc import Sequence
from typing import BinaryIO, Self


class MemoryStore:
    """A `SegmentStore` in memory, safe for threads."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __copy__(self) -> Self:
        other = type(self)()
        other._files |= self._files
        return other

    @property
    def root(self) -> str:
        return "memory"

    def prepare(self, folder: str) -> None:
        """Do nothing: folders are no things of their own here."""

    def names(self, folder: str, first: str = "") -> list[str]:
        with self._lock:
            return [name for name in self._names(folder) if name >= first]

    def _names(self, folder: str) -> dict[str, None]:
        prefix = f"{folder}/" if folder else ""
        below = [path for path in self._files if path.startswith(prefix)]
        return dict.fromkeys(path.removeprefix(prefix).split("/", 1)[0] for path in below)

    def folders(self, folder: str) -> list[str]:
        within = f"{folder}/" if folder else ""
        with self._lock:
            return [
                name
                for name in self._names(folder)
                if any(path.startswith(f"{within}{name}/") for path in self._files)
            ]

    def sizes(self, folder: str) -> dict[str, int]:
        with self._lock:
            found = {path: len(content) for path, content in self._files.items()}
        parts = ((path.rpartition("/"), size) for path, size in found.items())
        return {name: size for (above, _, name), size in parts if above == folder}

    def read(self, path: str) -> bytes | None:
        with self._lock:
            return self._files.get(path)

    def read_part(self, path: str, start: int, count: int) -> tuple[bytes, int] | None:
        content = self.read(path)
        if content is None:
            return None
        begin = start if start >= 0 else max(0, len(content) + start)
        return content[begin : begin + count], len(content)

    def open(self, path: str) -> BinaryIO | None:
        content = self.read(path)
        return None if content is None else io.BytesIO(content)

    def create(self, path: str, content: bytes) -> bool:
        with self._lock:
            if path in self._files:
                return False
            self._files[path] = content
            return True

    def replace(self, path: str, content: bytes) -> None:
        with self._lock:
            self._files[path] = content

    def remove(self, paths: Sequence[str]) -> None:
        with self._lock:
            for path in paths:
                self._files.pop(path, None)

    def remove_leftovers(self, folder: str, before_ms: int) -> int:
        """Find nothing: a file is there whole or not at all."""
        return 0
