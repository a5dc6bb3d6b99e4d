"""What a container runtime asks of the program in a container: ``python pod.py live``.

live   the program answers, and only a new start would mend it where it does not
ready  its workers report
stop   ask it to publish, commit and end, and wait until it has

With --node the container is a node of a Ray cluster, which may or may not run the monitor: the node
must be in order, and the monitor only where it is there. It needs the standard library alone.
"""

import argparse
import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

METRICS_PORT = 9464
"""Of metrics.port, unless NAP_STREAM__METRICS__PORT says otherwise."""
NODE_PORT, NODE_PATH = 52365, "/api/healthz"
"""Where the agent of a node of Ray 2.53 and newer tells how the node is; by default."""
PATHS = {"live": "/livez", "ready": "/readyz"}
RUNS = {("nap_stream", "run"), ("nap-stream", "run")}
ANSWER_S = 5.0
LOOK_EVERY_S = 0.2
STOP_S = 45.0
"""More than driver.shutdown_deadline_s, and less than terminationGracePeriodSeconds."""


def main() -> int:
    """Do what is asked; 0 is yes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=[*PATHS, "stop"])
    parser.add_argument(
        "--node",
        metavar="PORT",
        type=int,
        nargs="?",
        const=NODE_PORT,
        help="the container is a node of Ray, whose agent listens there",
    )
    arguments = parser.parse_args()
    if arguments.question == "stop":
        return _stop()
    port = int(os.environ.get("NAP_STREAM__METRICS__PORT", METRICS_PORT))
    is_node, path = arguments.node is not None, PATHS[arguments.question]
    problem = _problem(arguments.node, NODE_PATH) if is_node else None
    problem = problem or _problem(port, path, needed=not is_node)
    print(problem or "ok")
    return 1 if problem else 0


def _problem(port: int, path: str, *, needed: bool = True) -> str | None:
    """What is wrong with an answer; where nobody listens, only if somebody is ``needed``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read(1_000).decode(errors="replace")
    except ConnectionRefusedError:
        return f"nobody listens on port {port}" if needed else None
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}, {path}: {error!r}"
    finally:
        connection.close()
    return None if answer.status == http.HTTPStatus.OK else f"{path}: {answer.status} {text}"


def _stop() -> int:
    """Ask every run here to end, and wait for it. No run is no failure."""
    running = [pid for pid in _processes() if _is_run(pid)]
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while any(_is_run(pid) for pid in running):
        if time.monotonic() >= end:
            print(f"still there after {STOP_S:g} s: {running}", file=sys.stderr)
            return 1
        time.sleep(LOOK_EVERY_S)
    return 0


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))


def _is_run(pid: int) -> bool:
    """Whether it is `nap-stream run`, as python -m nap_stream or as the program's own file."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    words = [Path(os.fsdecode(word)).name for word in line.split(b"\0")]
    return any(pair in RUNS for pair in pairwise(words))


if __name__ == "__main__":
    sys.exit(main())
