"""What can be wrong with a scored log, and the report of a verification.

As JSON, for programs and for auditors' files, the report is one object. Keys are only ever added
while ``version`` stays the same:

    kind             "nap-stream verify report"
    version          1
    program_version  of nap-stream
    created_time_ms  when the verification began, since the epoch, UTC
    log              the log's root
    topic            the only topic that was verified; null for all
    deep             whether every value was read, or footers alone
    against_broker   whether the broker was asked
    clean            whether there is no defect
    counts           partitions, segments, rows, offsets, gap_offsets, compacted_files, defects,
                     pruned_rows, pruned_segments
    chains           of each partition whose last segment can be read: topic, partition, topic_id
                     (or null), start_offset, end_offset, sha256 (what the next segment must name)
    gaps             declared gaps: file, base_offset, end_offset, reason
    pruned           spans whose rows were pruned: file (the seal), seal_sha256, claimed (who is
                     said to have signed it), and the keys of `PrunedSpan` in
                     `nap_stream.scored_log.seals`
    compacted        compacted files: file, base_offset, end_offset, segments
    defects          file, kind (`DefectKind`), detail; those against the broker among them
    broker           null, or group_id, topic, and partitions: each with partition, topic_id,
                     earliest, end, committed, chain_start, chain_end, lag, gap_to_come,
                     before_chain; contents: null, or messages, images, gone, unread, pruned, and
                     problem: why the rest was not compared; and problem: why nothing was. Either
                     is empty where all was
    kept             null, or the chains of the kept report: as in chains. Those of them that are
                     not what they were have a defect
    events           null where there are none, or count, and sha256 of the last one
    kept_events      the same of the kept report
    anchors          null, or what signed checkpoints prove: log_id, checkpoints (how many count),
                     signers, newest_time_ms, unknown (a list of file and problem: signed by other
                     keys, or of other logs, and not counted), stamps (file, time_ms as signed,
                     stamped_ms when a TSA saw it), unstamped (files; null where time stamps were
                     not asked for), unread (topic and partition of what the newest could not
                     read), and chains: each with topic ("/events" for the chain
                     of events), partition, end_offset (null where it is gone or cannot be read),
                     anchored_offset and anchored_time_ms (null where no checkpoint agrees with
                     it), disagrees (the first file that does not, or null), stamped_offset and
                     stamped_ms (until where, and when, a TSA saw it; null where none has)

Files are relative to the root. All lists are in order.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nap_stream.errors import ConfigError
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.seals import PrunedSpan

KIND = "nap-stream verify report"
VERSION = 1
_TYPES = {"topic": str, "partition": int, "start_offset": int, "end_offset": int, "sha256": str}


class DefectKind(StrEnum):
    """The kinds of defects, each named for what was found."""

    GENESIS_MISSING = "genesis_missing"
    GENESIS_UNREADABLE = "genesis_unreadable"
    HOLE = "hole"
    OVERLAP = "overlap"
    COVERED = "covered"
    PREVIOUS_HASH = "previous_hash"
    TOPIC_ID = "topic_id"
    UNREADABLE = "unreadable"
    FOOTER = "footer"
    SCHEMA_VERSION = "schema_version"
    SCHEMA = "schema"
    NAME = "name"
    ROW_COUNT = "row_count"
    ROW_OUTSIDE_RANGE = "row_outside_range"
    ROW_ORDER = "row_order"
    DUPLICATE_ROW = "duplicate_row"
    ROWS_HASH = "rows_hash"
    CONTENT = "content"
    LAYOUT = "layout"
    STATISTICS = "statistics"
    INDEX = "index"
    STRAY_FILE = "stray_file"
    BEYOND_BROKER = "beyond_broker"
    BEHIND_COMMITTED = "behind_committed"
    TOPIC_CONTENT = "topic_content"
    CHAIN_MISSING = "chain_missing"
    GAP_RETAINED = "gap_retained"
    START_RETAINED = "start_retained"
    KEPT_DIGEST = "kept_digest"
    TRUNCATED = "truncated"
    REWRITTEN = "rewritten"
    BACKDATED = "backdated"
    CHECKPOINT = "checkpoint"
    SEAL = "seal"


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong. ``file`` is a file or folder, relative to the log's root."""

    file: str
    kind: DefectKind
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class DeclaredGap:
    """Offsets ``[base_offset, end_offset)`` that a segment says are missing, and why."""

    file: str
    base_offset: int
    end_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class CompactedFile:
    """A file that counts in its chain as the ``segments`` segments that it merged."""

    file: str
    base_offset: int
    end_offset: int
    segments: int


@dataclass(frozen=True, slots=True)
class PrunedFile:
    """A seal, its digest, and what it says of a span whose rows were pruned.

    ``claimed`` are the labels of the keys that are said to have signed it.
    """

    file: str
    seal_sha256: str
    claimed: tuple[str, ...]
    span: PrunedSpan


