"""How the segments of one partition follow each other, from its genesis marker on.

The findings hold beside writers and beside a compaction too: what looks wrong between segments is
looked at again until nothing changes any more. A compaction puts the merged file in place of the
first segment, and then removes the others. A writer that slept may publish a segment and take it
back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nap_stream.clock import Clock
from nap_stream.errors import ScoredLogError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import chain_start
from nap_stream.scored_log.footer import merged_slots, segment_sha256
from nap_stream.scored_log.format import genesis_path
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import ChainHead, Defect, DefectKind
from nap_stream.scored_log.verify.segment import SegmentFindings, merged_parts

Inspect = Callable[[Sequence[str]], Iterable[SegmentFindings | None]]
"""From paths to what `nap_stream.scored_log.verify.segment.inspect_segment` says of each."""
SETTLE_S = 1.0
"""How long what looks wrong between segments must stay as it is to be a defect. A compaction
removes many files in that time, and a writer takes back what it should not have published."""
PASSES = 1_000
"""How often a chain is looked at again while its files change. Each time fewer can."""


@dataclass(frozen=True, slots=True)
class GenesisFindings:
    """Where a chain starts, None where the marker does not say, and what is wrong with it."""

    position: ChainPosition | None
    defects: tuple[Defect, ...] = ()


def read_genesis(
    store: SegmentStore, partition: TopicPartition, *, needed: bool
) -> GenesisFindings:
    """Check a partition's genesis marker. ``needed`` says that a missing one is a defect."""
    path = genesis_path(partition)
    try:
        start = chain_start(store, partition)
    except ScoredLogError as error:
        return GenesisFindings(None, (Defect(path, DefectKind.GENESIS_UNREADABLE, error.problem),))
    if start is not None or not needed:
        return GenesisFindings(start)
    detail = "no marker says where the chain starts"
    return GenesisFindings(None, (Defect(path, DefectKind.GENESIS_MISSING, detail),))


@dataclass(frozen=True, slots=True)
class ChainFindings:
    """What verification has found out about a chain.

    ``segments`` are the files that the chain is made of, in order. Damaged ones are among them.
    Files that begin before the end of the one before them are not. ``head`` is None where the
    marker or the last file cannot be read.
    """

    segments: tuple[SegmentFindings, ...]
    head: ChainHead | None
    defects: tuple[Defect, ...]


