"""The scored log of a topic as a list of summaries."""

from collections.abc import Iterable, Iterator

from nap_stream.errors import ScoredLogError
from nap_stream.records import SegmentSummary, TopicPartition
from nap_stream.scored_log.summary import LAST_OFFSET, LogEnds, LogSummaries


class SummaryList(LogSummaries):
    """The durable segments, as the log's reader tells of them."""

    def __init__(self, durable: Iterable[SegmentSummary] = ()) -> None:
        self.durable = list(durable)
        self.reads: list[tuple[TopicPartition, int, int]] = []
        self.broken = False
        self.fault = ScoredLogError("the disk is gone", "the log", "Mount it")

    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(sorted({summary.partition for summary in self.durable}))

    def ends(self) -> LogEnds:
        ends: dict[TopicPartition, int] = {}
        for each in self.durable:
            ends[each.partition] = max(each.end_offset, ends.get(each.partition, 0))
        return ends

    def read(self, wanted: TopicPartition, start: int, end: int) -> Iterator[SegmentSummary]:
        self.reads.append((wanted, start, end))
        if self.broken:
            raise self.fault
        return iter(
            [s for s in self.durable if s.partition == wanted and start <= s.base_offset < end]
        )

    def tail(self, wanted: TopicPartition) -> Iterator[SegmentSummary]:
        return self.read(wanted, 0, LAST_OFFSET)
