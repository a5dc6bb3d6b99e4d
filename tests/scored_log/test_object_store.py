"""The object store where its server, or the way to it, fails: never lost, never twice."""

import dataclasses
import itertools
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from random import Random

import pyarrow.parquet as pq
import pytest

from nap_stream.clock import ManualClock
from nap_stream.errors import LogRootError, ScoredLogError, SegmentConflictError
from nap_stream.objects import ObjectStore, RequestLimits
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.compact_plan import remove_segments
from nap_stream.scored_log.segment import SMALL_BYTES, open_segment
from nap_stream.scored_log.stores import check_store, store_at
from tests.scored_log.builders import CALIBRATION, CARS, MODEL, NOON_MS, origin, scored
from tests.support.clouds import EMULATED, REAL_STORES
from tests.support.s3 import (
    ACCESS_KEY_ID,
    BUCKET,
    HOST,
    MESSAGE,
    SECRET_ACCESS_KEY,
    Fault,
    FaultProxy,
    environment,
    fault_proxy,
)
from tests.support.scored_records import RecordLog
from tests.support.waiting import PATIENCE_S, wait_until

PATH = "topic=cars/partition=0/00000000000000000000.parquet"
QUICK = RequestLimits(
    connect_timeout_s=2,
    request_timeout_s=1,
    max_retries=2,
    retry_timeout_s=60,
    backoff_initial_s=0.02,
    backoff_max_s=0.1,
)


Behind = Callable[[str], tuple[FaultProxy, str]]


@pytest.fixture
def behind_a_proxy(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Behind]:
    """A root on a real server, by its name, and a proxy before it that fails on demand."""
    with ExitStack() as stack:

        def behind(name: str) -> tuple[FaultProxy, str]:
            root: str = request.getfixturevalue(f"{name}_root")
            server = request.getfixturevalue(name)
            proxy = stack.enter_context(fault_proxy(server.port))
            for key, value in server.environment(proxy.endpoint).items():
                monkeypatch.setenv(key, value)
            return proxy, root

        yield behind


@pytest.fixture
def store(s3_root: str) -> ObjectStore:
    return ObjectStore(s3_root, limits=QUICK)


def log_at(store: ObjectStore) -> RecordLog:
    return RecordLog(store, WriterIdentity("worker-0", MODEL, CALIBRATION), ManualClock(NOON_MS))


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOSE_ANSWER],
        [Fault.HANG_AFTER],
        [Fault.LOSE_ANSWER, Fault.CONFLICT],
        [Fault.CONFLICT],
        [Fault.CONFLICT] * 4,
        [Fault.INTERNAL],
        [Fault.SLOW_DOWN, Fault.SLOW_DOWN],
        [Fault.INTERNAL] * 5,
        [Fault.INTERNAL, Fault.CONFLICT, Fault.LOSE_ANSWER],
    ],
    ids=lambda faults: "+".join(fault.name for fault in faults),
)
def test_a_write_that_is_done_in_the_end_is_this_writers_own(
    s3: FaultProxy, store: ObjectStore, faults: Sequence[Fault]
) -> None:
    s3.fail("PUT", *faults)
    assert store.create(PATH, b"mine")
    assert store.read(PATH) == b"mine"
    assert not s3.pending()
    assert not store.create(PATH, b"another")


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_ANSWER, Fault.HANG_AFTER, Fault.CONFLICT, Fault.INTERNAL]
)
def test_a_name_that_another_writer_has_is_lost_also_where_the_answer_is(
    s3: FaultProxy, store: ObjectStore, fault: Fault
) -> None:
    assert store.create(PATH, b"the winner's")
    s3.fail("PUT", fault)
    assert not store.create(PATH, b"the loser's")
    assert store.read(PATH) == b"the winner's"


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.INTERNAL])
def test_a_store_that_keeps_failing_is_a_typed_error_within_bounds(
    s3: FaultProxy, s3_root: str, fault: Fault
) -> None:
    store = ObjectStore(s3_root, limits=dataclasses.replace(QUICK, retry_timeout_s=3))
    s3.fail("PUT", *[fault] * 1_000)
    with pytest.raises(ScoredLogError, match="the object store") as caught:
        store.create(PATH, b"mine")
    assert caught.value.retriable
    assert 3 < s3.count("PUT") < 300
    s3.forget()
    assert store.read(PATH) is None
    assert store.create(PATH, b"mine")


