"""The worker's line on sources, logs and dead letters in memory, with real threads."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pytest

from nap_stream.records import (
    DecodedRows,
    Message,
    SegmentSummary,
    Status,
    TopicPartition,
    WorkerReport,
)
from tests.pipeline.bench import FIRST, SECOND, Bench
from tests.pipeline.test_scoring import decode, images_in, score
from tests.support.doubles import MemorySource, MemoryTopic
from tests.support.log_files import footers_in, paths_in, rows_in
from tests.support.told import Told
from tests.support.waiting import PATIENCE_S


@pytest.fixture
def bench() -> Bench:
    return Bench(MemoryTopic("images", 2))


def spans(summaries: Sequence[SegmentSummary]) -> Iterator[tuple[int, int]]:
    for summary in summaries:
        yield summary.base_offset, summary.end_offset


def test_every_message_becomes_its_rows_once_and_is_committed(bench: Bench) -> None:
    for _ in range(25):
        bench.topic.append(FIRST, b"g")
        bench.topic.append(SECOND, b"gg")

    bench.run(lambda: bench.topic.committed == {FIRST: 25, SECOND: 25})

    assert bench.offsets(FIRST) == [(offset, 0) for offset in range(25)]
    assert bench.offsets(SECOND) == [(o, index) for o in range(25) for index in (0, 1)]


def test_summaries_cover_what_was_published_without_gap_or_overlap(bench: Bench) -> None:
    for _ in range(25):
        bench.topic.append(FIRST, b"g")

    bench.run(lambda: bench.topic.committed.get(FIRST) == 25)

    ends = [0, *(end for _, end in spans(bench.told.summaries))]
    assert [base for base, _ in spans(bench.told.summaries)] == ends[:-1]
    assert ends[-1] == 25
    assert sum(s.rows_by_status[Status.OK] for s in bench.told.summaries) == 25


def test_what_is_in_hand_at_the_stop_is_published(bench: Bench) -> None:
    bench.segment_max_age_s = 3600
    bench.segment_max_rows = 10_000
    for _ in range(30):
        bench.topic.append(FIRST, b"g")

    bench.run(lambda: bench.sources[0].lag(FIRST) == 0)

    assert bench.offsets() == [(offset, 0) for offset in range(30)]
    assert bench.topic.committed[FIRST] == 30


def test_a_new_worker_goes_on_where_the_log_ends_not_where_the_commit_is(bench: Bench) -> None:
    for _ in range(10):
        bench.topic.append(FIRST, b"g")
    bench.run(lambda: bench.topic.committed.get(FIRST) == 10)
    bench.topic.committed[FIRST] = 3
    for _ in range(5):
        bench.topic.append(FIRST, b"g")

    bench.run(lambda: bench.topic.committed.get(FIRST) == 15)

    assert bench.offsets() == [(offset, 0) for offset in range(15)]


def test_bad_rows_go_to_the_dead_letters_before_their_segment(bench: Bench) -> None:
    bench.topic.append(FIRST, b"gbg")
    bench.topic.append(FIRST, b"b")

    bench.run(lambda: bench.topic.committed.get(FIRST) == 2)

    assert [(i.origin.offset, i.origin.index) for i in bench.letters.images] == [(0, 1), (1, 0)]
    assert bench.offsets() == [(0, 0), (0, 1), (0, 2), (1, 0)]
    statuses = rows_in(bench.store, FIRST).column("status").to_pylist()
    assert statuses == ["ok", "corrupt", "ok", "corrupt"]


def test_a_dead_letter_that_is_read_makes_no_other_one_and_has_its_row(bench: Bench) -> None:
    def of_a_letter(message: Message) -> DecodedRows:
        found = decode(message)
        origins = [replace(image.origin, is_letter=message.offset == 1) for image in found.failed]
        failed = [
            replace(image, origin=origin)
            for image, origin in zip(found.failed, origins, strict=True)
        ]
        return replace(found, failed=failed)

    bench.decode = of_a_letter
    for _ in range(3):
        bench.topic.append(FIRST, b"b")

    bench.run(lambda: bench.topic.committed.get(FIRST) == 3)

    assert [image.origin.offset for image in bench.letters.images] == [0, 2]
    assert bench.offsets() == [(0, 0), (1, 0), (2, 0)]
    assert bench.told.reports[-1].dead_letters == 2


def test_the_loser_of_a_race_drops_its_rows_and_goes_on_from_the_winners_end(
    bench: Bench,
) -> None:
    for _ in range(6):
        bench.topic.append(FIRST, b"g")
    rival = bench.log("rival")
    raced: list[int] = []

    def rival_publishes_first(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        scored = score(decoded)
        if not raced:
            start = rival.end(FIRST)
            assert start is not None
            rival.publish(FIRST, start, 4, pa.Table.from_batches([scored[:4]]))
            raced.append(1)
        return scored

    bench.score = rival_publishes_first
    bench.run(lambda: bench.topic.committed.get(FIRST) == 6)

    assert bench.offsets() == [(offset, 0) for offset in range(6)]
    assert bench.told.reports[-1].segment_conflicts == 1
    assert list(spans(bench.told.summaries)) == [(4, 6)]


def test_offsets_that_retention_took_become_a_declared_gap(bench: Bench) -> None:
    for _ in range(4):
        bench.topic.append(FIRST, b"g")
    bench.run(lambda: bench.topic.committed.get(FIRST) == 4)
    for _ in range(6):
        bench.topic.append(FIRST, b"g")
    bench.topic.delete_before(FIRST, 7)

    bench.run(lambda: bench.topic.committed.get(FIRST) == 10)

    assert bench.offsets() == [(offset, 0) for offset in (0, 1, 2, 3, 7, 8, 9)]
    gaps = [summary for summary in bench.told.summaries if summary.gap]
    assert [(gap.base_offset, gap.end_offset) for gap in gaps] == [(4, 7)]
    assert "retention" in (gaps[0].gap or "")


def test_offsets_that_the_topic_skips_are_passed_over(bench: Bench) -> None:
    bench.topic.append(FIRST, b"g")
    bench.topic.skip(FIRST, 3)

    bench.run(lambda: bench.topic.committed.get(FIRST) == 4)

    assert bench.offsets() == [(0, 0)]
    assert [footer.end_offset for footer in footers_in(bench.store, FIRST)][-1] == 4


def test_revoked_partitions_are_published_and_committed(bench: Bench) -> None:
    bench.segment_max_age_s = 3600
    for _ in range(5):
        bench.topic.append(FIRST, b"g")

    def revoke_once_read() -> bool:
        source = bench.sources[0]
        if source.lag(FIRST) == 0:
            source.revoke()
            return True
        return False

    bench.run(revoke_once_read)

    assert bench.offsets() == [(offset, 0) for offset in range(5)]
    assert bench.topic.committed[FIRST] == 5


def test_lost_partitions_publish_nothing(bench: Bench) -> None:
    bench.segment_max_age_s = 3600
    for _ in range(5):
        bench.topic.append(FIRST, b"g")

    def lose_once_read() -> bool:
        source = bench.sources[0]
        if source.lag(FIRST) == 0:
            source.lose()
            return True
        return False

    bench.run(lose_once_read)

    assert paths_in(bench.store, FIRST) == ()
    assert bench.topic.committed == {}


def test_fetching_pauses_while_enough_is_in_hand(bench: Bench) -> None:
    bench.max_in_hand_images = 8
    for _ in range(200):
        bench.topic.append(FIRST, b"g")
    in_hand: list[int] = []
    scored = 0

    def measure(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        nonlocal scored
        read = 200 - (bench.sources[0].lag(FIRST) or 0)
        in_hand.append(read - scored)
        scored += images_in(decoded)
        return score(decoded)

    bench.score = measure
    bench.run(lambda: bench.topic.committed.get(FIRST) == 200)

    assert bench.offsets() == [(offset, 0) for offset in range(200)]
    # One poll may come on top of what is just below the limit.
    assert max(in_hand) < 2 * bench.max_in_hand_images


def test_an_error_while_scoring_ends_the_line_and_publishes_nothing_more(bench: Bench) -> None:
    bench.topic.append(FIRST, b"g")

    def fail(_decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        raise RuntimeError("CUDA error")

    bench.score = fail
    with pytest.raises(RuntimeError, match="CUDA error"):
        bench.run(lambda: False)

    assert paths_in(bench.store, FIRST) == ()


def test_an_error_while_decoding_ends_the_line_and_publishes_nothing_more(bench: Bench) -> None:
    bench.topic.append(FIRST, b"g")

    def fail(_message: Message) -> DecodedRows:
        raise RuntimeError("a defect in the decoder")

    bench.decode = fail
    with pytest.raises(RuntimeError, match="a defect in the decoder"):
        bench.run(lambda: False)

    assert paths_in(bench.store, FIRST) == ()


def test_a_score_thread_that_hangs_shows_as_no_progress_and_as_nothing_waited_for(
    bench: Bench,
) -> None:
    """What the driver replaces a worker for."""
    for _ in range(5):
        bench.topic.append(FIRST, b"g")
    go_on = threading.Event()

    def hang(decoded: Sequence[DecodedRows]) -> pa.RecordBatch:
        go_on.wait(PATIENCE_S)
        return score(decoded)

    bench.score = hang

    def reported_twice_while_hung() -> bool:
        if len(bench.told.reports) >= 4:
            go_on.set()
        return bench.topic.committed.get(FIRST) == 5

    bench.run(reported_twice_while_hung)

    hung = bench.told.reports[2:4]
    assert {report.work_done for report in hung} == {0}
    assert {report.idle for report in hung} == {False}
    assert {report.waiting_for for report in hung} == {None}


def test_reports_say_what_was_done_and_when_there_is_nothing_to_do(bench: Bench) -> None:
    for value in (b"g", b"g", b"w", b"g", b"w"):
        bench.topic.append(FIRST, value)

    def reported_idle() -> bool:
        return any(report.idle and report.rows == 5 for report in bench.told.reports)

    bench.run(reported_idle)

    last = bench.told.reports[-1]
    assert (last.worker, last.rows, last.images_scored) == ("worker-0", 5, 5)
    assert last.decode_warnings == 2
    assert last.last_commit_ms is not None
    assert {p.partition for p in last.partitions} == {FIRST, SECOND}
    assert {p.lag for p in last.partitions} == {0}
    stages = {stage for report in bench.told.reports for stage, _ in report.stage_seconds}
    assert {"poll", "decode", "score", "batch", "publish", "commit"} <= stages


def test_partitions_are_reported_before_the_first_summary(bench: Bench) -> None:
    bench.topic.append(FIRST, b"g")
    order: list[str] = []
    bench.told = Recording(order)

    bench.run(lambda: "summary" in order)

    assert order.index("both partitions") < order.index("summary")


@dataclass
class Recording(Told):
    order: list[str] = field(default_factory=list)

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order

    def submit(self, summary: SegmentSummary) -> None:
        super().submit(summary)
        self.order.append("summary")

    def report(self, report: WorkerReport) -> None:
        super().report(report)
        if len(report.partitions) == 2:
            self.order.append("both partitions")


def test_a_commit_that_was_refused_is_made_up_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        bench.topic.append(FIRST, b"g")
    refused: list[Mapping[TopicPartition, int]] = []
    commit = MemorySource.commit

    def refuse_once(source: MemorySource, offsets: Mapping[TopicPartition, int]) -> bool:
        if not refused:
            refused.append(dict(offsets))
            return False
        return commit(source, offsets)

    monkeypatch.setattr(MemorySource, "commit", refuse_once)
    bench.run(lambda: bench.topic.committed.get(FIRST) == 5)

    assert refused == [{FIRST: 5}]
    assert bench.offsets() == [(offset, 0) for offset in range(5)]


def test_a_commit_that_was_refused_takes_back_none_of_the_next_owner(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(8):
        bench.topic.append(FIRST, b"g")
    commit = MemorySource.commit
    monkeypatch.setattr(MemorySource, "commit", lambda *_: False)
    monkeypatch.setattr(MemorySource, "commit_soon", commit)
    other = bench.log("worker-1")

    def revoke_when_another_has_gone_on() -> bool:
        end = other.end(FIRST)
        if end is None or end.offset != 8:
            return False
        other.publish(FIRST, end, 9, ())
        bench.topic.committed[FIRST] = 9
        bench.sources[-1].revoke()
        return True

    bench.run(revoke_when_another_has_gone_on)

    assert bench.topic.committed[FIRST] == 9


def test_a_commit_behind_the_log_is_brought_up_to_it(bench: Bench) -> None:
    for _ in range(5):
        bench.topic.append(FIRST, b"g")
    bench.run(lambda: bench.topic.committed.get(FIRST) == 5)
    bench.topic.committed[FIRST] = 2

    bench.run(lambda: bench.topic.committed.get(FIRST) == 5)

    assert bench.offsets() == [(offset, 0) for offset in range(5)]
