"""What a container runtime asks of a container: deploy/pod.py on real servers and processes."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

POD = Path(__file__).parents[2] / "deploy" / "pod.py"
NODE_PATH = "/api/healthz"
"""Of the agent of a node of Ray."""


@contextmanager
def answering(**statuses: int) -> Iterator[int]:
    """A server with a status for each path, its slashes left out; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[self.path.strip("/").replace("/", "_")])
            self.end_headers()
            self.wfile.write(b"as it is")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(metrics_port: int, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, POD, *words],
        env={**os.environ, "NAP_STREAM__METRICS__PORT": str(metrics_port)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_container_of_the_monitor_alone_is_as_the_monitor_says() -> None:
    with answering(livez=200, readyz=503) as port:
        assert ask(port, "live") == (0, "ok\n")
        assert ask(port, "ready") == (1, "/readyz: 503 as it is\n")
    assert ask(free_port(), "live")[0] == 1


def test_a_node_of_ray_must_be_in_order_and_need_not_have_the_monitor() -> None:
    nobody = free_port()
    with answering(api_healthz=200) as node, answering(livez=503) as monitor:
        assert ask(nobody, "live", f"--node={node}") == (0, "ok\n")
        assert ask(monitor, "live", f"--node={node}") == (1, "/livez: 503 as it is\n")
        assert ask(monitor, "live", f"--node={nobody}")[0] == 1
    with answering(api_healthz=503) as node:
        assert ask(nobody, "ready", f"--node={node}") == (1, f"{NODE_PATH}: 503 as it is\n")


RUN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("stopped in good order"), sys.exit()))
print("started", flush=True)
signal.pause()
"""


SCRIPT = """
"$PYTHON" -c "$RUN" nap-stream produce > /dev/null & other=$!
mkfifo said
"$PYTHON" -c "$RUN" nap_stream run > said &
exec 3< said
read -r -u 3 _
"$PYTHON" "$POD" stop; stopped=$?
cat <&3
echo "stop: $stopped"
kill -0 $other && echo "another goes on"
"$PYTHON" "$POD" stop; echo "again: $?"
"""


def test_stop_ends_every_run_of_the_container_and_nothing_else(tmp_path: Path) -> None:
    # In a container of its own, as far as processes go: it would stop other runs of this machine.
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs unshare, and the right to have a space of processes of its own")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "RUN": RUN, "POD": str(POD)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "stopped in good order",
        "stop: 0",
        "another goes on",
        "again: 0",
    ], done.stderr
