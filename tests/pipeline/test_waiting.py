"""The line while its log or its dead-letter topic takes nothing, and after it."""

import itertools

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import ChainBrokenError, LogRootError, ScoredLogError
from nap_stream.pipeline import waiting
from nap_stream.pipeline.waiting import BrokerWatch, Unavailable, Waiting
from nap_stream.records import Message, TopicPartition, WorkerReport
from tests.pipeline.bench import DISK_FULL, FIRST, SECOND, Bench, Script, nothing, waits
from tests.pipeline.test_scoring import decode, score
from tests.support.doubles import MemorySource, MemoryTopic
from tests.support.log_files import paths_in
from tests.support.scored_records import RecordLog

READ_ONLY = LogRootError("no permission: Read-only file system", "/log", "Give this user access")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(waiting, "BACKOFF_INITIAL_S", 0.05)
    monkeypatch.setattr("nap_stream.pipeline.line.REPORT_EVERY_S", 0.02)
    return Bench(MemoryTopic("images", 2))


def fill(bench: Bench, count: int, value: bytes = b"g") -> None:
    for _ in range(count):
        bench.topic.append(FIRST, value)


def mend(bench: Bench) -> None:
    bench.store.is_broken = False


def break_(bench: Bench) -> None:
    bench.store.is_broken = True


@pytest.mark.parametrize("error", [DISK_FULL, READ_ONLY])
@pytest.mark.parametrize("too_late", [False, True])
def test_a_disk_that_fails_is_waited_for_and_nothing_is_lost_or_doubled(
    bench: Bench, error: ScoredLogError, *, too_late: bool
) -> None:
    bench.store.error, bench.store.too_late = error, too_late
    fill(bench, 15)
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 15, lambda: break_(bench)),
            (lambda: True, lambda: fill(bench, 15)),
            (lambda: waits(bench, error.problem) and bench.store.refusals >= 2, nothing),
            (lambda: True, lambda: fill(bench, 15)),
            (lambda: bench.store.refusals >= 3 or too_late, lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 45, nothing),
        ]
    )
    if too_late:
        # A second attempt finds the name taken, by its own first one.
        script.steps[2] = (lambda: waits(bench, error.problem), nothing)

    bench.run(script)

    assert bench.offsets() == [(offset, 0) for offset in range(45)]
    assert bench.told.reports[-1].waiting_for is None


def test_nothing_is_fetched_while_a_disk_fails_and_the_source_is_polled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[int] = []
    poll = MemorySource.poll

    def counted(source: MemorySource, timeout_s: float, max_messages: int) -> object:
        fetched = poll(source, timeout_s, max_messages)
        polls.append(sum(len(part.messages) for part in fetched))
        return fetched

    monkeypatch.setattr(MemorySource, "poll", counted)
    fill(bench, 10)
    seen: list[int] = []
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 10, lambda: break_(bench)),
            (lambda: True, lambda: fill(bench, 1)),
            (lambda: waits(bench, "disk is full"), lambda: fill(bench, 1_000)),
            (lambda: bench.store.refusals >= 3, lambda: seen.extend((len(polls), sum(polls)))),
            (lambda: len(polls) >= seen[0] + 5, lambda: seen.append(sum(polls))),
            (lambda: True, lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 1_011, nothing),
        ]
    )

    bench.run(script)

    assert seen[1] == seen[2] == 11
    assert bench.offsets() == [(offset, 0) for offset in range(1_011)]


def test_one_partition_that_waits_has_all_of_them_wait(bench: Bench) -> None:
    script = Script(
        [
            (lambda: bool(bench.told.reports), lambda: break_(bench)),
            (lambda: True, lambda: fill(bench, 1)),
            (lambda: waits(bench, "disk is full"), lambda: bench.topic.append(SECOND, b"g")),
            (lambda: bench.store.refusals >= 3, lambda: mend(bench)),
            (lambda: bench.topic.committed == {FIRST: 1, SECOND: 1}, nothing),
        ]
    )

    with capture_logs() as events:
        bench.run(script)

    said = [(e["event"], e["partition"]) for e in events if "partition" in e]
    assert ("waiting_for", str(SECOND)) not in said
    assert ("goes_on", str(FIRST)) in said


