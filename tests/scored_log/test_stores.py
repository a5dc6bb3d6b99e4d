"""What every store must do, and which store a root names."""

import contextlib
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, ScoredLogError, SegmentConflictError
from nap_stream.objects import ObjectStore, RequestLimits
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.stores import SegmentStore, check_store, store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.log import LogSettings
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    memory_log,
    origin,
    scored,
)
from tests.support.clouds import EACH_STORE, environment
from tests.support.log_files import footers_in, rows_in
from tests.support.memory_store import MemoryStore
from tests.support.s3 import FaultProxy
from tests.support.scored_records import RecordLog
from tests.support.waiting import PATIENCE_S


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket",
        "s3://bucket/a",
        "s3://my.bucket-1/a_b/c=1/",
        "gs://my_bucket.example-1/a_b/c=1/",
        f"gs://{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 30}/x",
        "az://my-container/a_b/c=1",
    ],
)
def test_an_address_is_not_taken_from_the_folder_of_the_configuration(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment("az", "http://localhost:1").items():
        monkeypatch.setenv(name, value)
    settings = LogSettings.model_validate({"root": address}, context={"folder": Path("/etc")})
    assert settings.root == address
    assert LogSettings.model_validate(settings.model_dump(mode="json")) == settings
    store = store_at(settings.root)
    assert isinstance(store, ObjectStore)
    assert store.root == address.rstrip("/")


@pytest.mark.parametrize("root", ["scored-log", Path("scored-log")])
def test_a_path_is_taken_from_the_folder_of_the_configuration(root: str | Path) -> None:
    settings = LogSettings.model_validate({"root": root}, context={"folder": Path("/etc")})
    assert settings.root == Path("/etc/scored-log")
    store = store_at(settings.root)
    assert isinstance(store, LocalStore)
    assert store.root == "/etc/scored-log"


@pytest.mark.parametrize(
    "root",
    [
        "s3://",
        "s3://UPPER/x",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?sig=secret",
        "s3://with_underscore/x",
        "GS://bucket/x",
        "gs://b/x",
        f"gs://{'a' * 64}/x",
        f"gs://{'.'.join(['a' * 55] * 4)}/x",
        "gs://bucket/a b",
        "az://my.container/x",
        "az://two--hyphens/x",
        "az://$web/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "gcs://bucket/x",
        "https://account.blob.core.windows.net/container/x?sv=1&sig=secret",
        "file:///x",
    ],
)
def test_other_addresses_are_refused(root: str) -> None:
    expected = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    with pytest.raises(ValidationError, match=expected):
        LogSettings(root=root)
    with pytest.raises(ConfigError, match=expected) as caught:
        store_at(root)
    assert "secret" not in str(caught.value)


def test_a_folder_given_as_text_is_a_folder(tmp_path: Path) -> None:
    check_store(store_at(str(tmp_path / "log")))
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", *EACH_STORE])
def test_every_root_is_opened_the_same_way(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    root = tmp_path / "log" if kind == "folder" else request.getfixturevalue(f"{kind}_root")
    check_store(store_at(root))
    log = RecordLog(
        store_at(root), WriterIdentity("worker-0", MODEL, CALIBRATION), ManualClock(NOON_MS)
    )
    published = log.publish(CARS, log.begin(CARS, 3), 5, [scored(origin(3)), failed(origin(4))])
    store = store_at(root)
    assert store.names("") == ["topic=cars"]
    assert store.read(published.path) is not None
    assert log.end(CARS, 5) == published.position


def test_the_secret_is_in_no_representation(s3: FaultProxy, s3_root: str) -> None:
    assert s3.port
    store = store_at(s3_root)
    assert "secret" not in repr(store) + str(vars(store))


def test_what_was_written_can_be_looked_at() -> None:
    store = MemoryStore()
    log = memory_log(store, "a")
    assert rows_in(store, CARS).num_rows == 0
    first = log.publish(CARS, log.begin(CARS, 0), 2, [scored(origin(0)), failed(origin(1))])
    log.publish(CARS, first.position, 7, [], gap="retention")
    assert rows_in(store, CARS).column("status").to_pylist() == ["ok", "corrupt"]
    assert [footer.gap for footer in footers_in(store, CARS)] == [None, "retention"]
    assert [footer.writer_id for footer in footers_in(store, CARS)] == ["a", "a"]
    assert [footer.scored_rows for footer in footers_in(store, CARS)] == [1, 0]


def test_a_store_outlives_its_writers() -> None:
    store = MemoryStore()
    position = memory_log(store, "a").begin(CARS, 4)
    assert memory_log(store, "b").end(CARS) == position


FOLDER = "topic=cars/partition=0"
Stores = Callable[[], SegmentStore]


@pytest.fixture(params=["local", "memory", *EACH_STORE])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """Makes stores that compete for the same root."""
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "log")
    if request.param == "memory":
        memory = MemoryStore()
        return lambda: memory
    root = request.getfixturevalue(f"{request.param}_root")
    return lambda: ObjectStore(root)


@pytest.fixture
def store(stores: Stores) -> SegmentStore:
    made = stores()
    made.prepare(FOLDER)
    return made


@pytest.fixture(params=["local", "memory", "whole objects", *EACH_STORE])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    """A store whose files are opened: of an object store in ranges, as large objects are."""
    made: SegmentStore = MemoryStore()
    if request.param == "local":
        made = LocalStore(tmp_path / "log")
    elif request.param == "whole objects":
        made = ObjectStore(request.getfixturevalue("s3_root"))
    elif request.param != "memory":
        limits = RequestLimits(max_whole_bytes=4)
        made = ObjectStore(request.getfixturevalue(f"{request.param}_root"), limits=limits)
    made.prepare(FOLDER)
    return made


def test_it_can_hold_a_log_and_the_proof_leaves_nothing(stores: Stores) -> None:
    check_store(stores())
    assert stores().names("") == []


def test_what_is_missing_is_none_and_no_error(store: SegmentStore) -> None:
    assert store.read(f"{FOLDER}/a") is None
    assert store.open(f"{FOLDER}/a") is None
    assert store.names("topic=dogs/partition=0") == []
    store.remove([f"{FOLDER}/a", f"{FOLDER}/b"])
    store.remove([])


def test_the_first_content_stays(stores: Stores, store: SegmentStore) -> None:
    assert store.create(f"{FOLDER}/a", b"first")
    assert not stores().create(f"{FOLDER}/a", b"second")
    assert store.read(f"{FOLDER}/a") == b"first"
    assert store.names(FOLDER) == ["a"]


@pytest.mark.parametrize("size", [0, 1, 6 * 2**20])
def test_content_of_any_size_comes_back(opening: SegmentStore, size: int) -> None:
    content = os.urandom(size)
    assert opening.create(f"{FOLDER}/a", content)
    assert opening.read(f"{FOLDER}/a") == content
    assert not opening.create(f"{FOLDER}/a", content + b"x")
    opened = opening.open(f"{FOLDER}/a")
    assert opened is not None
    with opened:
        assert opened.read() == content


def test_names_are_those_of_files_and_folders_directly_below(store: SegmentStore) -> None:
    for path in (f"{FOLDER}/a", f"{FOLDER}/b", "topic=cars/partition=1/c", "topic=dogs/x/y"):
        store.prepare(path.rpartition("/")[0])
        store.create(path, b"1")
    assert sorted(store.names("")) == ["topic=cars", "topic=dogs"]
    assert sorted(store.names("topic=cars")) == ["partition=0", "partition=1"]
    assert sorted(store.names(FOLDER)) == ["a", "b"]
    assert store.names("", "topic=d") == ["topic=dogs"]


def test_a_folder_is_not_another_whose_name_it_begins(store: SegmentStore) -> None:
    store.prepare("topic=cars/partition=01")
    store.create("topic=cars/partition=01/a", b"1")
    assert store.names(FOLDER) == []


@pytest.mark.parametrize("first", ["", "0", "00000000000000000007.parquet", "7", "_", "zz"])
def test_names_from_a_first_one_on(store: SegmentStore, first: str) -> None:
    names = ["_genesis.json", *(f"{base:020d}.parquet" for base in (0, 5, 7, 10, 123))]
    for name in names:
        store.create(f"{FOLDER}/{name}", b"1")
    assert sorted(store.names(FOLDER, first)) == sorted(name for name in names if name >= first)


def test_an_open_file_is_read_and_sought_in(opening: SegmentStore) -> None:
    opening.create(f"{FOLDER}/a", b"0123456789")
    opened = opening.open(f"{FOLDER}/a")
    assert opened is not None
    with opened:
        assert opened.seekable()
        assert opened.seek(-3, os.SEEK_END) == 7
        assert opened.read() == b"789"
        assert opened.read() == b""
        assert opened.seek(2) == 2
        assert opened.read(3) == b"234"
        assert opened.seek(2, os.SEEK_CUR) == 7
        assert opened.tell() == 7
        opened.seek(20)
        assert opened.read() == b""


def test_a_part_of_a_file_is_read_from_either_end(store: SegmentStore) -> None:
    store.prepare(FOLDER)
    store.create(f"{FOLDER}/a", b"0123456789")
    parts = {(0, 4): b"0123", (3, 4): b"3456", (8, 4): b"89", (-3, 3): b"789", (-4, 2): b"67"}
    for (start, count), found in parts.items():
        assert store.read_part(f"{FOLDER}/a", start, count) == (found, 10)
    assert store.read_part(f"{FOLDER}/a", -40, 40) == (b"0123456789", 10)
    store.create(f"{FOLDER}/empty", b"")
    for start in (0, 3, -4):
        assert store.read_part(f"{FOLDER}/b", start, 4) is None
        assert store.read_part(f"{FOLDER}/empty", start, 4) == (b"", 0)
    assert store.read_part(f"{FOLDER}/a", 10, 4) == (b"", 10)


@pytest.mark.parametrize("removed", [False, True])
def test_what_is_open_never_shows_two_versions(opening: SegmentStore, *, removed: bool) -> None:
    old, new = b"o" * 3 * 2**20, b"n" * 3 * 2**20
    opening.create(f"{FOLDER}/a", old)
    opened = opening.open(f"{FOLDER}/a")
    assert opened is not None
    with opened:
        assert opened.read(10) == old[:10]
        opening.replace(f"{FOLDER}/a", new)
        if removed:
            opening.remove([f"{FOLDER}/a"])
        rest = _read_or_fail(opened)
    if isinstance(rest, ScoredLogError):
        assert isinstance(opening, ObjectStore)
        assert "replaced or removed while it was read" in rest.problem
    else:
        assert rest == old[10:]


def test_other_content_under_a_name(stores: Stores, store: SegmentStore) -> None:
    store.create(f"{FOLDER}/a", b"old")
    store.replace(f"{FOLDER}/a", b"new and longer")
    assert stores().read(f"{FOLDER}/a") == b"new and longer"
    assert store.names(FOLDER) == ["a"]
    assert not store.create(f"{FOLDER}/a", b"old")


def test_what_is_removed_is_gone_and_its_name_free(store: SegmentStore) -> None:
    for name in "abc":
        store.create(f"{FOLDER}/{name}", b"1")
    store.remove([f"{FOLDER}/a", f"{FOLDER}/missing", f"{FOLDER}/c"])
    assert store.names(FOLDER) == ["b"]
    assert store.create(f"{FOLDER}/a", b"2")


def test_to_prepare_twice_is_harmless(store: SegmentStore) -> None:
    store.create(f"{FOLDER}/a", b"1")
    store.prepare(FOLDER)
    assert store.names(FOLDER) == ["a"]


def test_one_of_many_threads_wins_each_name(stores: Stores, store: SegmentStore) -> None:
    writers, names = 4, [f"{FOLDER}/{n:020d}.parquet" for n in range(10)]
    start = threading.Barrier(writers)

    def write(writer: int) -> list[str]:
        mine = stores()
        start.wait(PATIENCE_S)
        return [name for name in names if mine.create(name, f"{writer}".encode())]

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert sorted(name for part in won for name in part) == names
    for writer, part in enumerate(won):
        assert all(store.read(name) == f"{writer}".encode() for name in part)


def test_competing_writers_make_one_chain(stores: Stores) -> None:
    writers, end = 4, 12
    start = threading.Barrier(writers)

    def write(writer: int) -> list[int]:
        log = RecordLog(
            stores(), WriterIdentity(f"worker-{writer}", MODEL, CALIBRATION), ManualClock(NOON_MS)
        )
        won = []
        start.wait(PATIENCE_S)
        position = log.begin(CARS, 0)
        while position.offset < end:
            try:
                rows = [scored(origin(position.offset))]
                published = log.publish(CARS, position, position.offset + 1, rows)
            except SegmentConflictError:
                found = log.end(CARS)
                assert found is not None
                position = found
            else:
                won.append(published.base_offset)
                position = published.position
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = [base for part in pool.map(write, range(writers)) for base in part]
    assert sorted(won) == list(range(end))


def _read_or_fail(file: BinaryIO) -> bytes | ScoredLogError:
    try:
        return file.read()
    except ScoredLogError as error:
        return error


_operation = st.tuples(
    st.sampled_from(["create", "replace", "remove", "read", "names", "open"]),
    st.sampled_from(["a/0", "a/1", "b/0"]),
    st.binary(max_size=8),
)


@given(operations=st.lists(_operation, max_size=25))
def test_any_operations_on_a_folder_and_in_memory_have_the_same_results(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, bytes]]
) -> None:
    both = (LocalStore(tmp_path_factory.mktemp("log")), MemoryStore())
    for store in both:
        store.prepare("a")
        store.prepare("b")
    for operation in operations:
        here, there = (_result(store, *operation) for store in both)
        assert here == there


def _result(store: SegmentStore, operation: str, path: str, content: bytes) -> object:
    match operation:
        case "create":
            return store.create(path, content)
        case "replace":
            store.replace(path, content)
        case "remove":
            store.remove([path])
        case "names":
            return sorted(store.names(path[0]))
        case "open":
            with contextlib.closing(store.open(path) or io.BytesIO(b"missing")) as opened:
                return opened.read()
    return store.read(path)
