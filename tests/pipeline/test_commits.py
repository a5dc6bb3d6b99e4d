"""What the publisher commits, and what it does not."""

from collections.abc import Mapping

from nap_stream.clock import Deadline, ManualClock
from nap_stream.errors import SegmentConflictError
from nap_stream.pipeline.commits import Publisher, WorkerCounters
from nap_stream.pipeline.partition import Partition
from nap_stream.records import TIME_PARTS, TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.summary import SummaryShape, summarise
from tests.pipeline.bench import FIRST, SECOND
from tests.support.doubles import MemoryDeadLetters
from tests.support.memory_store import MemoryStore
from tests.support.scored_records import RecordLog
from tests.support.told import Told


def test_batches_that_do_not_fit_are_counted_from_the_start() -> None:
    counters = WorkerCounters("worker-0", 0)
    totals = []
    for _ in range(2):
        counters.note_out_of_memory()
        report = counters.report(
            0,
            (),
            idle=False,
            waiting_for=None,
            time_parts=dict.fromkeys(TIME_PARTS, 0.0),
            left_out={},
        )
        totals.append(report.out_of_memory)
    assert totals == [1, 2]


def test_the_loser_of_a_race_commits_nothing_that_was_refused_before() -> None:
    store, clock, told = MemoryStore(), ManualClock(), Told()
    log = RecordLog(store, WriterIdentity("worker-0", "0" * 64, "1" * 64), clock)
    publisher = Publisher(
        log,
        MemoryDeadLetters(),
        told,
        lambda segment, rows, gap: summarise(segment, rows, SummaryShape(100, 3), gap),
        counters=WorkerCounters("worker-0", 0),
        clock=clock,
    )
    loser = Partition(FIRST, 1, log.begin(FIRST, 10), 12, pending=10)
    other = Partition(SECOND, 2, log.begin(SECOND, 0), 3, pending=None)
    log.publish(FIRST, loser.position, 20, ())
    committed: list[Mapping[TopicPartition, int]] = []

    def commit(offsets: Mapping[TopicPartition, int]) -> bool:
        committed.append(dict(offsets))
        return True

    (unpublished,) = publisher.checkpoint([loser, other], Deadline(clock, 1.0), commit)

    assert unpublished.partition is loser
    assert isinstance(unpublished.cause, SegmentConflictError)
    assert committed == [{SECOND: 3}]
    assert (loser.pending, other.pending) == (10, None)
    assert [summary.end_offset for summary in told.summaries] == [3]
    assert publisher.winner(loser, unpublished.cause).offset == 20
