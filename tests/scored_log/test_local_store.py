"""The local store on a disk that fails, and where its process dies: at every step."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.records import ChainPosition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.format import is_temporary
from nap_stream.scored_log.stores import check_store
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS, LocalStore
from tests.scored_log.builders import CALIBRATION, CARS, MODEL, NOON_MS, origin, scored
from tests.scored_log.failing_operations import FailingOperations, Killed
from tests.support.scored_records import RecordLog
from tests.support.small_disk import SmallDisk, mounted_disk

FOLDER = "topic=cars/partition=0"
PATH = f"{FOLDER}/{0:020d}.parquet"
FAR_FUTURE_MS = 2**42


@dataclass(frozen=True, slots=True)
class Failure:
    """An errno, and the error that it must become."""

    number: int
    kind: type[ScoredLogError]
    message: str


FAILURES = (
    Failure(errno.ENOSPC, ScoredLogError, "the disk is full.*Free space"),
    Failure(errno.EDQUOT, ScoredLogError, "the disk is full"),
    Failure(errno.EROFS, LogRootError, "no permission"),
    Failure(errno.EACCES, LogRootError, "no permission"),
    Failure(errno.EMFILE, ScoredLogError, "no file can be opened.*ulimit"),
    Failure(errno.EIO, ScoredLogError, "the file system failed.*Check the disk"),
)


@pytest.fixture(params=FAILURES, ids=lambda failure: errno.errorcode[failure.number])
def failure(request: pytest.FixtureRequest) -> Failure:
    found: Failure = request.param
    return found


@pytest.fixture
def disk() -> FailingOperations:
    return FailingOperations()


@pytest.fixture
def store(tmp_path: Path, disk: FailingOperations) -> LocalStore:
    made = LocalStore(tmp_path, disk)
    made.prepare(FOLDER)
    return made


def log_on(root: Path, disk: FailingOperations | None = None) -> RecordLog:
    return RecordLog(
        LocalStore(root, disk), WriterIdentity("worker-0", MODEL, CALIBRATION), ManualClock(NOON_MS)
    )


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / FOLDER).iterdir())


def test_the_steps_of_each_operation(store: LocalStore, disk: FailingOperations) -> None:
    disk.done.clear()
    store.create(PATH, b"1")
    assert disk.done == ["create", "write", "fsync", "link", "fsync_folder", "unlink"]
    disk.done.clear()
    store.replace(PATH, b"2")
    assert disk.done == ["create", "write", "fsync", "rename", "fsync_folder", "unlink"]
    disk.done.clear()
    store.remove([PATH, f"{FOLDER}/missing"])
    assert disk.done == ["unlink", "unlink", "fsync_folder"]


@pytest.mark.parametrize("step", ["create", "write", "fsync", "link"])
def test_a_file_that_cannot_be_made_durable_is_not_there_and_can_be_made_again(
    store: LocalStore,
    disk: FailingOperations,
    tmp_path: Path,
    step: str,
    failure: Failure,
) -> None:
    disk.fail(step, failure.number)
    with pytest.raises(failure.kind, match=failure.message) as caught:
        store.create(PATH, b"content")
    assert caught.value.where == str(tmp_path / PATH)
    assert files(tmp_path) == []
    assert store.create(PATH, b"content")
    assert store.read(PATH) == b"content"
    assert files(tmp_path) == [f"{0:020d}.parquet"]


def test_where_only_the_folder_failed_the_next_attempt_says_that_the_name_is_taken(
    store: LocalStore,
    disk: FailingOperations,
    tmp_path: Path,
    failure: Failure,
) -> None:
    disk.fail("fsync_folder", failure.number)
    with pytest.raises(failure.kind, match=failure.message):
        store.create(PATH, b"content")
    assert files(tmp_path) == [f"{0:020d}.parquet"]
    disk.synced.clear()
    assert not store.create(PATH, b"content")
    assert disk.synced[-1] == str(tmp_path / FOLDER)
    assert store.read(PATH) == b"content"


def test_a_name_that_is_taken_is_not_conceded_before_that_is_durable(
    store: LocalStore, disk: FailingOperations
) -> None:
    store.create(PATH, b"the winner's")
    disk.fail("fsync_folder", errno.EIO)
    with pytest.raises(ScoredLogError, match="the file system failed"):
        store.create(PATH, b"the loser's")
    assert not store.create(PATH, b"the loser's")


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_file_whose_fsync_failed_is_never_synced_again(
    store: LocalStore, disk: FailingOperations, step: str
) -> None:
    disk.synced.clear()
    for write in (store.create, store.replace):
        disk.fail(step, errno.EIO)
        with pytest.raises(ScoredLogError):
            write(PATH, b"content")
        write(PATH, b"content")
    synced = [path for path in disk.synced if is_temporary(Path(path).name)]
    assert len(synced) == len(set(synced)) == (4 if step == "fsync" else 2)


@pytest.mark.parametrize("after", [False, True])
def test_a_link_whose_answer_is_lost_is_asked_after(
    store: LocalStore, disk: FailingOperations, *, after: bool
) -> None:
    if not after:
        store.create(PATH, b"the winner's")
    disk.fail("link", errno.EEXIST, after=after)
    assert store.create(PATH, b"mine") is after
    assert store.read(PATH) == (b"mine" if after else b"the winner's")


def test_a_winner_that_compaction_has_removed_meanwhile_is_still_a_winner(
    store: LocalStore, disk: FailingOperations, tmp_path: Path
) -> None:
    disk.fail("link", errno.EEXIST)
    assert not store.create(PATH, b"the loser's")
    assert files(tmp_path) == []


@pytest.mark.parametrize("step", ["create", "write", "fsync", "rename", "fsync_folder"])
def test_replacing_leaves_the_old_or_the_new(
    store: LocalStore,
    disk: FailingOperations,
    tmp_path: Path,
    step: str,
    failure: Failure,
) -> None:
    store.create(PATH, b"old")
    disk.fail(step, failure.number)
    with pytest.raises(failure.kind, match=failure.message):
        store.replace(PATH, b"new")
    assert store.read(PATH) == (b"new" if step == "fsync_folder" else b"old")
    assert files(tmp_path) == [f"{0:020d}.parquet"]
    store.replace(PATH, b"new")
    assert store.read(PATH) == b"new"


@pytest.mark.parametrize("step", ["unlink", "fsync_folder"])
def test_removing_goes_on_where_it_failed(
    store: LocalStore,
    disk: FailingOperations,
    tmp_path: Path,
    step: str,
    failure: Failure,
) -> None:
    paths = [f"{FOLDER}/{name}" for name in "abc"]
    for path in paths:
        store.create(path, b"1")
    disk.fail(step, failure.number)
    with pytest.raises(failure.kind, match=failure.message):
        store.remove(paths)
    assert files(tmp_path) == (["a", "b", "c"] if step == "unlink" else [])
    disk.synced.clear()
    store.remove(paths)
    assert files(tmp_path) == []
    assert disk.synced == [str(tmp_path / FOLDER)]


@pytest.mark.parametrize("step", ["mkdir", "fsync_folder"])
def test_a_folder_that_cannot_be_made_can_be_made_again(
    tmp_path: Path,
    disk: FailingOperations,
    step: str,
    failure: Failure,
) -> None:
    store = LocalStore(tmp_path / "a" / "log", disk)
    disk.fail(step, failure.number)
    with pytest.raises(failure.kind, match=failure.message):
        store.prepare(FOLDER)
    store.prepare(FOLDER)
    assert store.create(PATH, b"1")


def test_folders_are_synced_also_where_another_writer_made_them_and_died(
    tmp_path: Path, disk: FailingOperations
) -> None:
    root = tmp_path / "a" / "log"
    LocalStore(root).prepare(FOLDER)
    LocalStore(root, disk).prepare(FOLDER)
    assert disk.synced == [str(root / "topic=cars"), str(root)]
    disk.synced.clear()
    LocalStore(tmp_path / "b" / "log", disk).prepare("")
    assert disk.synced == [str(tmp_path / "b"), str(tmp_path)]


def test_a_temporary_file_that_cannot_be_removed_is_no_failure(
    store: LocalStore, disk: FailingOperations, tmp_path: Path
) -> None:
    disk.fail("unlink", errno.EIO)
    assert store.create(PATH, b"content")
    leftovers = [name for name in files(tmp_path) if is_temporary(name)]
    assert len(leftovers) == 1
    assert store.remove_leftovers(FOLDER, FAR_FUTURE_MS) == 1
    assert files(tmp_path) == [f"{0:020d}.parquet"]


@pytest.mark.parametrize("steps", range(7))
def test_a_process_that_dies_at_any_step_leaves_a_name_that_is_free_or_whole(
    store: LocalStore, disk: FailingOperations, tmp_path: Path, steps: int
) -> None:
    disk.kill_after(steps)
    with contextlib.suppress(Killed):
        store.create(PATH, b"content")
    successor = LocalStore(tmp_path)
    assert successor.read(PATH) == (b"content" if steps >= 4 else None)
    assert successor.create(PATH, b"other") is (steps < 4)
    assert successor.remove_leftovers(FOLDER, FAR_FUTURE_MS) == int(1 <= steps <= 5)
    assert files(tmp_path) == [f"{0:020d}.parquet"]


@pytest.mark.parametrize("steps", range(7))
def test_a_process_that_dies_while_it_replaces_leaves_the_old_or_the_new(
    store: LocalStore, disk: FailingOperations, tmp_path: Path, steps: int
) -> None:
    store.create(PATH, b"old")
    disk.kill_after(steps)
    with contextlib.suppress(Killed):
        store.replace(PATH, b"new")
    successor = LocalStore(tmp_path)
    assert successor.read(PATH) == (b"new" if steps >= 4 else b"old")
    assert successor.remove_leftovers(FOLDER, FAR_FUTURE_MS) == int(1 <= steps <= 3)


def offsets(root: Path) -> list[int]:
    found: list[int] = []
    for path in sorted((root / FOLDER).glob("*.parquet")):
        found += pq.ParquetFile(path).read(["offset"]).column("offset").to_pylist()
    return found


def publish_on(log: RecordLog, position: ChainPosition, end: int) -> ChainPosition:
    """Publish up to an offset, one segment an offset, as a worker does: with retries."""
    while position.offset < end:
        rows = [scored(origin(position.offset))]
        try:
            position = log.publish(CARS, position, position.offset + 1, rows).position
        except SegmentConflictError:
            found = log.end(CARS)
            assert found is not None
            position = found
        except ScoredLogError:
            continue
    return position


@pytest.mark.parametrize("step", ["create", "write", "fsync", "link", "fsync_folder", "unlink"])
def test_a_disk_that_fails_for_a_while_costs_no_row_and_doubles_none(
    tmp_path: Path, disk: FailingOperations, step: str
) -> None:
    log = log_on(tmp_path, disk)
    position = publish_on(log, log.begin(CARS, 0), 2)
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS):
        disk.fail(step, number)
    assert publish_on(log, position, 6).offset == 6
    assert offsets(tmp_path) == list(range(6))


@pytest.mark.parametrize("steps", range(14))
def test_a_writer_that_dies_at_any_step_costs_no_row_and_doubles_none(
    tmp_path: Path, disk: FailingOperations, steps: int
) -> None:
    log = log_on(tmp_path, disk)
    position = publish_on(log, log.begin(CARS, 0), 2)
    disk.kill_after(steps)
    with contextlib.suppress(Killed):
        publish_on(log, position, 4)
    successor = log_on(tmp_path)
    found = successor.end(CARS)
    assert found is not None
    assert publish_on(successor, found, 6).offset == 6
    assert offsets(tmp_path) == list(range(6))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted_disk(tmp_path / "disk", 2**20) as disk:
        yield disk


def test_a_full_disk_costs_no_row_and_doubles_none(small_disk: SmallDisk) -> None:
    folder = small_disk.folder
    log = log_on(folder)
    position = publish_on(log, log.begin(CARS, 0), 3)
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    before = files(folder)
    for _ in range(3):
        with pytest.raises(ScoredLogError, match="the disk is full") as caught:
            log.publish(CARS, position, 4, [scored(origin(3))])
        assert caught.value.retriable
        assert files(folder) == before
        assert log.end(CARS) == position
    with pytest.raises(LogRootError, match="the disk is full"):
        check_store(LocalStore(folder))
    filler.unlink()
    assert publish_on(log, position, 6).offset == 6
    assert offsets(folder) == list(range(6))


def test_a_disk_that_turns_read_only_costs_no_row_and_doubles_none(small_disk: SmallDisk) -> None:
    folder = small_disk.folder
    log = log_on(folder)
    position = publish_on(log, log.begin(CARS, 0), 3)
    before = files(folder)
    small_disk.remount("ro")
    for _ in range(3):
        with pytest.raises(LogRootError, match="no permission: Read-only file system"):
            log.publish(CARS, position, 4, [scored(origin(3))])
        assert files(folder) == before
        assert log.end(CARS) == position
    small_disk.remount("rw")
    assert publish_on(log, position, 6).offset == 6
    assert offsets(folder) == list(range(6))


def test_only_temporary_files_that_are_old_are_left_over(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.prepare(FOLDER)
    store.create(PATH, b"1")
    (tmp_path / FOLDER / f".{'a' * 32}.tmp").write_bytes(b"half a segment")
    (tmp_path / FOLDER / ".hidden").write_bytes(b"somebody's")
    assert store.remove_leftovers(FOLDER, LEFTOVER_AGE_MS) == 0
    assert store.remove_leftovers("topic=dogs/partition=0", FAR_FUTURE_MS) == 0
    assert store.remove_leftovers(FOLDER, FAR_FUTURE_MS) == 1
    assert files(tmp_path) == [".hidden", f"{0:020d}.parquet"]