def test_a_store_that_hangs_is_given_up_within_its_limits(s3: FaultProxy, s3_root: str) -> None:
    limits = dataclasses.replace(QUICK, request_timeout_s=0.3, retry_timeout_s=0.5)
    store = ObjectStore(s3_root, limits=limits)
    for method in ("PUT", "GET"):
        s3.fail(method, *[Fault.HANG_BEFORE] * 1_000)
    for request in (lambda: store.create(PATH, b"mine"), lambda: store.names("")):
        with pytest.raises(ScoredLogError, match="did not answer in time"):
            request()


def test_a_write_that_arrives_after_all_waiting_is_found_by_the_next_attempt(
    s3: FaultProxy, s3_root: str
) -> None:
    limits = RequestLimits(
        request_timeout_s=0.5, max_retries=0, retry_timeout_s=0.01, backoff_initial_s=0.02
    )
    log = log_at(ObjectStore(s3_root, limits=limits))
    position = log.begin(CARS, 0)
    s3.fail("PUT", Fault.HANG_BEFORE)
    with pytest.raises(ScoredLogError, match="did not answer in time"):
        log.publish(CARS, position, 1, [scored(origin(0))])
    assert log.end(CARS) == position
    s3.release()
    wait_until(lambda: s3.late == [200], "the late write")
    with pytest.raises(SegmentConflictError):
        log.publish(CARS, position, 2, [scored(origin(0)), scored(origin(1))])
    end = log.end(CARS)
    assert end is not None
    assert end.offset == 1
    assert log.publish(CARS, end, 2, [scored(origin(1))]).position.offset == 2


def test_a_write_that_arrives_after_the_next_one_was_done_changes_nothing(
    s3: FaultProxy, s3_root: str
) -> None:
    store = ObjectStore(s3_root, limits=RequestLimits(request_timeout_s=0.5, max_retries=0))
    s3.fail("PUT", Fault.HANG_BEFORE)
    assert store.create(PATH, b"mine")
    s3.release()
    wait_until(lambda: s3.late == [412], "the late write")
    assert store.read(PATH) == b"mine"


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_ANSWER, Fault.HANG_AFTER, Fault.INTERNAL, Fault.SLOW_DOWN]
)
def test_reading_and_listing_try_again(s3: FaultProxy, store: ObjectStore, fault: Fault) -> None:
    content = os.urandom(100_000)
    store.create(PATH, content)
    s3.fail("GET", fault)
    assert store.read(PATH) == content
    s3.fail("GET", fault)
    assert store.names("topic=cars/partition=0") == [PATH.rpartition("/")[2]]


def test_half_an_answer_is_never_taken_for_the_whole(s3: FaultProxy, store: ObjectStore) -> None:
    content = os.urandom(100_000)
    store.create(PATH, content)
    s3.fail("GET", Fault.CUT_BODY)
    assert store.read(PATH) == content
    s3.fail("GET", Fault.CUT_BODY)
    with pytest.raises(ScoredLogError, match="the object store failed"):
        store.names("topic=cars/partition=0")
    assert store.names("topic=cars/partition=0") == [PATH.rpartition("/")[2]]


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.INTERNAL, Fault.SLOW_DOWN])
def test_replacing_and_removing_try_again(s3: FaultProxy, store: ObjectStore, fault: Fault) -> None:
    store.create(PATH, b"old")
    s3.fail("PUT", fault)
    store.replace(PATH, b"new")
    assert store.read(PATH) == b"new"
    s3.fail("POST", fault)
    store.remove([PATH])
    assert store.read(PATH) is None