def test_a_chain_that_cannot_be_begun_yet_is_waited_for(bench: Bench) -> None:
    break_(bench)
    fill(bench, 5)
    script = Script(
        [
            (lambda: waits(bench, "disk is full"), nothing),
            (lambda: bench.store.refusals >= 4, lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 5, nothing),
        ]
    )

    bench.run(script)

    assert bench.offsets() == [(offset, 0) for offset in range(5)]


def test_a_gap_that_cannot_be_declared_yet_is_waited_for(bench: Bench) -> None:
    fill(bench, 4)
    bench.run(lambda: bench.topic.committed.get(FIRST) == 4)
    fill(bench, 6)
    bench.topic.delete_before(FIRST, 7)
    break_(bench)
    script = Script(
        [
            (lambda: waits(bench, "disk is full"), lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 10, nothing),
        ]
    )

    bench.run(script)

    assert bench.offsets() == [(offset, 0) for offset in (0, 1, 2, 3, 7, 8, 9)]
    assert [s.gap is not None for s in bench.told.summaries if s.base_offset == 4] == [True]


def test_dead_letters_that_cannot_be_delivered_are_waited_for(bench: Bench) -> None:
    bench.letters.available = False
    fill(bench, 1, b"gb")
    published: list[int] = []

    def deliver() -> None:
        published.append(len(paths_in(bench.store, FIRST)))
        bench.letters.available = True

    script = Script(
        [
            (lambda: waits(bench, "the dead-letter topic"), deliver),
            (lambda: bench.topic.committed.get(FIRST) == 1, nothing),
        ]
    )

    bench.run(script)

    assert published == [0]
    assert bench.offsets() == [(0, 0), (0, 1)]
    assert [i.origin.offset for i in bench.letters.images] == [0]


def test_dead_letters_are_sent_once_where_their_segment_waits(bench: Bench) -> None:
    fill(bench, 1)
    script = Script(
        [
            (lambda: bench.topic.committed.get(FIRST) == 1, lambda: break_(bench)),
            (lambda: True, lambda: fill(bench, 1, b"b")),
            (lambda: bench.store.refusals >= 3, lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 2, nothing),
        ]
    )

    bench.run(script)

    assert [i.origin.offset for i in bench.letters.images] == [1]
    assert bench.told.reports[-1].dead_letters == 1


def test_a_segment_that_is_small_once_its_dead_letters_are_gone_is_published_all_the_same(
    bench: Bench,
) -> None:
    bench.segment_max_rows, bench.segment_max_age_s = 10_000, 3600
    # Two rows and a payload of a byte.
    rows = score([decode(Message(FIRST, offset, 0, None, b"b")) for offset in range(2)])
    bench.segment_max_bytes = rows.nbytes + 1
    script = Script(
        [
            (lambda: bool(bench.told.reports), lambda: break_(bench)),
            (lambda: True, lambda: fill(bench, 2, b"b")),
            (lambda: bench.store.refusals >= 2, lambda: mend(bench)),
            (lambda: bench.topic.committed.get(FIRST) == 2, nothing),
        ]
    )

    bench.run(script)

    assert bench.offsets() == [(0, 0), (1, 0)]


def test_what_waits_at_a_revocation_is_dropped_and_read_again_by_the_next_owner(
    bench: Bench,
) -> None:
    fill(bench, 5)
    bench.run(lambda: bench.topic.committed.get(FIRST) == 5)
    fill(bench, 5)
    break_(bench)

    def revoke() -> None:
        bench.sources[-1].revoke()

    with capture_logs() as events:
        bench.run(Script([(lambda: waits(bench, "disk is full"), revoke)]))
    mend(bench)

    assert bench.topic.committed[FIRST] == 5
    (revoked,) = [e for e in events if e["event"] == "partitions_revoked"]
    assert not revoked["published"]
    assert bench.told.reports[-1].waiting_for is None
    bench.run(lambda: bench.topic.committed.get(FIRST) == 10)
    assert bench.offsets() == [(offset, 0) for offset in range(10)]


