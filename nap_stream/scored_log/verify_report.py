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
    defects          file, kind (`nap_stream.scored_log.defects.DefectKind`), detail; those
                     against the broker among them
    broker           null, or group_id, topic, and partitions: each with partition, topic_id,
                     earliest, end, committed, chain_start, chain_end, lag, gap_to_come
                     (`nap_stream.scored_log.verify_broker`)

Files are relative to the root. All lists are in order.
"""

import dataclasses
import json
from typing import Any

from nap_stream.scored_log.defects import ChainHead, VerifyReport
from nap_stream.scored_log.verify_broker import BrokerComparison, BrokerReport

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