def test_a_chain_is_whole_whatever_becomes_of_the_answers(
    s3: FaultProxy, store: ObjectStore
) -> None:
    log = log_at(store)
    s3.fail("PUT", Fault.LOSE_ANSWER)
    position = log.begin(CARS, 0)
    faults = [Fault.LOSE_ANSWER, Fault.CONFLICT, None, Fault.HANG_AFTER, Fault.INTERNAL]
    for base, fault in enumerate(faults):
        s3.fail("PUT", fault)
        published = log.publish(CARS, position, base + 1, [scored(origin(base))])
        position = published.position
        assert log_at(store).end(CARS) == position
    for base in range(len(faults)):
        opened = store.open(f"topic=cars/partition=0/{base:020d}.parquet")
        assert opened is not None
        with opened:
            assert pq.read_table(opened).column("offset").to_pylist() == [base]


def test_a_denied_request_names_no_key(s3: FaultProxy, store: ObjectStore) -> None:
    requests: dict[str, Callable[[], object]] = {
        "PUT": lambda: store.create(PATH, b"mine"),
        "GET": lambda: store.read(PATH),
        "POST": lambda: store.remove([PATH]),
    }
    for method, request in requests.items():
        s3.fail(method, Fault.DENIED)
        with pytest.raises(LogRootError, match="no permission: AccessDenied") as caught:
            request()
        shown = "".join(traceback.format_exception(caught.value))
        assert ACCESS_KEY_ID not in shown
        assert SECRET_ACCESS_KEY not in shown
    assert s3.count("PUT") == 1


def test_a_bucket_that_is_missing_is_named(s3: FaultProxy) -> None:
    assert s3.port
    store = ObjectStore("s3://no-such-bucket/logs", limits=QUICK)
    requests: list[Callable[[], object]] = [
        lambda: store.create(PATH, b"mine"),
        lambda: store.read(PATH),
        lambda: store.open(PATH),
        lambda: store.names(""),
        lambda: store.names("", "a"),
        lambda: store.replace(PATH, b"mine"),
        lambda: store.remove([PATH]),
    ]
    for request in requests:
        with pytest.raises(LogRootError, match=r"s3://no-such-bucket/logs.*no such bucket"):
            request()
    with pytest.raises(LogRootError, match="no such bucket"):
        check_store(store_at("s3://no-such-bucket"))


def test_a_server_that_is_gone_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(f"http://{HOST}:1").items():
        monkeypatch.setenv(name, value)
    limits = dataclasses.replace(QUICK, retry_timeout_s=3)
    store = ObjectStore(f"s3://{BUCKET}", limits=limits)
    with pytest.raises(ScoredLogError, match="cannot be reached") as caught:
        store.create(PATH, b"mine")
    assert caught.value.retriable
    assert caught.value.where == f"s3://{BUCKET}/{PATH}"


def test_what_a_store_says_of_its_own_faults_is_told_and_of_refusals_is_not(
    s3: FaultProxy, s3_root: str
) -> None:
    store = ObjectStore(s3_root, limits=QUICK)
    s3.fail("GET", Fault.DENIED)
    with pytest.raises(LogRootError, match="no permission: AccessDenied") as caught:
        store.read(PATH)
    assert MESSAGE not in str(caught.value)
    s3.fail("GET", *[Fault.INTERNAL] * 20)
    with pytest.raises(ScoredLogError, match=f"it answered 500 InternalError: {MESSAGE}"):
        store.read(PATH)


def test_credentials_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment(""):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{HOST}:1")
    with pytest.raises(ScoredLogError, match="no credentials were found"):
        ObjectStore(f"s3://{BUCKET}", limits=QUICK).read(PATH)


def test_what_was_wrong_first_with_a_store_is_told(s3: FaultProxy, s3_root: str) -> None:
    s3.fail("PUT", Fault.DENIED)
    s3.fail("POST", *[Fault.NO_BUCKET] * 4)
    with pytest.raises(LogRootError, match="no permission: AccessDenied"):
        check_store(store_at(s3_root))


def test_an_object_that_is_written_too_often_is_waited_for(s3: FaultProxy, s3_root: str) -> None:
    store = ObjectStore(s3_root, limits=QUICK)
    written = [None, None, *[Fault.TOO_MANY] * 7]
    s3.fail("PUT", *written)
    s3.fail("POST", *[Fault.TOO_MANY] * 7)
    check_store(store)
    assert not s3.pending()
    limits = dataclasses.replace(QUICK, retry_timeout_s=0.5)
    s3.fail("PUT", *[Fault.TOO_MANY] * 100)
    with pytest.raises(ScoredLogError, match="it answered 429 TooManyRequests") as caught:
        ObjectStore(s3_root, limits=limits).replace(PATH, b"mine")
    assert caught.value.retriable