def test_a_stop_while_waiting_ends_in_time_and_says_what_it_waited_for(bench: Bench) -> None:
    fill(bench, 5)
    bench.run(lambda: bench.topic.committed.get(FIRST) == 5)
    fill(bench, 5)
    break_(bench)
    bench.deadline_s = 2

    with pytest.raises(ScoredLogError, match="disk is full"):
        bench.run(lambda: waits(bench, "disk is full"))
    mend(bench)

    assert bench.topic.committed[FIRST] == 5
    bench.run(lambda: bench.topic.committed.get(FIRST) == 10)
    assert bench.offsets() == [(offset, 0) for offset in range(10)]


def test_lost_partitions_are_waited_for_no_longer(bench: Bench) -> None:
    fill(bench, 5)

    def lose() -> None:
        bench.sources[0].lose()

    script = Script(
        [
            (lambda: bool(bench.told.reports), lambda: break_(bench)),
            (lambda: waits(bench, "disk is full"), lose),
            (lambda: bench.told.reports[-1].waiting_for is None, nothing),
        ]
    )

    bench.run(script)

    assert paths_in(bench.store, FIRST) == ()


def test_a_chain_that_is_broken_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_log: object, _partition: TopicPartition, _hint: int | None = None) -> None:
        raise ChainBrokenError("not a segment", "x.parquet", "Run verify")

    monkeypatch.setattr(RecordLog, "end", broken)
    with pytest.raises(ChainBrokenError):
        bench.run(lambda: False)


def test_memory_is_bounded_while_a_disk_fails(bench: Bench) -> None:
    """What is read is what may be in flight, and what one segment and one poll add to it."""
    bench.max_in_hand_images = 20
    fill(bench, 5_000)
    script = Script(
        [
            (lambda: bool(bench.told.reports), lambda: break_(bench)),
            (lambda: bench.store.refusals >= 3, nothing),
        ]
    )
    bench.deadline_s = 2

    with pytest.raises(ScoredLogError):
        bench.run(script)

    lag = next(p.lag for p in bench.told.reports[-1].partitions if p.partition == FIRST)
    assert lag is not None
    written = len(bench.offsets())
    assert 5_000 - lag - written <= 2 * bench.max_in_hand_images + bench.segment_max_rows


def test_failed_images_that_wait_for_their_segment_count_as_in_hand(bench: Bench) -> None:
    """Each takes a byte of payload here, and half of what may be in flight keeps it paused.

    Its segment is not due by its age: it is published because fetching is paused.
    """
    bench.max_in_hand_bytes = 50
    bench.segment_max_rows, bench.segment_max_age_s = 10_000, 3600
    bench.max_in_hand_images = 10
    fill(bench, 500, b"b")
    read: list[int] = []

    def look() -> bool:
        if bench.sources and not bench.letters.images:
            read.append(500 - (bench.sources[0].lag(FIRST) or 500))
        return bool(bench.letters.images)

    bench.run(look)

    assert 25 <= max(read) <= 50 + 2 * bench.max_in_hand_images


def test_payloads_that_keep_fetching_paused_are_published_before_their_time(bench: Bench) -> None:
    bench.max_in_hand_bytes, bench.max_in_hand_images = 50, 10
    bench.segment_max_rows, bench.segment_max_age_s = 10_000, 3600
    fill(bench, 200, b"b")

    bench.run(lambda: bool(bench.sources) and bench.sources[0].lag(FIRST) == 0)

    assert len(bench.letters.images) == 200
    assert bench.offsets() == [(offset, 0) for offset in range(200)]


