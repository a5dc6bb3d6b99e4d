"""What signals do, and what the log shows and how often."""

import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import structlog
from kafka.errors import Cancelled

from nap_stream.process import (
    adopt_store_environment,
    available_cpus,
    configure_logging,
    note_hangups,
    noted_signals,
    stop_on_signals,
    store_environment,
)
from tests.support.logs import kept_logging
from tests.support.waiting import PATIENCE_S

EVERY_CPU = len(os.sched_getaffinity(0))
NUMBERS = (signal.SIGTERM, signal.SIGINT)


def _own_handler(number: int, _frame: FrameType | None) -> None:
    raise AssertionError(f"the handler from before got signal {number}")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Handlers that are neither the system's nor Python's, put back at the end."""
    before = {number: signal.signal(number, _own_handler) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert not stop.is_set()
        _send(number)
        assert stop.wait(PATIENCE_S)


def test_a_signal_is_noted_whatever_became_of_it() -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    before = signal.set_wakeup_fd(-1)
    with noted_signals() as signals:
        assert signals() == set()
        _send(signal.SIGTERM)
        assert signals() == {signal.SIGTERM}
        with pytest.raises(AssertionError):
            _send(signal.SIGINT)
        assert signals() == {*NUMBERS}
    assert signal.set_wakeup_fd(before) == -1


def test_a_second_interrupt_does_not_wait() -> None:
    with stop_on_signals() as stop:
        _send(signal.SIGINT)
        assert stop.wait(PATIENCE_S)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_a_termination_does_not_wait() -> None:
    with stop_on_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_further_terminations_change_nothing() -> None:
    with stop_on_signals() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def test_a_hangup_is_noted_each_time() -> None:
    # Under nohup it is ignored, which is another case.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with note_hangups() as asked:
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
                assert asked.is_set()
                asked.clear()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


IGNORED = """
import signal, subprocess, sys
from nap_stream.process import note_hangups

with note_hangups() as early:
    # Ray's processes are started here.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        state = open(f"/proc/{child.pid}/status").read()
    bits = int(state.partition("SigIgn:")[2].split()[0], 16)
    signal.raise_signal(signal.SIGHUP)
    with note_hangups(early) as asked:
        before = asked.is_set()
        signal.raise_signal(signal.SIGHUP)
        print(bool(bits & 1 << signal.SIGHUP - 1), before, asked.is_set())
print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there /proc tells")
def test_what_is_started_under_nohup_ignores_hangups_too() -> None:
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", IGNORED]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    assert ended.stdout.split() == [b"True", b"False", b"True", b"True"]


ON_A_TERMINAL = """
import os, signal, sys, time
from nap_stream.process import note_hangups

said = int(sys.argv[1])
with note_hangups() as early, note_hangups(early) as asked:
    signal.raise_signal(signal.SIGHUP)
    os.write(said, b"asked, " if asked.is_set() else b"not asked, ")
    asked.clear()
    # So that it comes neither before it is waited for nor never.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    os.write(1, b"ready")
    while signal.SIGHUP not in signal.sigpending():
        time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    os.write(said, b"asked" if asked.is_set() else b"lives on")
"""


@pytest.mark.parametrize(
    ("under", "said", "ends"),
    [(signal.SIG_DFL, b"asked, ", -signal.SIGHUP), (signal.SIG_IGN, b"lives on", 0)],
    ids=["", "nohup"],
)
def test_a_program_ends_with_its_terminal_and_not_with_a_hangup_alone(
    under: signal.Handlers, said: bytes, ends: int
) -> None:
    reads, writes = os.pipe()
    command = [sys.executable, "-c", ON_A_TERMINAL, str(writes)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.set_inheritable(writes, True)
        signal.signal(signal.SIGHUP, under)
        os.execv(command[0], command)
    os.close(writes)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    _, ended = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended) == ends
    with os.fdopen(reads, "rb") as told:
        assert told.read().endswith(said)


def test_handlers_from_before_come_back() -> None:
    with stop_on_signals():
        assert all(signal.getsignal(number) is not _own_handler for number in NUMBERS)
    assert all(signal.getsignal(number) is _own_handler for number in NUMBERS)


def test_handlers_from_before_come_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="in the block"), stop_on_signals():
        raise RuntimeError("in the block")
    assert all(signal.getsignal(number) is _own_handler for number in NUMBERS)


def test_each_block_has_a_flag_of_its_own() -> None:
    with stop_on_signals() as first:
        signal.raise_signal(signal.SIGTERM)
    with stop_on_signals() as second:
        assert not second.is_set()
    assert first.is_set()


def test_threads_other_than_the_main_one_are_refused() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with stop_on_signals():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert all(signal.getsignal(number) is _own_handler for number in NUMBERS)


@pytest.fixture
def configured() -> Iterator[None]:
    with kept_logging():
        configure_logging(for_people=False)
        yield


def events(text: str, *wanted: str) -> list[str]:
    """The events that begin so; threads of other tests may log too."""
    lines = [json.loads(line)["event"] for line in text.splitlines() if line.startswith("{")]
    return [event for event in lines if event.startswith(wanted)]


@pytest.mark.usefixtures("configured")
def test_what_kafka_says_with_every_attempt_is_shown_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for attempt in range(3):
        logging.getLogger("kafka.net.manager").error("connection failed, attempt %s", attempt)
    logging.getLogger("kafka.net.manager").error("something else")

    assert events(capsys.readouterr().err, "connection failed", "something") == [
        "connection failed, attempt 0",
        "something else",
    ]


