"""Programs of a test, with all that they start, gone when the test is over."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support.leftovers import kill_marked, marked
from tests.support.waiting import wait_until

MARK = "NAP_STREAM_TEST_PROGRAM"
"""In the environment of everything that a `Program` starts, also of what has left its session."""
_LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


class Program:
    """A process with its output in files.

    Args:
        command: What to run; ``python`` and programs beside it are this environment's.
        folder: For the output; made if need be.
        environ: Added to this process's environment.
    """

    def __init__(
        self, command: list[str], folder: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self._command = command
        self._out, self._err = folder / "stdout", folder / "stderr"
        bin_folder = str(Path(sys.executable).parent)
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PATH": path, MARK: self.mark, **(environ or {})},
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it and all that it has started, at once. Safe to call twice."""
        kill_marked(MARK, self.mark)
        self._process.wait()

    def started(self, pid: int) -> bool:
        """Whether a living process is one of all that it has started."""
        return pid in marked(MARK, self.mark)

    def wait(self) -> int:
        """The exit code; fails with the end of the output where there is none."""
        wait_until(lambda: not self.running, lambda: f"the end of {self}")
        return self._process.returncode

    def wait_for_line(self, text: str) -> str:
        """The first line of stderr that contains ``text``."""

        def lines() -> list[str]:
            assert self.running or text in self.stderr, f"ended without {text!r}\n{self.tail}"
            return [line for line in self.stderr.splitlines(keepends=True) if text in line]

        def whole() -> bool:
            return any(line.endswith("\n") for line in lines())

        wait_until(whole, lambda: f"{text!r} of {self}")
        return lines()[0]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its own events of a name, as far as they are told: the last line may not be whole yet."""
        lines = [line for line in self.stderr.splitlines(keepends=True) if line.endswith("}\n")]
        return [json.loads(line) for line in lines if f'"{name}"' in line and line[0] == "{"]

    @property
    def tail(self) -> str:
        return f"--- stdout\n{self.stdout[-2000:]}\n--- stderr\n{self.stderr[-6000:]}"

    def __str__(self) -> str:
        return f"{self._command}\n{self.tail}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def listener_pid(port: int) -> int:
    """The process that listens on a TCP port of this machine (IPv4), once there is one."""
    found: list[int] = []

    def is_there() -> bool:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [row for row in rows if row[1].endswith(f":{port:04X}") and row[3] == _LISTEN]
        sockets = {f"socket:[{row[9]}]" for row in ours}
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):
                if str(descriptor.readlink()) in sockets:
                    found.append(int(descriptor.parts[2]))
        return bool(found)

    wait_until(is_there, f"a process that listens on port {port}")
    (pid,) = set(found)
    return pid


def nap_stream(*arguments: str | Path) -> list[str]:
    """The command line of the program, as ``python -m nap_stream``."""
    return [sys.executable, "-m", "nap_stream", *map(str, arguments)]