@dataclass(frozen=True, slots=True)
class ChainHead:
    """What a partition's chain covers, and the hash that its next segment must name.

    To prove later that nothing was changed or cut off, keep ``sha256`` elsewhere: it depends on
    every row and every footer of the chain. ``topic_id`` is None where no broker has told it.
    """

    partition: TopicPartition
    start_offset: int
    end_offset: int
    sha256: str
    topic_id: str | None = None


@dataclass(frozen=True, slots=True)
class EventsHead:
    """Where the chain of events ends: after ``count``, of which the last has ``sha256``."""

    count: int
    sha256: str


Head = ChainHead | EventsHead


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `nap_stream.scored_log.verify.run.verify`.

    ``segments`` counts those that the chains are made of, ``compacted`` names the files that hold
    several. ``offsets`` counts the offsets that segments cover, ``gap_offsets`` those in declared
    gaps, which are not among them. A segment that could not be read counts in ``segments`` alone.
    A file that begins before the end of the one before it is not counted. ``heads`` holds the
    partitions whose last segment could be read. ``pruned`` are the spans of which only seals are
    left: their gaps are among ``gaps``, and their rows in no count. ``deep`` says whether every
    value was read. ``events`` is None where there are none.
    """

    partitions: int
    segments: int
    rows: int
    offsets: int
    gap_offsets: int
    gaps: tuple[DeclaredGap, ...]
    heads: tuple[ChainHead, ...]
    defects: tuple[Defect, ...]
    compacted: tuple[CompactedFile, ...] = ()
    deep: bool = False
    events: EventsHead | None = None
    pruned: tuple[PrunedFile, ...] = ()

    def pruned_at(self, partition: TopicPartition, end_offset: int) -> PrunedFile | None:
        """The seal of the span in which a chain ended at an offset; None where rows are there."""
        own = (each for each in self.pruned if each.span.place == partition)
        return next((o for o in own if o.span.start_offset < end_offset <= o.span.end_offset), None)

    @property
    def ends(self) -> tuple[Head, ...]:
        """Where all chains end: what to keep elsewhere."""
        return (*self.heads, *([] if self.events is None else [self.events]))

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong. Declared gaps are no defects."""
        return not self.defects


@dataclass(frozen=True, slots=True)
class BrokerComparison:
    """A chain beside its partition.

    ``chain_start`` and ``chain_end`` are None where there is no chain, or its end cannot be read.
    ``lag`` counts the offsets from the chain's end to the partition's. ``gap_to_come`` counts
    those from the chain's end on that retention has deleted: the next worker declares them.
    ``before_chain`` counts those that the partition has from before the chain's start.
    """

    offsets: PartitionOffsets
    chain_start: int | None
    chain_end: int | None
    lag: int | None
    gap_to_come: int
    before_chain: int


@dataclass(frozen=True, slots=True)
class ContentsReport:
    """What a topic's messages hold, beside the log's rows.

    ``messages`` were read, and ``images`` of them have the SHA-256 of their rows. ``gone`` counts
    rows within what the broker holds whose message it has no more: Kafka's compaction removes some.
    ``unread`` images lie elsewhere, and could not be had when they were logged, or cannot now.
    ``pruned`` counts offsets whose rows were pruned, and which the broker may still have: they were
    not read. ``problem`` says why the rest of the topic was not compared; empty where all was.
    """

    messages: int
    images: int
    gone: int
    unread: int
    pruned: int
    defects: tuple[Defect, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """The outcome of `compare_with_broker`; ``contents`` is None where they were not asked for.

    ``topic`` is the name of all that were compared. ``problem`` says what was not, and why; empty
    where all was.
    """

    topic: str
    group_id: str
    partitions: tuple[BrokerComparison, ...]
    defects: tuple[Defect, ...]
    contents: ContentsReport | None = None
    problem: str = ""

    @property
    def is_cut(self) -> bool:
        """Whether not all that was asked for could be compared."""
        return bool(self.problem or (self.contents and self.contents.problem))


@dataclass(frozen=True, slots=True)
class AnchoredChain:
    """How far signed checkpoints witness a chain.

    ``anchored_offset`` is the greatest end that a checkpoint names with which the chain agrees,
    ``anchored_time_ms`` when that was signed last: None where none agrees. What lies from there to
    ``end_offset`` no checkpoint has seen. ``disagrees`` is the first that names another digest, or
    an end that is gone; None where all agree. ``stamped_offset`` is the last such end of a
    checkpoint that a TSA has stamped, ``stamped_ms`` when; None where none has.
    """

    partition: TopicPartition
    end_offset: int | None
    anchored_offset: int | None
    anchored_time_ms: int | None
    disagrees: str | None
    stamped_offset: int | None = None
    stamped_ms: int | None = None


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """What signed checkpoints prove of the chains; see the module's docstring."""

    log_id: str
    checkpoints: int
    signers: tuple[str, ...]
    newest_time_ms: int
    unknown: tuple[tuple[str, str], ...]
    stamps: tuple[tuple[str, int, int], ...]
    unstamped: tuple[str, ...] | None
    unread: tuple[TopicPartition, ...]
    chains: tuple[AnchoredChain, ...]
    defects: tuple[Defect, ...]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What was verified, when and by what; see the module's docstring."""

    log: str
    topic: str | None
    program_version: str
    created_time_ms: int


def sorted_defects(defects: Iterable[Defect]) -> tuple[Defect, ...]:
    """By file, then by kind."""
    return tuple(sorted(defects, key=lambda defect: (defect.file, defect.kind)))


def encode_report(
    report: VerifyReport,
    broker: BrokerReport | None,
    circumstances: Circumstances,
    kept: Sequence[Head] = (),
    anchors: AnchorReport | None = None,
) -> str:
    """The report as JSON text, indented, with a line's end.

    ``report`` holds all the defects; ``kept`` are the ends with which chains were compared.
    """
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
            "pruned_rows": sum(each.span.rows for each in report.pruned),
            "pruned_segments": sum(each.span.segments for each in report.pruned),
        },
        "chains": [_chain(head) for head in report.heads],
        "gaps": [dataclasses.asdict(gap) for gap in report.gaps],
        "pruned": [_pruned(each) for each in report.pruned],
        "compacted": [dataclasses.asdict(file) for file in report.compacted],
        "defects": [dataclasses.asdict(defect) for defect in report.defects],
        "broker": None if broker is None else _broker(broker),
        "kept": [_chain(head) for head in kept if isinstance(head, ChainHead)] or None,
        "events": None if report.events is None else dataclasses.asdict(report.events),
        "kept_events": next(
            (dataclasses.asdict(head) for head in kept if isinstance(head, EventsHead)), None
        ),
        "anchors": None if anchors is None else _anchors(anchors),
    }
    return json.dumps(tree, indent=2, ensure_ascii=True) + "\n"


