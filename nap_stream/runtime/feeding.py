"""In which order a log of several partitions is read, so that the drift monitor waits for none."""

import heapq
from collections.abc import Iterator, Mapping

from nap_stream.records import SegmentSummary, TopicPartition

_BEFORE_ALL_MS = -(2**63)


def in_event_time(
    chains: Mapping[TopicPartition, Iterator[SegmentSummary]],
) -> Iterator[tuple[TopicPartition, SegmentSummary | None]]:
    """Read several chains side by side: always the one that is furthest behind in event time.

    So the panes that wait for the slowest partition stay few, however long the chains are.

    Args:
        chains: Summaries of each partition, in order of offset. Read no further than needed.

    Yields:
        A partition and its next summary; None once where its chain has ended.
    """
    reached = [(_BEFORE_ALL_MS, partition) for partition in chains]
    heapq.heapify(reached)
    while reached:
        time_ms, partition = heapq.heappop(reached)
        summary = next(chains[partition], None)
        yield partition, summary
        if summary is not None:
            newest_ms = summary.max_event_time_ms
            time_ms = time_ms if newest_ms is None else max(time_ms, newest_ms)
            heapq.heappush(reached, (time_ms, partition))
