"""RFC 3161 time stamps of checkpoints, against the TSA of the tests (the openssl program)."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_stream.clock import Deadline, ManualClock, SystemClock
from nap_stream.errors import ConfigError, ProofError
from nap_stream.metrics import Metrics
from nap_stream.monitor.signing import LogSigner
from nap_stream.scored_log.proof import timestamps
from nap_stream.scored_log.proof.checkpoint import FOLDER, read_checkpoints
from nap_stream.scored_log.proof.note import create_key
from nap_stream.scored_log.proof.timestamps import read_roots, request_timestamp, timestamp_ms
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.scored_log.verify.run import verify
from nap_stream.text import rfc3339
from tests.cli.program import call
from tests.scored_log.builders import CARS, NOON_MS, local_log
from tests.support.http_receiver import Answer, HttpReceiver
from tests.support.summaries import settings
from tests.support.tsa import HAS_OPENSSL, LocalTsa, local_tsa
from tests.support.waiting import PATIENCE_S

NOTE = b"a note\n"


@pytest.fixture(scope="module")
def tsa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTsa]:
    if not HAS_OPENSSL:
        pytest.skip("the openssl program is not here, which the TSA of the tests runs")
    with local_tsa(tmp_path_factory.mktemp("tsa") / "tsa") as found:
        yield found


@pytest.fixture(scope="module")
def other_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with local_tsa(tmp_path_factory.mktemp("other") / "tsa") as found:
        yield found.root


def test_a_token_says_when_the_tsa_saw_the_note(tsa: LocalTsa, other_root: Path) -> None:
    before_s = int(time.time())
    token = request_timestamp(tsa.url, NOTE)
    roots = read_roots(tsa.root, "--timestamps")
    assert before_s <= timestamp_ms(token, NOTE, roots) / 1000 <= time.time()
    for wrong, note, by in (
        (token, b"another note\n", roots),
        (token, NOTE, read_roots(other_root, "--timestamps")),
        (token[:-1] + bytes([token[-1] ^ 1]), NOTE, roots),
        (b"nonsense", NOTE, roots),
        (b"", NOTE, roots),
    ):
        with pytest.raises(ProofError, match="its time stamp is not valid"):
            timestamp_ms(wrong, note, by)


def test_a_tsa_that_answers_too_slowly_is_cut_off(
    tsa: LocalTsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Over(Deadline):
        def expired(self) -> bool:
            return True

    monkeypatch.setattr(timestamps, "Deadline", Over)
    with pytest.raises(ProofError, match="takes more than 30 s"):
        request_timestamp(tsa.url, NOTE)


def test_a_tsa_that_refuses_or_answers_with_something_else(tsa: LocalTsa) -> None:
    of_another = request_timestamp(tsa.url, b"another note\n")
    server = HttpReceiver()
    with server.listening():
        for answer, said in (
            (Answer(body=of_another), "has stamped something else"),
            (Answer(body=request_timestamp(tsa.url, NOTE)), "has stamped something else"),
            (Answer(status=503), "the TSA's answer, of status 503, is no token"),
            (Answer(status=302, headers={"Location": tsa.url}), "of status 302, is no token"),
            (Answer(body=b"x" * 2**21), "is no token"),
        ):
            server.answers.append(answer)
            with pytest.raises(ProofError, match=said):
                request_timestamp(server.url, NOTE)


def _signed(folder: Path, url: str | None, now_ms: int = NOON_MS) -> LogSigner:
    made = settings(
        log={
            "root": folder / "log",
            "checkpoints": {"key_file": folder / "key", "timestamp_url": url},
        }
    )
    signer = LogSigner(LocalStore(folder / "log"), made, Metrics("1"), ManualClock(now_ms))
    signer.tick()
    signer.finish(PATIENCE_S)
    return signer


def test_a_tsa_that_does_not_answer_is_told_and_holds_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timestamps, "TIMEOUT_S", 0.2)
    key = create_key(tmp_path / "key", "line-3")
    local_log(tmp_path / "log").begin(CARS, 0)
    server = HttpReceiver()
    with server.listening():
        pass
    signer = _signed(tmp_path, server.url)
    assert signer.failure is not None
    assert signer.failure.startswith("log.checkpoints.timestamp_url 127.0.0.1: the TSA does not")
    (found,) = read_checkpoints(LocalStore(tmp_path / "log"), [key], [])
    assert found.checkpoint is not None


def test_stamps_beside_checkpoints_are_verified(
    tsa: LocalTsa,
    other_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    key, store = create_key(tmp_path / "key", "line-3"), LocalStore(tmp_path / "log")
    local_log(tmp_path / "log").begin(CARS, 0)
    now_ms = SystemClock().now_ms()
    assert _signed(tmp_path, tsa.url, now_ms).failure is None
    note, token = sorted(store.names(FOLDER))
    assert (note[:-5], token[:-4], token[-4:]) == (token[:-4], note[:-5], ".tsr")
    heads = verify(store, clock=ManualClock()).heads
    assert verify(store, clock=ManualClock()).clean
    roots = read_roots(tsa.root, "--timestamps")

    def compared(by: Path) -> tuple[int, list[DefectKind]]:
        found = read_checkpoints(store, [key], [], read_roots(by, "--timestamps"))
        report = compare_with_checkpoints(store, heads, found, with_stamps=True)
        return len(report.stamps), [defect.kind for defect in report.defects]

    assert compared(tsa.root) == (1, [])
    assert compared(other_root) == (0, [DefectKind.CHECKPOINT])
    (found,) = read_checkpoints(store, [key], [], roots)
    assert found.stamped_ms is not None
    (tmp_path / "keys").write_text(str(key))
    arguments = ["verify", "--log", tmp_path / "log", "--checkpoints", tmp_path / "keys"]
    arguments += ["--timestamps", tsa.root]
    ended = call([str(each) for each in arguments], monkeypatch, capfd)
    assert ended.exit_code == 0
    assert "stamped 1 of 1 by a TSA, the last at 20" in ended.out
    assert f"{FOLDER}/{note}, signed as of {rfc3339(now_ms)}\n" in ended.out
    assert "; stamped until 0 at 20" in ended.out
    log = local_log(tmp_path / "log", clock=ManualClock(now_ms))
    log.publish(CARS, log.begin(CARS, 0), 3, [])
    assert _signed(tmp_path, None, now_ms + 1).failure is None
    ended = call([str(each) for each in arguments], monkeypatch, capfd)
    assert ended.exit_code == 0
    assert "stamped 1 of 2 by a TSA" in ended.out
    assert f"stamped not: {FOLDER}" in ended.out
    assert "cars/0: anchored until its end 3 at" in ended.out
    assert "; stamped until 0 at 20" in ended.out
    for each in (note, token):
        (tmp_path / "log" / FOLDER / each).unlink()
    ended = call([str(each) for each in arguments], monkeypatch, capfd)
    assert "stamped 0 of 1 by a TSA\n" in ended.out
    assert "cars/0: anchored until its end 3 at" in ended.out
    assert "; not stamped\n" in ended.out


def test_a_checkpoint_that_was_stamped_at_another_time_than_it_says(
    tsa: LocalTsa, tmp_path: Path
) -> None:
    key, store = create_key(tmp_path / "key", "line-3"), LocalStore(tmp_path / "log")
    local_log(tmp_path / "log").begin(CARS, 0)
    assert _signed(tmp_path, tsa.url).failure is None
    found = read_checkpoints(store, [key], [], read_roots(tsa.root, "--timestamps"))
    heads = verify(store, clock=ManualClock()).heads
    (defect,) = compare_with_checkpoints(store, heads, found, with_stamps=True).defects
    assert defect.kind is DefectKind.CHECKPOINT
    assert defect.detail.startswith("it says 2026-01-01T12:00:00.000Z, and was stamped at ")


def test_files_that_hold_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nonsense")
    for path, said in (("none.pem", "no certificates in PEM"), ("missing", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            read_roots(tmp_path / path, "--timestamps")
