import errno
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.records import TopicPartition
from nap_stream.scored_log import local_store
from nap_stream.scored_log.layout import temporary_name
from nap_stream.scored_log.local import LEFTOVER_AGE_MS, check_writable
from nap_stream.scored_log.reader import read_footer
from nap_stream.scored_log.verify import verify
from tests.scored_log.builders import CARS, NOON_MS, chain, local_log, origin, scored
from tests.scored_log.racing import race

FOLDER = "topic=cars/partition=0"


def test_two_processes_race_for_every_segment_and_one_wins_each(tmp_path: Path) -> None:
    rounds = 40
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as pool:
        start = manager.Barrier(2)
        a, b = (
            pool.submit(race, tmp_path, name, start, rounds)  # type: ignore[arg-type] # a proxy
            for name in ("a", "b")
        )
        won = {"a": a.result(120), "b": b.result(120)}
    assert sorted(won["a"] + won["b"]) == list(range(rounds))
    report = verify(tmp_path, deep=True)
    assert report.clean, report.defects
    assert (report.segments, report.rows) == (rounds, rounds)
    for base in range(rounds):
        winner = read_footer(tmp_path, f"{FOLDER}/{base:020d}.parquet").writer_id
        assert base in won[winner]


def test_nothing_but_the_chain_is_left_in_the_folder(tmp_path: Path) -> None:
    chain(tmp_path, [(3, [scored(origin(0))]), (7, [scored(origin(3))])])
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "00000000000000000000.parquet",
        "00000000000000000003.parquet",
        "_genesis.json",
    ]


def test_a_file_on_its_own_says_whose_it_is(tmp_path: Path) -> None:
    dogs = TopicPartition("dogs", 4)
    (path,) = chain(tmp_path, [(3, [scored(origin(0, partition=dogs))])], dogs)
    metadata = pq.read_metadata(tmp_path / path).metadata
    assert metadata[b"nap_stream.topic"] == b"dogs"
    assert metadata[b"nap_stream.partition"] == b"4"


def test_a_temporary_file_of_a_crash_does_no_harm_and_goes_when_it_is_old(tmp_path: Path) -> None:
    chain(tmp_path, [(3, [scored(origin(0))])])
    leftover = tmp_path / FOLDER / temporary_name()
    leftover.write_bytes(b"PAR1 half a segment")
    os.utime(leftover, ns=(0, NOON_MS * 1_000_000))
    clock = ManualClock(NOON_MS + LEFTOVER_AGE_MS)
    log = local_log(tmp_path, clock=clock)
    position = log.end(CARS)
    assert position is not None
    assert leftover.exists()
    assert verify(tmp_path).clean
    clock.advance(0.001)
    assert log.end(CARS) == position
    assert not leftover.exists()
    assert log.publish(CARS, position, 5, []).base_offset == 3


def test_a_crash_before_the_link_leaves_the_base_offset_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = local_log(tmp_path)
    position = log.begin(CARS, 0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", die)
        with pytest.raises(KeyboardInterrupt):
            log.publish(CARS, position, 3, [scored(origin(0))])
    assert log.end(CARS) == position
    log.publish(CARS, position, 3, [scored(origin(0))])
    assert verify(tmp_path).clean


def test_a_lost_answer_to_a_link_that_was_made_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = local_log(tmp_path)
    position = log.begin(CARS, 0)
    link = os.link

    def lose_the_answer(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", lose_the_answer)
        published = log.publish(CARS, position, 3, [scored(origin(0))])
    assert log.end(CARS) == published.position


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, ScoredLogError, "the disk is full.*Free space"),
        (errno.EROFS, LogRootError, "no permission"),
        (errno.EIO, ScoredLogError, "the file system failed.*Check the disk"),
    ],
)
def test_a_failing_disk_is_a_typed_error_and_publishes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[ScoredLogError],
    message: str,
) -> None:
    log = local_log(tmp_path)
    position = log.begin(CARS, 0)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=message):
            log.publish(CARS, position, 3, [scored(origin(0))])
    assert log.end(CARS) == position
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["_genesis.json"]


def test_publishing_again_after_a_failure_that_came_too_late_is_a_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = local_log(tmp_path)
    position = log.begin(CARS, 0)

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(local_store, "_fsync_folder", fail)
        with pytest.raises(ScoredLogError, match="the file system failed"):
            log.publish(CARS, position, 3, [scored(origin(0))])
    with pytest.raises(SegmentConflictError):
        log.publish(CARS, position, 3, [scored(origin(0))])
    end = log.end(CARS)
    assert end is not None
    assert end.offset == 3


def test_a_root_below_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "log"
    with pytest.raises(LogRootError, match="not a usable folder"):
        check_writable(root)
    with pytest.raises(LogRootError, match="not a usable folder"):
        local_log(root).begin(CARS, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_root_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(LogRootError, match="no permission"):
            check_writable(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_file_system_is_refused() -> None:
    with pytest.raises(LogRootError):
        check_writable(Path("/proc/nap-stream-log"))


def test_a_writable_root_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "log")
    local_log(tmp_path / "a" / "log").check_writable()
    assert list((tmp_path / "a" / "log").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LogRootError, match=r"makes no hard links.*NFSv4"):
        check_writable(tmp_path)


def test_a_file_system_whose_link_replaces_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(LogRootError, match="does not create files exclusively"):
        check_writable(tmp_path)


def test_a_chain_without_its_marker_is_broken(tmp_path: Path) -> None:
    chain(tmp_path, [(3, [scored(origin(0))])])
    (tmp_path / FOLDER / "_genesis.json").unlink()
    with pytest.raises(ChainBrokenError, match="genesis marker is missing"):
        local_log(tmp_path).begin(CARS, 0)


def test_a_last_segment_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    _, last = chain(tmp_path, [(3, [scored(origin(0))]), (5, [])])
    (tmp_path / last).write_bytes(b"PAR1")
    with pytest.raises(ChainBrokenError, match="cannot be read") as caught:
        local_log(tmp_path).end(CARS)
    assert caught.value.where == last


def test_a_renamed_last_segment_is_named(tmp_path: Path) -> None:
    (path,) = chain(tmp_path, [(3, [scored(origin(0))])])
    (tmp_path / path).rename(tmp_path / FOLDER / f"{9:020d}.parquet")
    with pytest.raises(ChainBrokenError, match="the footer says cars/0@0"):
        local_log(tmp_path).end(CARS)


def test_a_marker_after_the_segments_is_named(tmp_path: Path) -> None:
    chain(tmp_path, [(3, [scored(origin(0))])])
    marker = tmp_path / FOLDER / "_genesis.json"
    marker.write_bytes(marker.read_bytes().replace(b'"offset": 0', b'"offset": 4'))
    with pytest.raises(ChainBrokenError, match="before the chain's start at 4"):
        local_log(tmp_path).end(CARS)


def test_files_say_when_they_were_made(tmp_path: Path) -> None:
    log = local_log(tmp_path, clock=ManualClock(NOON_MS + 77))
    published = log.publish(CARS, log.begin(CARS, 0), 1, [])
    assert read_footer(tmp_path, published.path).created_time_ms == NOON_MS + 77
