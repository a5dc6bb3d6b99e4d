"""Ports for the programs that tests start."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

FIRST, LAST = 20_000, 32_767
"""Between the ports of Ray's workers and those that the kernel hands out by itself."""
TAKEN = Path(tempfile.gettempdir()) / f"nap-stream-tests-last-port-{os.getuid()}"


def free_port() -> int:
    """A TCP port that nobody listens on, and that was not given to any test for a long time.

    A program takes seconds until it listens. A port of the kernel's own choice would be free for
    anybody meanwhile: for the next connection, and for the next test that asks.
    """
    with TAKEN.open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        port = int(file.read() or LAST)
        for _ in range(FIRST, LAST):
            port = port + 1 if FIRST <= port < LAST else FIRST
            if _is_free(port):
                file.truncate(0)
                file.write(str(port))
                return port
    raise OSError(f"no port from {FIRST} to {LAST} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
