"""Whatever a test process has started is gone when it is, however it ends.

A fixture that stops what it has started does not run where a time-out or a signal ends the process
of the tests. So a watcher outlives that process by a moment: it reads a pipe whose other end only
that process holds, and at its end kills everything with the process's mark in its environment.

Ray's agents and workers write their title over their environment. They are known by the files that
they hold open in Ray's folder. An agent that outlives its cluster uses a whole core for a minute.
"""

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWNER = "NAP_STREAM_TEST_OWNER"
_TEMPORARY = Path("/tmp")


def watch_over_this_process() -> None:
    """Have all that this process starts from now on end with it."""
    mark = uuid.uuid4().hex[:8]
    read, write = os.pipe()  # the write end is left open, and is closed with this process alone
    assert not os.get_inheritable(write)
    # Not a Popen: nobody waits for the watcher.
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", "-P", __file__, mark],
        {name: value for name, value in os.environ.items() if name != OWNER},
        file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
        setsid=True,
    )
    os.close(read)
    os.environ[OWNER] = mark


def marked(name: str, value: str) -> list[int]:
    """Living processes that were started with this variable in their environment."""
    needle = f"{name}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_marked(name: str, value: str) -> None:
    """Kill them all, and what they start meanwhile."""
    while pids := marked(name, value):
        _kill(pids)


def holders(folder: Path) -> list[int]:
    """Living processes, but this one, that hold a file of this folder open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(_leads_into(link, folder) for link in (entry / "fd").iterdir()):
                found.append(int(entry.name))
    return found


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a path that is short enough for Ray's sockets; its users are gone after it."""
    folder = Path(tempfile.mkdtemp(prefix=f"ns-{os.environ[OWNER]}-", dir=_TEMPORARY))
    try:
        yield folder
    finally:
        _clear(folder)


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:
        return False  # closed meanwhile


def _clear(folder: Path) -> None:
    while pids := holders(folder):
        _kill(pids)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _watch(mark: str) -> None:
    sys.stdin.read()
    kill_marked(OWNER, mark)
    for folder in _TEMPORARY.glob(f"ns-{mark}-*"):
        _clear(folder)


if __name__ == "__main__":
    _watch(sys.argv[1])