@pytest.mark.usefixtures("configured")
def test_what_is_cancelled_when_a_client_is_closed_is_no_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("kafka.cluster").error("refresh: failed %s", Cancelled())
    logging.getLogger("kafka.cluster").error("refresh: failed %s", TimeoutError())

    assert len(events(capsys.readouterr().err, "refresh")) == 1


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (AttributeError("'NoneType' object has no attribute 'recv'"), 0),
        (ConnectionResetError(104, "Connection reset by peer"), 1),
    ],
)
def test_a_socket_that_a_closing_client_has_taken_away_is_no_error(
    error: Exception, shown: int, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("kafka.net.transport").error("receiving failed", exc_info=error)

    assert len(events(capsys.readouterr().err, "receiving failed")) == shown


@pytest.mark.usefixtures("configured")
def test_everybody_else_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in range(2):
        logging.getLogger("somebody").warning("attempt %s", attempt)
        structlog.get_logger().warning("mine")

    assert events(capsys.readouterr().err, "attempt", "mine") == [
        "attempt 0",
        "mine",
        "attempt 1",
        "mine",
    ]


@pytest.mark.usefixtures("configured")
def test_what_others_print_in_two_goes_is_on_no_line_of_an_event(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `print` does, and Ray with it, while another thread logs."""
    with (tmp_path / "stderr").open("w", buffering=1) as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        stderr.write("what an actor said")
        structlog.get_logger().info("ours")
        logging.getLogger("somebody").warning("of a library")
        stderr.write("\n")

    lines = (tmp_path / "stderr").read_text().splitlines()
    assert "what an actor said" in lines
    assert len(lines) == 3
    assert events("\n".join(lines), "ours", "of a library") == ["ours", "of a library"]


@pytest.mark.parametrize(
    ("content", "cpus"),
    [
        ("max 100000\n", EVERY_CPU),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("900000000 100000\n", EVERY_CPU),
        ("not what it was\n", EVERY_CPU),
    ],
)
def test_a_containers_quota_limits_the_cpus(tmp_path: Path, content: str, cpus: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    assert available_cpus(quota) == cpus


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "cpu.max") == EVERY_CPU


KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "here"}
GOOGLE = {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"hush": 1}', "GOOGLE_BASE_URL": "http://hush"}
AZURE = {
    "AZURE_STORAGE_ACCOUNT_NAME": "hush-account",
    "AZURE_STORAGE_ACCOUNT_KEY": "hush-key",
    "AZURE_STORAGE_SAS_TOKEN": "hush-sas",
    "AZURE_CLIENT_SECRET": "hush-secret",
    "AZURE_STORAGE_ENDPOINT": "http://hush",
}
ALL = {"s3", "gs", "az"}


@pytest.mark.parametrize(
    ("own", "then"),
    [
        ({}, KEYS),
        ({"AWS_CA_BUNDLE": "/ca.pem"}, {"AWS_CA_BUNDLE": "/ca.pem", **KEYS}),
        ({"AWS_REGION": "there"}, {"AWS_REGION": "there"}),
        ({"AWS_PROFILE": "own"}, {"AWS_PROFILE": "own"}),
        ({"AWS_ACCESS_KEY_ID": "own"}, {"AWS_ACCESS_KEY_ID": "own"}),
    ],
)
def test_a_machine_without_keys_takes_those_of_another(
    own: dict[str, str], then: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"HOME": "/home", **own}
    adopt_store_environment(store_environment({"PATH": "/bin", **KEYS}, {"s3"}), environ)
    assert environ == {"HOME": "/home", **then}
    assert "secret" not in capsys.readouterr().out.replace("SECRET", "")


def test_what_lies_on_one_machine_is_not_handed_to_another() -> None:
    token = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "AWS_ROLE_ARN": "arn"}
    for own in ({"AWS_CONFIG_FILE": "/config"}, {"AWS_PROFILE": "mine"}, token):
        assert store_environment({**KEYS, **own}, ALL) == {}
    assert store_environment({**KEYS, "AWS_CA_BUNDLE": "/ca.pem"}, ALL) == KEYS
    for cloud, own in (
        (GOOGLE, {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json"}),
        (GOOGLE, {"GOOGLE_SERVICE_ACCOUNT": "/key.json"}),
        (AZURE, {"AZURE_FEDERATED_TOKEN_FILE": "/var/run/token", "AZURE_TENANT_ID": "tenant"}),
        (AZURE, {"AZURE_USE_AZURE_CLI": "true"}),
    ):
        assert store_environment({**cloud, **own, **KEYS}, ALL) == KEYS


def test_of_a_cloud_that_is_not_used_nothing_is_handed_on() -> None:
    there = {**KEYS, **GOOGLE, **AZURE}
    for scheme, keys in (("s3", KEYS), ("gs", GOOGLE), ("az", AZURE)):
        assert store_environment(there, {scheme}) == keys
    assert store_environment(there, ()) == {}


@pytest.mark.parametrize("keys", [GOOGLE, AZURE], ids=["google", "azure"])
def test_each_cloud_is_taken_for_itself(
    keys: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    there = {**KEYS, **keys, "GOOGLE_CLOUD_PROJECT": "x", "AZURE_HTTP": "x"}
    given = store_environment(there, ALL)
    assert given == {**KEYS, **keys}
    environ = {"AWS_PROFILE": "own"}
    adopt_store_environment(given, environ)
    assert environ == {"AWS_PROFILE": "own", **keys}
    environ = dict.fromkeys(keys, "own")
    adopt_store_environment(given, environ)
    assert environ == {**dict.fromkeys(keys, "own"), **KEYS}
    shown = capsys.readouterr()
    assert not any(value in shown.out + shown.err for value in keys.values())
