"""What the chains of a topic cover, against what the broker has and the group has committed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nap_stream.records import TopicPartition
from nap_stream.scored_log.defects import ChainHead, Defect, DefectKind, VerifyReport
from nap_stream.scored_log.layout import genesis_path, partition_folder
from nap_stream.scored_log.verify import sorted_defects


@dataclass(frozen=True, slots=True)
class BrokerOffsets:
    """A partition as the broker has it.

    ``earliest`` is the first offset that retention has left, ``end`` the one that the next
    message gets. ``committed`` is the group's, None where it has none. ``topic_id`` is None where
    the broker tells none.
    """

    partition: TopicPartition
    earliest: int
    end: int
    committed: int | None
    topic_id: str | None


@dataclass(frozen=True, slots=True)
class BrokerComparison:
    """A chain beside its partition.

    ``chain_start`` and ``chain_end`` are None where there is no chain, or its end cannot be read.
    ``lag`` counts the offsets from the chain's end to the partition's. ``gap_to_come`` counts
    those from the chain's end on that retention has deleted: the next worker declares them.
    """

    offsets: BrokerOffsets
    chain_start: int | None
    chain_end: int | None
    lag: int | None
    gap_to_come: int


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """The outcome of `compare_with_broker`."""

    topic: str
    group_id: str
    partitions: tuple[BrokerComparison, ...]
    defects: tuple[Defect, ...]


def compare_with_broker(
    report: VerifyReport,
    offsets: Sequence[BrokerOffsets],
    *,
    topic: str,
    group_id: str,
) -> BrokerReport:
    """Compare the chains of one topic with its partitions.

    Beside running workers the committed offsets must be read before the log is, and the
    partitions' ends after it: a worker commits what it has published before.

    Args:
        report: Of the log, or of this topic in it.
        offsets: Of every partition that the topic has.
        topic: Whose partitions they are.
        group_id: Whose committed offsets.
    """
    heads = {head.partition: head for head in report.heads if head.partition.topic == topic}
    broken = {defect.file.rsplit("/", 1)[0] for defect in report.defects}
    known = {one.partition for one in offsets}
    defects = [_beyond(heads[partition], None) for partition in sorted(heads.keys() - known)]
    for one in offsets:
        head = heads.get(one.partition)
        if head is not None:
            defects += _chain_defects(head, one)
        elif one.committed is not None and partition_folder(one.partition) not in broken:
            defects.append(_chain_missing(one))
    return BrokerReport(
        topic, group_id, tuple(_comparisons(heads, offsets)), sorted_defects(defects)
    )


def _comparisons(
    heads: Mapping[TopicPartition, ChainHead], offsets: Sequence[BrokerOffsets]
) -> Iterator[BrokerComparison]:
    for one in sorted(offsets, key=lambda found: found.partition):
        head = heads.get(one.partition)
        if head is None:
            yield BrokerComparison(one, None, None, None, 0)
        else:
            yield BrokerComparison(
                one,
                head.start_offset,
                head.end_offset,
                max(0, one.end - head.end_offset),
                max(0, one.earliest - head.end_offset),
            )


def _chain_defects(head: ChainHead, one: BrokerOffsets) -> Iterator[Defect]:
    folder = partition_folder(head.partition)
    if None not in (head.topic_id, one.topic_id) and head.topic_id != one.topic_id:
        detail = (
            f"the chain is of the topic with id {head.topic_id}, the broker's is {one.topic_id}"
        )
        yield Defect(folder, DefectKind.TOPIC_ID, detail)
    if head.end_offset > one.end:
        yield _beyond(head, one.end)
    if one.committed is not None and one.committed > head.end_offset:
        detail = (
            f"the group has committed {one.committed}, the chain ends at {head.end_offset}: "
            f"{one.committed - head.end_offset} offsets are committed and in no segment"
        )
        yield Defect(folder, DefectKind.BEHIND_COMMITTED, detail)


def _beyond(head: ChainHead, end: int | None) -> Defect:
    there = "the topic has no such partition" if end is None else f"the partition at {end}"
    detail = (
        f"the chain ends at {head.end_offset}, {there}: the topic was made anew, or the broker has "
        "lost messages"
    )
    return Defect(partition_folder(head.partition), DefectKind.BEYOND_BROKER, detail)


def _chain_missing(one: BrokerOffsets) -> Defect:
    detail = f"the group has committed {one.committed}, and there is no chain"
    return Defect(genesis_path(one.partition), DefectKind.CHAIN_MISSING, detail)
