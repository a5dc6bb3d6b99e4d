"""The report of a verification as JSON, for programs and for auditors' files.

One object. Keys are only ever added while ``version`` stays the same:

    kind             "nap-stream verify report"
    version          1
    program_version  of nap-stream
    created_time_ms  when the verification began, since the epoch, UTC
    log              the log's root
    topic            the only topic that was verified; null for all
    deep             whether every value was read, or footers alone
    against_broker   whether the broker was asked
    clean            whether there is no defect
    counts           partitions, segments, rows, offsets, gap_offsets, compacted_files, defects
    chains           of each partition whose last segment can be read: topic, partition, topic_id
                     (or null), start_offset, end_offset, sha256 (what the next segment must name)
    gaps             declared gaps: file, base_offset, end_offset, reason
    compacted        compacted files: file, base_offset, end_offset, segments
    defects          file, kind (`nap_stream.scored_log.verify.defects.DefectKind`), detail; those
                     against the broker among them
    broker           null, or group_id, topic, and partitions: each with partition, topic_id,
                     earliest, end, committed, chain_start, chain_end, lag, gap_to_come
                     (`nap_stream.scored_log.verify.run`)

Files are relative to the root. All lists are in order.

The chains of now, against the ends that an earlier report has kept elsewhere.

A chain goes on, so its end is another one by now. But a segment's digest covers all before it:
where a segment of the chain still ends at the kept offset with the kept digest, nothing up to
there was changed, added or cut off.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import partition_folder, segment_path
from nap_stream.scored_log.read import LOOK_BACK, complete_bases
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.verify.chain import read_genesis
from nap_stream.scored_log.verify.defects import ChainHead, Defect, DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import BrokerComparison, BrokerReport
from nap_stream.scored_log.verify.segment import inspect_segment, merged_parts

KIND = "nap-stream verify report"
VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Circumstances:
    """What was verified, when and by what; see the module's docstring."""

    log: str
    topic: str | None
    program_version: str
    created_time_ms: int


def encode_report(
    report: VerifyReport, broker: BrokerReport | None, circumstances: Circumstances
) -> str:
    """The report as JSON text, indented, with a line's end. ``report`` holds all the defects."""
    tree = {
        "kind": KIND,
        "version": VERSION,
        **dataclasses.asdict(circumstances),
        "deep": report.deep,
        "against_broker": broker is not None,
        "clean": report.clean,
        "counts": {
            **{
                name: getattr(report, name)
                for name in ("partitions", "segments", "rows", "offsets", "gap_offsets")
            },
            "compacted_files": len(report.compacted),
            "defects": len(report.defects),
        },
        "chains": [_chain(head) for head in report.heads],
        "gaps": [dataclasses.asdict(gap) for gap in report.gaps],
        "compacted": [dataclasses.asdict(file) for file in report.compacted],
        "defects": [dataclasses.asdict(defect) for defect in report.defects],
        "broker": None if broker is None else _broker(broker),
    }
    return json.dumps(tree, indent=2, ensure_ascii=True) + "\n"


def _chain(head: ChainHead) -> dict[str, Any]:
    tree = dataclasses.asdict(head)
    return {**tree.pop("partition"), **tree}


def _broker(broker: BrokerReport) -> dict[str, Any]:
    return {
        "topic": broker.topic,
        "group_id": broker.group_id,
        "partitions": [_comparison(found) for found in broker.partitions],
    }


def _comparison(found: BrokerComparison) -> dict[str, Any]:
    tree = dataclasses.asdict(found)
    offsets = tree.pop("offsets")
    number = offsets.pop("partition")["partition"]
    return {"partition": number, **offsets, **tree}


_TYPES = {"topic": str, "partition": int, "start_offset": int, "end_offset": int, "sha256": str}


def parse_kept(text: str, where: str) -> tuple[ChainHead, ...]:
    """The ends of the chains in a report of `nap_stream.scored_log.verify.report`.

    Raises:
        ConfigError: It is no such report.
    """
    try:
        return tuple(_heads(json.loads(text)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"not a report of a verification: {error}", where, "Give a file of verify --report"
        ) from error


def compare_with_kept(store: SegmentStore, kept: Iterable[ChainHead]) -> Iterator[Defect]:
    """Kept ends that are no longer in their chains.

    Proves something only of a log whose chains have been verified: it looks at one segment each.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    for head in kept:
        found = _digest_at(store, head)
        if found != head.sha256:
            there = "no segment ends there" if found is None else f"it is {found} there"
            detail = (
                f"the kept report has the digest {head.sha256} where the chain ended at "
                f"{head.end_offset}; now {there}"
            )
            yield Defect(partition_folder(head.partition), DefectKind.KEPT_DIGEST, detail)


def _heads(tree: Any) -> Iterator[ChainHead]:
    if (tree["kind"], tree["version"]) != (KIND, VERSION):
        raise ValueError(f"kind {tree['kind']!r}, version {tree['version']!r}")
    yield from (_head(chain) for chain in tree["chains"])


def _head(tree: Any) -> ChainHead:
    for name, kind in _TYPES.items():
        if type(tree[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}: {tree[name]!r}")
    partition = TopicPartition(tree["topic"], tree["partition"])
    return ChainHead(
        partition, tree["start_offset"], tree["end_offset"], tree["sha256"], tree["topic_id"]
    )


def _digest_at(store: SegmentStore, head: ChainHead) -> str | None:
    """The digest of the segment, or of the genesis marker, that ends where the chain ended."""
    partition, end = head.partition, head.end_offset
    start = read_genesis(store, partition, needed=False).position
    if start is not None and start.offset == end:
        return start.previous_sha256
    looked_at = 0
    for base in reversed([base for base in complete_bases(store, partition) if base < end]):
        path = segment_path(partition, base)
        found = inspect_segment(store, path, deep=False)
        if found is None:
            continue
        looked_at += 1
        if found.footer is not None and found.footer.end_offset == end:
            return found.sha256
        for part in merged_parts(store, path):
            if part.end_offset == end:
                return segment_sha256(part)
        if looked_at == LOOK_BACK:
            break
    return None
