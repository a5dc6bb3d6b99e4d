"""The line on a disk of its own that fills up, and that is mounted read-only: nothing is faked."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_stream.clock import SystemClock
from nap_stream.pipeline import waiting
from nap_stream.scored_log.filters import Query
from nap_stream.scored_log.local import LocalScoredLog
from nap_stream.scored_log.reader import scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify import verify
from nap_stream.source.memory import MemoryTopic
from tests.pipeline.bench import FIRST, Bench, Script, nothing, waits

DISK_BYTES = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    if made.returncode != 0:
        pytest.skip(f"no file system of its own: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def bench(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(waiting, "BACKOFF_INITIAL_S", 0.05)
    monkeypatch.setattr("nap_stream.pipeline.line.REPORT_EVERY_S", 0.02)
    return Bench(
        MemoryTopic("images", 1),
        open_log=lambda: LocalScoredLog(
            disk / "log",
            writer_id="worker-0",
            model_fingerprint="0" * 64,
            calibration_fingerprint="1" * 64,
            clock=SystemClock(),
        ),
    )


def mount(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["mount", *arguments], check=False, capture_output=True)


def fill(bench: Bench, count: int) -> None:
    for _ in range(count):
        bench.topic.append(FIRST, b"g")


def require_all(root: Path, count: int) -> None:
    batches = scan(store_at(root), Query(topic="images"), ("offset",))
    offsets = sorted(row["offset"] for batch in batches for row in batch.to_pylist())
    assert offsets == list(range(count))
    assert verify(store_at(root), deep=True).defects == ()


def test_a_disk_that_fills_up_is_waited_for(bench: Bench, disk: Path) -> None:
    ballast = disk / "ballast"

    def fill_up() -> None:
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"\0" * 2 * DISK_BYTES)
        fill(bench, 20)

    fill(bench, 20)
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 20, fill_up),
            (lambda: waits(bench, "disk is full"), lambda: fill(bench, 500)),
            (lambda: bench.told.reports[-1].waiting_for is not None, ballast.unlink),
            (lambda: bench.topic.committed.get(FIRST) == 540, nothing),
        ]
    )

    bench.run(script)

    require_all(disk / "log", 540)


def test_a_disk_that_becomes_read_only_is_waited_for(bench: Bench, disk: Path) -> None:
    def remount(how: str) -> None:
        mount("-o", f"remount,{how}", str(disk)).check_returncode()

    fill(bench, 20)
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 20, lambda: remount("ro")),
            (lambda: True, lambda: fill(bench, 20)),
            (lambda: waits(bench, "Read-only file system"), lambda: remount("rw")),
            (lambda: bench.topic.committed.get(FIRST) == 40, nothing),
        ]
    )

    bench.run(script)

    require_all(disk / "log", 40)


def test_a_disk_that_is_full_from_the_start_is_waited_for(bench: Bench, disk: Path) -> None:
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(b"\0" * 2 * DISK_BYTES)
    fill(bench, 20)
    script = Script(
        [
            (lambda: waits(bench, "disk is full"), ballast.unlink),
            (lambda: bench.topic.committed.get(FIRST) == 20, nothing),
        ]
    )

    bench.run(script)

    require_all(disk / "log", 20)