def _pruned(found: PrunedFile) -> dict[str, Any]:
    tree = dataclasses.asdict(found)
    return {**tree, **tree.pop("span")}


def _chain(head: ChainHead | AnchoredChain) -> dict[str, Any]:
    tree = dataclasses.asdict(head)
    return {**tree.pop("partition"), **tree}


def _anchors(anchors: AnchorReport) -> dict[str, Any]:
    return {
        "log_id": anchors.log_id,
        "checkpoints": anchors.checkpoints,
        "signers": list(anchors.signers),
        "newest_time_ms": anchors.newest_time_ms,
        "unknown": [{"file": file, "problem": problem} for file, problem in anchors.unknown],
        "stamps": [
            {"file": file, "time_ms": time_ms, "stamped_ms": stamped_ms}
            for file, time_ms, stamped_ms in anchors.stamps
        ],
        "unstamped": None if anchors.unstamped is None else list(anchors.unstamped),
        "unread": [dataclasses.asdict(chain) for chain in anchors.unread],
        "chains": [_chain(chain) for chain in anchors.chains],
    }


def _broker(broker: BrokerReport) -> dict[str, Any]:
    partitions = [_comparison(found) for found in broker.partitions]
    contents = None if broker.contents is None else dataclasses.asdict(broker.contents)
    if contents is not None:
        del contents["defects"]
    return {
        "topic": broker.topic,
        "group_id": broker.group_id,
        "partitions": partitions,
        "contents": contents,
        "problem": broker.problem,
    }


def _comparison(found: BrokerComparison) -> dict[str, Any]:
    tree = dataclasses.asdict(found)
    offsets = tree.pop("offsets")
    number = offsets.pop("partition")["partition"]
    return {"partition": number, **offsets, **tree}


def parse_kept(text: str, where: str) -> tuple[Head, ...]:
    """The ends of the chains in a report that `encode_report` has made. Older ones have no events.

    Raises:
        ConfigError: It is no such report.
    """
    try:
        return _heads(json.loads(text))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"not a report of a verification: {error}", where, "Give a file of verify --report"
        ) from error


def _heads(tree: Any) -> tuple[Head, ...]:
    if (tree["kind"], tree["version"]) != (KIND, VERSION):
        raise ValueError(f"kind {tree['kind']!r}, version {tree['version']!r}")
    if not tree["chains"]:
        raise ValueError("it has no chains, and so proves nothing")
    heads: list[Head] = [_head(chain) for chain in tree["chains"]]
    if tree.get("events") is not None:
        events = tree["events"]
        _check_types(events, {"count": int, "sha256": str})
        heads.append(EventsHead(events["count"], events["sha256"]))
    return tuple(heads)


def _check_types(tree: Any, types: Mapping[str, type]) -> None:
    for name, kind in types.items():
        if type(tree[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}: {tree[name]!r}")


def _head(tree: Any) -> ChainHead:
    _check_types(tree, _TYPES)
    partition = TopicPartition(tree["topic"], tree["partition"])
    return ChainHead(
        partition, tree["start_offset"], tree["end_offset"], tree["sha256"], tree["topic_id"]
    )