def test_a_store_that_ignores_the_condition_is_refused(s3: FaultProxy, s3_root: str) -> None:
    s3.unconditional = True
    with pytest.raises(LogRootError, match=r"not created exclusively.*honours If-None-Match"):
        check_store(store_at(s3_root))


@pytest.mark.clouds
def test_a_store_of_google_that_ignores_the_condition_is_refused(behind_a_proxy: Behind) -> None:
    proxy, root = behind_a_proxy("gcs")
    check_store(store_at(root))
    proxy.unconditional = True
    with pytest.raises(
        LogRootError, match=r"not created exclusively.*honours x-goog-if-generation-match"
    ):
        check_store(store_at(root))


@pytest.mark.parametrize("name", EMULATED)
def test_a_name_that_another_has_is_lost_in_each_cloud_also_where_the_answer_is(
    name: str, behind_a_proxy: Behind
) -> None:
    proxy, root = behind_a_proxy(name)
    store = ObjectStore(root, limits=QUICK)
    assert store.create(PATH, b"the winner's")
    proxy.fail("PUT", Fault.LOSE_ANSWER)
    assert not store.create(PATH, b"the loser's")
    proxy.fail("PUT", Fault.LOSE_ANSWER)
    assert store.create(PATH, b"the winner's")
    assert not proxy.pending()
    assert store.read(PATH) == b"the winner's"


def test_a_listing_from_a_name_on_costs_what_follows(s3: FaultProxy, store: ObjectStore) -> None:
    for base in range(0, 60, 10):
        store.create(f"topic=cars/partition=0/{base:020d}.parquet", b"1")
    assert store.names("topic=cars/partition=0", f"{45:020d}.parquet") == [f"{50:020d}.parquet"]
    listing = [path for method, path in s3.requests if method == "GET"][-1]
    assert f"{45:020d}" in listing
    assert "start-after" in listing


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        pytest.param("gcs", "start-after", marks=pytest.mark.clouds),
        pytest.param("azure", "startFrom", marks=pytest.mark.clouds),
    ],
)
def test_a_listing_of_a_cloud_is_asked_for_from_a_name_on(
    name: str, begin: str, behind_a_proxy: Behind
) -> None:
    proxy, root = behind_a_proxy(name)
    store = ObjectStore(root)
    for base in (0, 10, 20):
        store.create(f"topic=cars/partition=0/{base:020d}.parquet", b"1")
    assert store.names("topic=cars/partition=0", f"{15:020d}.parquet") == [f"{20:020d}.parquet"]
    assert f"{begin}=" in proxy.requests[-1][1]
    assert f"{15:020d}" in proxy.requests[-1][1]


@pytest.mark.parametrize(
    ("name", "method", "most"),
    [
        pytest.param("gcs", "DELETE", 40 + 2 * 12, marks=pytest.mark.clouds),
        pytest.param("azure", "POST", 3, marks=pytest.mark.clouds),
    ],
)
def test_segments_are_removed_with_few_requests_also_where_some_are_gone(
    name: str, method: str, most: int, behind_a_proxy: Behind
) -> None:
    proxy, root = behind_a_proxy(name)
    store = ObjectStore(root)
    paths = [f"topic=cars/partition=0/{base:020d}.parquet" for base in range(40)]
    for path in [*paths, "kept"]:
        store.create(path, b"1")
    asked = len(proxy.requests)
    remove_segments(store, paths)
    methods = [asked for asked, _ in proxy.requests[asked:]]
    assert methods.count(method) <= most
    assert len(methods) - methods.count(method) <= 2
    assert store.names("topic=cars/partition=0") == []
    for path in paths[::3]:
        store.create(path, b"1")
    store.remove([*paths, "kept"])
    assert store.names("") == []


