"""What the log of a run holds."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nap_stream.clock import SystemClock
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.run import verify
from tests.faults.harness_stream import Rows


@dataclass(frozen=True, slots=True)
class Difference:
    """What the log lacks of what was produced, holds more than once, or holds of nothing."""

    lost: tuple[tuple[int, int, int], ...]
    twice: tuple[tuple[int, int, int], ...]
    other: tuple[tuple[int, int, int], ...]

    def __bool__(self) -> bool:
        return bool(self.lost or self.twice or self.other)


def compare(root: Path | str, topic: str, produced: Rows) -> Difference:
    """Read the whole log and compare it with what was produced."""
    columns = ("partition", "offset", "index", "sha256")
    rows = [
        (row["partition"], row["offset"], row["index"], row["sha256"])
        for batch in scan(store_at(root), Query(topic=topic), columns)
        for row in batch.to_pylist()
    ]
    times = Counter(row[:3] for row in rows)
    wrong = {row[:3] for row in rows if produced.get(row[:3], "") != row[3]}
    return Difference(
        lost=tuple(sorted(produced.keys() - times.keys())),
        twice=tuple(sorted(place for place, count in times.items() if count > 1)),
        other=tuple(sorted(wrong)),
    )


def chain_ends(root: Path | str, topic: str, partitions: int) -> dict[int, int]:
    """Where each chain ends now; partitions without one are left out."""
    log = ScoredLog(store_at(root), WriterIdentity("harness", "0" * 64, "0" * 64), SystemClock())
    found = {number: log.end(TopicPartition(topic, number)) for number in range(partitions)}
    return {number: end.offset for number, end in found.items() if end is not None}


def check_clean(root: Path | str) -> dict[int, int]:
    """Where each chain ends by `verify`; fails where the log has a defect or a declared gap."""
    report = verify(store_at(root), deep=True)
    assert report.clean, report.defects
    assert not report.gaps, report.gaps
    return {head.partition.partition: head.end_offset for head in report.heads}
