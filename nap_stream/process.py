"""What each program does as a process: a signal sets a flag, an event is one line of the log."""

import getpass
import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import structlog


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the handlers from before come back at the end.

    A second SIGINT raises KeyboardInterrupt, for the person who does not want to wait.
    Must be entered in the main thread, and after `ray.init`, which sets handlers of its own.
    """
    stop = threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noted_signals() -> Iterator[Callable[[], set[int]]]:
    """Gives what signals have come since, whoever handles them and whatever became of that.

    An exception that a handler raises is lost where it comes up in code that lets none out, as a
    destructor: then the program goes on as if there had been no signal. Of signals that Python
    handles alone, and in the main thread: elsewhere none is noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield set
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        for end in (reader, writer):
            end.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        noted: set[int] = set()

        def so_far() -> set[int]:
            with suppress(BlockingIOError):
                noted.update(reader.recv(4096))
            return noted

        try:
            yield so_far
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def note_hangups(asked: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that each SIGHUP sets; the handler from before comes back at the end.

    Where SIGHUP is ignored, as under nohup, it stays so, unless the event is given: programs that
    are started under a handler end by the signal that they would have ignored. So give the event of
    an outer call once those have started that must outlive the terminal. A SIGHUP that comes
    because the terminal is gone ends the process, or is nothing to it under nohup, as without this.
    Must be entered in the main thread.
    """
    before, terminal = signal.getsignal(signal.SIGHUP), _has_terminal()
    if asked is None and before is signal.SIG_IGN:
        yield threading.Event()
        return
    noted = asked or threading.Event()

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal terminal
        if terminal and not _has_terminal():
            terminal = False
            if before is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        noted.set()

    signal.signal(signal.SIGHUP, handle)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGHUP, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def user_name() -> str | None:
    """The name of the user whose process this is; None where it has none, as in some containers."""
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return None


def writer_id(name: str) -> str:
    """Who writes to a log: unique over hosts, processes and restarts, and readable."""
    return f"{name}@{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


_AWS = r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|(DEFAULT_)?REGION|ENDPOINT.*)"
_GOOGLE = r"GOOGLE_(SERVICE_ACCOUNT_KEY|BEARER_TOKEN|BASE_URL|SKIP_SIGNATURE)"
_AZURE = (
    r"AZURE_(STORAGE_)?(ACCOUNT_NAME|(ACCOUNT|ACCESS|MASTER)_KEY|SAS_(KEY|TOKEN)|TOKEN|ENDPOINT|"
    r"CLIENT_(ID|SECRET)|(TENANT|AUTHORITY)_ID|AUTHORITY_HOST|USE_EMULATOR)"
)
_STORES = {
    "s3": (_AWS, r"AWS_(PROFILE|ROLE_ARN|CONTAINER_.*|(WEB_IDENTITY|CONFIG|SHARED).*_FILE)"),
    "gs": (_GOOGLE, r"GOOGLE_(APPLICATION_CREDENTIALS|SERVICE_ACCOUNT(_PATH)?)"),
    "az": (
        _AZURE,
        r"AZURE_(STORAGE_)?(FEDERATED_TOKEN_FILE|(MSI|IDENTITY)_ENDPOINT|USE_AZURE_CLI)",
    ),
}
"""By the scheme of a cloud's addresses: the variables that lead to its store, and those that name
files, or addresses, of the machine where they are set."""


def store_environment(environ: Mapping[str, str], schemes: Collection[str]) -> dict[str, str]:
    """The variables that object stores are reached by, for another machine. They hold secrets.

    Those of the clouds with ``schemes``, as ``s3``, alone; none of a cloud whose credentials lie in
    files or at addresses of this machine.
    """
    return {
        name: value
        for scheme, (leading, own) in _STORES.items()
        if scheme in schemes and not _named(environ, own)
        for name, value in _named(environ, leading).items()
    }


def adopt_store_environment(given: Mapping[str, str], environ: MutableMapping[str, str]) -> None:
    """Take from another process what leads to object stores, all of a cloud's; log the names.

    A machine that has a variable of a cloud keeps to its own: halves of two lead nowhere.
    """
    taken: dict[str, str] = {}
    for leading, own in _STORES.values():
        if not _named(environ, f"{leading}|{own}"):
            taken |= _named(given, leading)
    if taken:
        environ.update(taken)
        structlog.get_logger().info("store_environment_of_the_driver", names=sorted(taken))


def _named(environ: Mapping[str, str], pattern: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if re.fullmatch(pattern, name)}


CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(quota: Path = CGROUP_QUOTA) -> int:
    """The CPUs that this process may use: of its affinity, and of its container's quota.

    ``quota`` is the file of cgroups version 2: microseconds a period, or max, and the period.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return max(1, min(cpus, int(allowed) // int(period)))
    except (OSError, ValueError):
        return cpus


KAFKA_LOG_EVERY_S = 30.0


def configure_logging(*, for_people: bool, level: int = logging.INFO) -> None:
    """Send events to stderr: as aligned text for people, as JSON lines for machines.

    The libraries' own logs go the same way, from warnings up; kafka-python's, which come with
    every attempt to reach a broker that is away, once in half a minute each. Called once by a
    program's entry point, never on import. ``level`` is the least important that is shown.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    handler: logging.Handler = _WholeLines()
    if for_people:
        renderer, handler = structlog.dev.ConsoleRenderer(colors=False), _CurrentStderr()
    structlog.configure(
        processors=[*shared, renderer] if for_people else [*shared, renderer, _encoded],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_args: (
            structlog.PrintLogger(sys.stderr) if for_people else _line_writer()
        ),
        cache_logger_on_first_use=False,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_SeldomKafka())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # It warns of every pause of a tenth of a second, which a busy machine has all the time.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)


class _SeldomKafka(logging.Filter):
    """Passes what one line of kafka-python's code says once in a while, and all else.

    When a client is closed, requests in flight are cancelled, and its thread may still want to read
    from a socket that is gone. Neither is an error, and neither is passed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed_at: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("kafka."):
            return True
        arguments = record.args if isinstance(record.args, tuple) else ()
        if any(type(argument).__name__ == "Cancelled" for argument in arguments):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if record.name == "kafka.net.transport" and isinstance(error, AttributeError):
            return False
        line = record.name, record.lineno
        if record.created - self._passed_at.get(line, float("-inf")) < KAFKA_LOG_EVERY_S:
            return False
        self._passed_at[line] = record.created
        return True


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at that moment: a live status line stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _line_writer() -> structlog.BytesLogger:
    """Writes whole lines beside those of others.

    Ray prints what an actor logs in two goes, the text and the end of its line, to ``sys.stderr``.
    What another thread printed there in between would be on that line. This goes past it.
    """
    return structlog.BytesLogger(sys.stderr.buffer)


def _encoded(_logger: object, _name: str, line: Any) -> bytes:
    return str(line).encode()


class _WholeLines(logging.Handler):
    """Writes what libraries log as `_line_writer` does."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _line_writer().msg(self.format(record).encode())
        except Exception:  # noqa: BLE001  as in logging's own handlers: no log ends a program
            self.handleError(record)
