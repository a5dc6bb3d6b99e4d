import errno
import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, LogRootError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.format import temporary_name
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS, LocalStore, PosixOperations
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, NOON_MS, chain, local_log, origin, scored
from tests.scored_log.failing_operations import FailingOperations
from tests.scored_log.racing import race
from tests.support.log_files import read_footer
from tests.support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

FOLDER = "topic=cars/partition=0"


def test_two_processes_race_for_every_segment_and_one_wins_each(tmp_path: Path) -> None:
    rounds = 40
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    won_by: Queue[tuple[str, list[int]]] = context.Queue()
    racers = [
        context.Process(target=race, args=(tmp_path, name, start, rounds, won_by), daemon=True)
        for name in ("a", "b")
    ]
    for racer in racers:
        racer.start()
    won = dict(won_by.get(timeout=PATIENCE_S) for _ in racers)
    for racer in racers:
        racer.join(PATIENCE_S)
        assert racer.exitcode == 0
    assert sorted(won["a"] + won["b"]) == list(range(rounds))
    report = verify(LocalStore(tmp_path), deep=True)
    assert report.clean, report.defects
    assert (report.segments, report.rows) == (rounds, rounds)
    for base in range(rounds):
        winner = read_footer(LocalStore(tmp_path), f"{FOLDER}/{base:020d}.parquet").writer_id
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
    assert verify(LocalStore(tmp_path)).clean
    clock.advance(0.001)
    assert log.end(CARS) == position
    assert not leftover.exists()
    assert log.publish(CARS, position, 5, []).base_offset == 3


def test_a_root_below_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "log"
    with pytest.raises(LogRootError, match="not a usable folder"):
        check_store(store_at(root))
    with pytest.raises(LogRootError, match="not a usable folder"):
        local_log(root).begin(CARS, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_root_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(LogRootError, match="no permission"):
            check_store(store_at(tmp_path))
    finally:
        tmp_path.chmod(0o755)


def test_a_read_only_file_system_is_refused() -> None:
    with pytest.raises(LogRootError):
        check_store(store_at(Path("/proc/nap-stream-log")))


def test_a_writable_root_is_made_and_left_empty(tmp_path: Path) -> None:
    check_store(store_at(tmp_path / "a" / "log"))

    assert list((tmp_path / "a" / "log").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, number: int) -> None:
    disk = FailingOperations()
    disk.fail("link", number)
    with pytest.raises(LogRootError, match=r"makes no hard links.*NFSv4"):
        check_store(LocalStore(tmp_path, disk))


def test_a_file_system_whose_link_replaces_is_refused(tmp_path: Path) -> None:
    class Replacing(PosixOperations):
        def link(self, temporary: Path, final: Path) -> None:
            temporary.replace(final)

    with pytest.raises(LogRootError, match="not created exclusively"):
        check_store(LocalStore(tmp_path, Replacing()))


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
    assert read_footer(LocalStore(tmp_path), published.path).created_time_ms == NOON_MS + 77
