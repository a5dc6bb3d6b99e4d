"""A disk that a test can fill: a small tmpfs."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_BYTES = 8 * 2**20
BALLAST = "ballast"


class SmallDisk:
    """A mounted tmpfs of `SIZE_BYTES`."""

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


@contextmanager
def mounted_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk of its own at ``folder``; skips, saying why, where mounting is refused."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)]
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