def examine_chain(
    store: SegmentStore, partition: TopicPartition, inspect: Inspect, clock: Clock
) -> ChainFindings:
    """Check one partition's chain, from its genesis marker to its end.

    ``inspect`` looks at segments by themselves; the clock waits while files change.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    seen: dict[str, SegmentFindings] = {}
    last_suspected: tuple[Defect, ...] = ()
    for _ in range(PASSES):
        paths = segments(store, partition)
        genesis = read_genesis(store, partition, needed=True)
        fresh = [path for path in paths if path not in seen]
        found = dict(zip(fresh, inspect(fresh), strict=True))
        gone = {path for path, findings in found.items() if findings is None}
        seen.update((path, findings) for path, findings in found.items() if findings is not None)
        links = _Links(store, genesis.position)
        for path in paths:
            if path in seen:
                links.add(seen[path])
        suspected = (*genesis.defects, *links.defects)
        if not gone and (not suspected or suspected == last_suspected):
            break
        last_suspected = suspected
        _forget(seen, paths, gone | {defect.file for defect in suspected})
        clock.sleep(SETTLE_S)
    own = [d for findings in (*links.accepted, *links.unreadable) for d in findings.defects]
    start, end = genesis.position, links.position
    head = (
        None
        if start is None or end is None
        else ChainHead(partition, start.offset, end.offset, end.previous_sha256, links.topic_id)
    )
    return ChainFindings(tuple(links.accepted), head, (*own, *suspected))


def _forget(seen: dict[str, SegmentFindings], paths: Sequence[str], suspected: set[str]) -> None:
    """Have these files read anew, and those before them: they may have been merged since."""
    for before, path in zip(["", *paths], paths, strict=False):
        if path in suspected:
            seen.pop(path, None)
            seen.pop(before, None)


@dataclass(frozen=True, slots=True)
class _Merged:
    """Digests of the segments that the file at ``path`` has merged, and where they stand."""

    path: str
    digests: frozenset[str]
    slots: frozenset[tuple[int, str]]


@dataclass(slots=True)
class _Links:
    """Segments one after another. ``position`` is None behind one that cannot be read."""

    store: SegmentStore
    position: ChainPosition | None
    topic_id: str | None = None
    accepted: list[SegmentFindings] = field(default_factory=list)
    unreadable: list[SegmentFindings] = field(default_factory=list)
    merged: _Merged | None = None
    defects: list[Defect] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.position is not None:
            self.topic_id = self.position.topic_id

    def add(self, found: SegmentFindings) -> None:
        """Take the next file of the folder."""
        here = self.position
        if here is not None and found.base_offset < here.offset:
            self._pass_over(found, here)
            return
        self.defects += _link_defects(found, here)
        self.defects += self._topic_defects(found)
        self.accepted.append(found)
        self.position = (
            ChainPosition(found.footer.end_offset, found.sha256)
            if found.footer is not None and found.sha256 is not None
            else None
        )

    def _pass_over(self, found: SegmentFindings, here: ChainPosition) -> None:
        """A file that begins before the position is no part of the chain."""
        if found.footer is None:
            self.unreadable.append(found)
            return
        covering = self.accepted[-1].path if self.accepted else ""
        merged = self._merged_into(covering)
        if found.sha256 in merged.digests:
            detail = (
                f"it has been merged into {covering}; the compaction was interrupted: "
                "run `nap-stream compact` again to finish it"
            )
        elif (found.base_offset, found.footer.previous_sha256) in merged.slots:
            detail = (
                f"its base offset has been merged into {covering}; the writer that published it "
                "after that died before it could take it back: `nap-stream compact` removes it"
            )
        else:
            self.defects.append(_overlap(found, here))
            return
        self.defects.append(Defect(found.path, DefectKind.COVERED, detail))

    def _merged_into(self, path: str) -> "_Merged":
        """What a file has merged; read once for all that it covers, which can be thousands."""
        if self.merged is None or self.merged.path != path:
            parts = merged_parts(self.store, path) if path else ()
            digests = frozenset(segment_sha256(part) for part in parts)
            self.merged = _Merged(path, digests, frozenset(merged_slots(parts)))
        return self.merged

    def _topic_defects(self, found: SegmentFindings) -> Iterator[Defect]:
        for topic_id in found.topic_ids:
            if self.topic_id is not None and topic_id != self.topic_id:
                detail = f"its topic's id is {topic_id}, the chain before has {self.topic_id}"
                yield Defect(found.path, DefectKind.TOPIC_ID, detail)
            self.topic_id = topic_id


def _link_defects(found: SegmentFindings, expected: ChainPosition | None) -> Iterator[Defect]:
    if expected is None:
        return
    if found.base_offset > expected.offset:
        detail = f"offsets [{expected.offset}, {found.base_offset}) are in no segment"
        yield Defect(found.path, DefectKind.HOLE, detail)
    footer = found.footer
    if footer is not None and footer.previous_sha256 != expected.previous_sha256:
        detail = (
            f"what stands before has the digest {expected.previous_sha256}, "
            f"this footer names {footer.previous_sha256}"
        )
        yield Defect(found.path, DefectKind.PREVIOUS_HASH, detail)


def _overlap(found: SegmentFindings, expected: ChainPosition) -> Defect:
    detail = f"offsets [{found.base_offset}, {expected.offset}) are in a segment before it too"
    return Defect(found.path, DefectKind.OVERLAP, detail)
