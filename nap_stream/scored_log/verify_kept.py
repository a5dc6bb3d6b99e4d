"""The chains of now, against the ends that an earlier report has kept elsewhere.

A chain goes on, so its end is another one by now. But a segment's digest covers all before it:
where a segment of the chain still ends at the kept offset with the kept digest, nothing up to
there was changed, added or cut off.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.defects import ChainHead, Defect, DefectKind
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.layout import partition_folder, segment_path
from nap_stream.scored_log.segment_check import inspect_segment, merged_parts
from nap_stream.scored_log.store import SegmentStore
from nap_stream.scored_log.verify_genesis import read_genesis
from nap_stream.scored_log.verify_report import KIND, VERSION
from nap_stream.scored_log.walk import LOOK_BACK, complete_bases

_TYPES = {"topic": str, "partition": int, "start_offset": int, "end_offset": int, "sha256": str}


def parse_kept(text: str, where: str) -> tuple[ChainHead, ...]:
    """The ends of the chains in a report of `nap_stream.scored_log.verify_report`.

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
