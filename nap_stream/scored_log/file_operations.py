"""The steps by which files change on a POSIX file system, each of which may fail."""

import os
from pathlib import Path
from typing import BinaryIO, Protocol


class FileOperations(Protocol):
    """What `LocalStore` does to the disk, one method a step. Every one may raise OSError."""

    def mkdir(self, folder: Path) -> None:
        """Make a folder and those above it; harmless where it is there."""
        ...

    def create(self, path: Path) -> BinaryIO:
        """Create an empty file under a free name, opened to write, without a buffer."""
        ...

    def write(self, file: BinaryIO, content: bytes) -> None:
        """Write all of the content."""
        ...

    def fsync(self, file: BinaryIO) -> None:
        """Make a file's content durable."""
        ...

    def link(self, temporary: Path, final: Path) -> None:
        """Give a file a second name, which must be free."""
        ...

    def rename(self, temporary: Path, final: Path) -> None:
        """Give a file another name, atomically, in place of the file that has it."""
        ...

    def fsync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        ...


class PosixOperations:
    """The steps themselves."""

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
