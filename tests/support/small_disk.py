"""A disk that a test can fill: a small tmpfs."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = "ballast"


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave not one block."""
        block = bytes(4096)
        with (self.folder / BALLAST).open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(block)
            except OSError:
                return

    def empty(self) -> None:
        """Give the space back."""
        (self.folder / BALLAST).unlink()

    def remount(self, how: str) -> None:
        """Make it read-only (``ro``), or writable again (``rw``)."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@contextmanager
def mounted_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """A disk of its own at ``folder``; skips, saying why, where mounting is refused."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a tmpfs cannot be mounted: {error}")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: a process that a failed test has left may still have a file of it open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