def test_rows_that_wait_for_their_segments_time_are_neither_a_stall_nor_idle(bench: Bench) -> None:
    bench.segment_max_age_s = 3600
    fill(bench, 5)

    def scored() -> list[WorkerReport]:
        return [report for report in bench.told.reports if report.images_scored == 5]

    bench.run(lambda: len(scored()) >= 10)

    while_they_wait = scored()[:10]
    assert [report.rows for report in while_they_wait] == [0] * 10
    assert not any(report.idle for report in while_they_wait)
    assert while_they_wait[-1].work_done > while_they_wait[1].work_done


def test_a_broker_that_is_away_is_waited_for_and_not_idle(bench: Bench) -> None:
    fill(bench, 5)

    def away() -> None:
        bench.topic.available = False

    def back() -> None:
        bench.topic.available = True
        fill(bench, 5)

    idle_while_away: list[bool] = []

    def note() -> None:
        idle_while_away.append(bench.told.reports[-1].idle)

    script = Script(
        [
            (lambda: any(r.idle and r.rows == 5 for r in bench.told.reports), away),
            (lambda: waits(bench, "the broker"), note),
            (lambda: True, back),
            (lambda: bench.topic.committed.get(FIRST) == 10, nothing),
            (lambda: bench.told.reports[-1].idle, nothing),
        ]
    )

    with capture_logs() as events:
        bench.run(script)

    assert idle_while_away == [False]
    assert bench.told.reports[-1].waiting_for is None
    assert [e["event"] for e in events if e["event"] in ("waiting_for", "goes_on")] == [
        "waiting_for",
        "goes_on",
    ]


def test_a_worker_whose_group_rebalances_is_not_idle_nor_waiting(bench: Bench) -> None:
    fill(bench, 5)
    in_rebalance: list[tuple[bool, str | None]] = []
    reports_before = 0

    def rebalance() -> None:
        nonlocal reports_before
        bench.topic.rebalances = True
        fill(bench, 5)
        reports_before = len(bench.told.reports)

    def note() -> None:
        report = bench.told.reports[-1]
        in_rebalance.append((report.idle, report.waiting_for))

    def over() -> None:
        bench.topic.rebalances = False

    script = Script(
        [
            (lambda: any(r.idle and r.rows == 5 for r in bench.told.reports), rebalance),
            (lambda: len(bench.told.reports) > reports_before + 1, note),
            (lambda: True, over),
            (lambda: bench.topic.committed.get(FIRST) == 10, nothing),
            (lambda: bench.told.reports[-1].idle, nothing),
        ]
    )
    bench.run(script)

    assert in_rebalance == [(False, None)]


def test_backoff_grows_to_half_a_minute_and_starts_anew_after_success() -> None:
    clock = ManualClock()
    held = Waiting(clock)
    tried: list[float] = []

    for _ in range(1_000):
        if held.may_try(FIRST):
            tried.append(clock.monotonic())
            held.failed(FIRST, Unavailable("the scored log", DISK_FULL))
        clock.advance(0.25)

    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 30]
    assert set(gaps[5:]) == {30}
    assert held.text == "the scored log: /log: the disk is full. Free space on it"

    held.over(FIRST)
    assert held.text is None
    assert held.may_try(FIRST)
    held.failed(FIRST, Unavailable("the scored log", DISK_FULL))
    clock.advance(1)
    assert held.may_try(FIRST)


def test_the_broker_is_asked_once_a_second_at_most() -> None:
    clock, asked = ManualClock(), 0

    def away() -> str | None:
        nonlocal asked
        asked += 1
        return "it does not answer"

    watch = BrokerWatch(away, clock)
    assert watch.text is None
    for _ in range(40):
        assert not watch.ask()
        clock.advance(0.125)

    assert asked == 5
    assert watch.text == "the broker: it does not answer"
    watch.heard()
    assert watch.text is None
