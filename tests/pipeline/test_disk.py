"""The line on a disk of its own that fills up, and that is mounted read-only: nothing is faked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nap_stream.clock import SystemClock
from nap_stream.pipeline import waiting
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.pipeline.bench import FIRST, Bench, Script, nothing, waits
from tests.support.doubles import MemoryTopic
from tests.support.scored_records import RecordLog
from tests.support.small_disk import SmallDisk, mounted_disk

DISK_BYTES = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted_disk(tmp_path / "disk", DISK_BYTES) as disk:
        yield disk


@pytest.fixture
def bench(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(waiting, "BACKOFF_INITIAL_S", 0.05)
    monkeypatch.setattr("nap_stream.pipeline.line.REPORT_EVERY_S", 0.02)
    return Bench(
        MemoryTopic("images", 1),
        open_log=lambda: RecordLog(
            LocalStore(disk.folder / "log"),
            WriterIdentity("worker-0", "0" * 64, "1" * 64),
            SystemClock(),
        ),
    )


def fill(bench: Bench, count: int) -> None:
    for _ in range(count):
        bench.topic.append(FIRST, b"g")


def require_all(root: Path, count: int) -> None:
    batches = scan(store_at(root), Query(topic="images"), ("offset",))
    offsets = sorted(row["offset"] for batch in batches for row in batch.to_pylist())
    assert offsets == list(range(count))
    assert verify(store_at(root), deep=True).defects == ()


def test_a_disk_that_fills_up_is_waited_for(bench: Bench, disk: SmallDisk) -> None:
    ballast = disk.folder / "ballast"

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

    require_all(disk.folder / "log", 540)


def test_a_disk_that_becomes_read_only_is_waited_for(bench: Bench, disk: SmallDisk) -> None:
    fill(bench, 20)
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 20, lambda: disk.remount("ro")),
            (lambda: True, lambda: fill(bench, 20)),
            (lambda: waits(bench, "Read-only file system"), lambda: disk.remount("rw")),
            (lambda: bench.topic.committed.get(FIRST) == 40, nothing),
        ]
    )

    bench.run(script)

    require_all(disk.folder / "log", 40)


def test_a_disk_that_is_full_from_the_start_is_waited_for(bench: Bench, disk: SmallDisk) -> None:
    ballast = disk.folder / "ballast"
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

    require_all(disk.folder / "log", 20)
