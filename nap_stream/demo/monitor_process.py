"""The monitor as users run it: a process of its own, seen through its /metrics."""

import contextlib
import http.client
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from nap_stream.errors import WorkerError
from nap_stream.settings.load import ENV_PREFIX

STOP_S = 40.0
"""More than driver.shutdown_deadline_s, which is 30 s by default."""
ABANDON_S = 5.0
"""How long the monitor may take where the demo itself is breaking off."""
ANSWER_S = 2.0
TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class MonitorView:
    """What /metrics shows. Fractions are null until the window is full.

    ``partitions`` is how many workers are reading.
    """

    rows: int
    partitions: int
    ood_fraction: float | None
    bound: float | None
    firing: bool


class MonitorProcess:
    """A running ``nap-stream run``.

    Args:
        process: Started in a session of its own.
        port: Where it serves its metrics.
        output: The file that it prints to.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
        self._process, self._port, self._output = process, port, output

    def require_alive(self) -> None:
        """Go on only while it runs.

        Raises:
            WorkerError: It has ended, with the last lines that it printed.
        """
        if self._process.poll() is not None:
            lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
            raise WorkerError(
                f"the monitor ended with code {self._process.returncode}: "
                + "\n".join(lines[-TAIL_LINES:]),
                str(self._output),
            )

    def ready(self, partitions: int) -> bool:
        """Whether all workers report, as /healthz tells it, and read so many partitions."""
        view = self.view() if self._get("/healthz") is not None else None
        return view is not None and view.partitions >= partitions

    def view(self) -> MonitorView | None:
        """What its metrics say now; None while they do not answer."""
        text = self._get("/metrics")
        return None if text is None else _view(text)

    def stop(self) -> int:
        """Ask it to end in good order, wait, and return its exit code.

        Raises:
            WorkerError: It does not end in time.
        """
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise WorkerError(
                f"the monitor did not end within {STOP_S:g} s of SIGTERM", str(self._output)
            ) from error

    def abandon(self) -> None:
        """End it and all that it started, in good order or not. Safe to call when it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(ABANDON_S)
        # Its session holds Ray's processes too, of which none may be left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _get(self, path: str) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return body if response.status == HTTPStatus.OK else None


@contextmanager
def running_monitor(
    config: Path, port: int, output: Path, environ: Mapping[str, str]
) -> Iterator[MonitorProcess]:
    """Run ``nap-stream run --config`` for as long as the block does.

    Args:
        config: The YAML file.
        port: That it gives for the metrics.
        output: Where the process prints to.
        environ: The environment; overrides of settings and the address of a Ray cluster are
            left out, so that the configuration alone says what runs.
    """
    clean = {
        name: value
        for name, value in environ.items()
        if not name.startswith(ENV_PREFIX) and name != "RAY_ADDRESS"
    }
    command = [sys.executable, "-m", "nap_stream", "run", "--config", str(config)]
    with output.open("wb") as file:
        # A session of its own: Ctrl-C in the terminal must reach the demo alone.
        process = subprocess.Popen(  # noqa: S603  this very program, and no shell
            command, stdout=file, stderr=subprocess.STDOUT, env=clean, start_new_session=True
        )
    monitor = MonitorProcess(process, port, output)
    try:
        yield monitor
    finally:
        monitor.abandon()


def _view(text: str) -> MonitorView:
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    gauges = {sample.name: sample.value for sample in samples}
    rows = sum(s.value for s in samples if s.name == "nap_stream_records_total")
    lags = [s for s in samples if s.name == "nap_stream_partition_lag_offsets"]
    bound = gauges["nap_stream_ood_fraction_bound"]
    full = not math.isnan(bound)
    return MonitorView(
        rows=int(rows),
        partitions=len(lags),
        ood_fraction=gauges["nap_stream_ood_fraction"] if full else None,
        bound=bound if full else None,
        firing=any(s.value > 0 for s in samples if s.name == "nap_stream_alert_firing"),
    )