def test_a_large_segment_is_opened_with_one_request_for_its_end(
    s3: FaultProxy, s3_root: str
) -> None:
    store = ObjectStore(s3_root, limits=dataclasses.replace(QUICK, max_whole_bytes=SMALL_BYTES))
    rows = [scored(origin(n, key=Random(n).randbytes(2_000))) for n in range(600)]
    log = log_at(store)
    log.publish(CARS, log.begin(CARS, 0), 600, rows)
    before = s3.count("GET")
    with open_segment(store, PATH) as segment:
        assert segment is not None
        # One that learns the size and the version, and one for the description.
        assert s3.count("GET") - before == 2
        assert sum(batch.num_rows for batch in segment.batches(["offset"])) == 600
        assert s3.count("GET") - before == 3


def create_all(environ: dict[str, str], root: str, writer: str, paths: Sequence[str]) -> list[str]:
    os.environ.update(environ)
    store = ObjectStore(root)
    return [path for path in paths if store.create(path, writer.encode())]


@pytest.mark.slow
def test_one_of_two_processes_wins_each_name(s3: FaultProxy, s3_root: str) -> None:
    paths = [f"topic=cars/partition=0/{base:020d}.parquet" for base in range(40)]
    s3.fail("PUT", *[Fault.LOSE_ANSWER, None, Fault.CONFLICT, None, None] * 6)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        a, b = (
            pool.submit(create_all, environment(s3.endpoint), s3_root, name, paths)
            for name in ("a", "b")
        )
        won = {"a": a.result(PATIENCE_S), "b": b.result(PATIENCE_S)}
    assert sorted(won["a"] + won["b"]) == paths
    store = ObjectStore(s3_root)
    assert {path: store.read(path) for path in paths} == {
        path: writer.encode() for writer, mine in won.items() for path in mine
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_STORES)
def test_each_of_75_races_on_a_real_server_has_one_winner(
    request: pytest.FixtureRequest, name: str
) -> None:
    root = request.getfixturevalue(f"{name}_root")
    # SeaweedFS has who comes second wait for a second: so several races at once.
    lanes, rounds, writers = 5, 15, 3
    starts = [threading.Barrier(writers) for _ in range(lanes)]

    def write(place: tuple[int, int]) -> list[str]:
        lane, writer = place
        store = ObjectStore(root)
        won = []
        for number in range(rounds):
            starts[lane].wait(PATIENCE_S)
            if store.create(f"{lane}/{number:020d}.parquet", f"{writer}".encode()):
                won.append(f"{lane}/{number:020d}.parquet")
        return won

    places = list(itertools.product(range(lanes), range(writers)))
    with ThreadPoolExecutor(len(places)) as pool:
        won = dict(zip(places, pool.map(write, places), strict=True))
    names = sorted(name for mine in won.values() for name in mine)
    assert names == [f"{lane}/{n:020d}.parquet" for lane in range(lanes) for n in range(rounds)]
    store = ObjectStore(root)
    for (_, writer), mine in won.items():
        assert all(store.read(name) == f"{writer}".encode() for name in mine)


@pytest.mark.parametrize("name", REAL_STORES)
def test_a_real_server_that_throttles_or_hangs_is_borne_within_bounds(
    name: str, behind_a_proxy: Behind
) -> None:
    proxy, root = behind_a_proxy(name)
    store = ObjectStore(root, limits=dataclasses.replace(QUICK, retry_timeout_s=3))
    proxy.fail("PUT", Fault.SLOW_DOWN, Fault.HANG_AFTER)
    assert store.create(PATH, b"mine")
    proxy.fail("GET", Fault.SLOW_DOWN, Fault.HANG_AFTER)
    assert store.read(PATH) == b"mine"
    assert not proxy.pending()
    asked = len(proxy.requests)
    for method in ("PUT", "GET"):
        proxy.fail(method, *[Fault.SLOW_DOWN] * 1_000)
    for ask in (lambda: store.create(f"{PATH}-2", b"mine"), lambda: store.names("")):
        with pytest.raises(ScoredLogError, match="it answered 503 SlowDown") as caught:
            ask()
        assert caught.value.retriable
    assert len(proxy.requests) - asked < 200
    proxy.forget()
    assert store.read(f"{PATH}-2") is None
