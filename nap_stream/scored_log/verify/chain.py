"""How the segments of one partition follow each other, from its genesis marker on.

The findings hold beside writers and beside a compaction too: what looks wrong between segments is
looked at again until nothing changes any more. A compaction puts the merged file in place of the
first segment, and then removes the others. A writer that slept may publish a segment and take it
back. A prune seals a span of segments, and then removes them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nap_stream.clock import Clock
from nap_stream.errors import ScoredLogError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import chain_start
from nap_stream.scored_log.footer import merged_slots, segment_sha256
from nap_stream.scored_log.format import genesis_path, partition_folder
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.seals import Seal, read_seal, seal_paths
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import (
    ChainHead,
    DeclaredGap,
    Defect,
    DefectKind,
    PrunedFile,
)
from nap_stream.scored_log.verify.segment import SegmentFindings, merged_parts
from nap_stream.text import rfc3339

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
    marker or the last file cannot be read. ``pruned`` are the seals of what was removed before the
    first of them, in order, and ``gaps`` what their footers declare missing.
    """

    segments: tuple[SegmentFindings, ...]
    head: ChainHead | None
    defects: tuple[Defect, ...]
    pruned: tuple[PrunedFile, ...] = ()
    gaps: tuple[DeclaredGap, ...] = ()


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
        links.add_seals(partition)
        for path in paths:
            if path in seen:
                links.add(seen[path])
        suspected = (*genesis.defects, *links.defects)
        if not gone and (not suspected or suspected == last_suspected):
            break
        last_suspected = suspected
        _forget(seen, paths, gone | {defect.file for defect in suspected})
        clock.sleep(SETTLE_S)
    if links.seals and not links.accepted:
        detail = "nothing stands behind what was pruned; a prune never takes a chain's newest file"
        suspected += (Defect(partition_folder(partition), DefectKind.TRUNCATED, detail),)
    own = [d for findings in (*links.accepted, *links.unreadable) for d in findings.defects]
    start, end = genesis.position, links.position
    head = (
        None
        if start is None or end is None
        else ChainHead(partition, start.offset, end.offset, end.previous_sha256, links.topic_id)
    )
    pruned = (PrunedFile(s.span.path, s.sha256, s.claimed, s.span) for s in links.seals)
    gaps = (
        DeclaredGap(seal.span.path, part.base_offset, part.end_offset, part.gap)
        for seal in links.seals
        for part in seal.parts
        if part.gap is not None
    )
    defects = (*own, *suspected)
    return ChainFindings(tuple(links.accepted), head, defects, tuple(pruned), tuple(gaps))


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
    seals: list[Seal] = field(default_factory=list)
    sealed: set[tuple[int, str]] = field(default_factory=set)
    """Where the segments stand in the chain that seals cover."""

    def __post_init__(self) -> None:
        if self.position is not None:
            self.topic_id = self.position.topic_id

    def add_seals(self, partition: TopicPartition) -> None:
        """Take what was pruned: the footers of its segments, which follow each other."""
        for path in seal_paths(self.store, partition):
            try:
                seal = read_seal(self.store, path)
            except ScoredLogError as error:
                self.defects.append(Defect(path, DefectKind.SEAL, error.problem))
                self.position = None
                continue
            here, span = self.position, seal.span
            end = (here.offset, here.previous_sha256) if here is not None else None
            if end not in {None, (span.start_offset, span.previous_sha256)}:
                detail = (
                    f"what stands before it ends at {end and end[0]} with the digest "
                    f"{end and end[1]}; it seals from {span.start_offset} on, behind "
                    f"{span.previous_sha256}"
                )
                self.defects.append(Defect(path, DefectKind.SEAL, detail))
            topic_ids = dict.fromkeys(p.topic_id for p in seal.parts if p.topic_id is not None)
            self.defects += self._topic_defects(path, tuple(topic_ids))
            self.seals.append(seal)
            self.sealed |= merged_slots(seal.parts)
            self.position = ChainPosition(span.end_offset, span.sha256)

    def add(self, found: SegmentFindings) -> None:
        """Take the next file of the folder."""
        here = self.position
        if here is not None and found.base_offset < here.offset:
            self._pass_over(found, here)
            return
        self.defects += _link_defects(found, here)
        self.defects += self._topic_defects(found.path, found.topic_ids)
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
        if not self.accepted and self.seals:
            self.defects.append(self._sealed_defect(found))
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

    def _sealed_defect(self, found: SegmentFindings) -> Defect:
        """That a file is there which a seal covers, or which lies in what it covers."""
        span = next(
            (s.span for s in reversed(self.seals) if s.span.start_offset <= found.base_offset),
            self.seals[0].span,
        )
        pruned = f"{span.path} says that {span.by} pruned it on {rfc3339(span.pruned_ms)}"
        footer = found.footer
        if footer is not None and (found.base_offset, footer.previous_sha256) in self.sealed:
            detail = (
                f"{pruned}, and it is there: the prune was interrupted, or a writer that slept "
                "died: the next `nap-stream prune` finishes it, or says why not"
            )
            return Defect(found.path, DefectKind.COVERED, detail)
        detail = f"{pruned} where it lies, but no segment like it"
        return Defect(found.path, DefectKind.OVERLAP, detail)

    def _merged_into(self, path: str) -> "_Merged":
        """What a file has merged; read once for all that it covers, which can be thousands."""
        if self.merged is None or self.merged.path != path:
            parts = merged_parts(self.store, path) if path else ()
            digests = frozenset(segment_sha256(part) for part in parts)
            self.merged = _Merged(path, digests, frozenset(merged_slots(parts)))
        return self.merged

    def _topic_defects(self, path: str, topic_ids: Sequence[str]) -> Iterator[Defect]:
        for topic_id in topic_ids:
            if self.topic_id is not None and topic_id != self.topic_id:
                detail = f"its topic's id is {topic_id}, the chain before has {self.topic_id}"
                yield Defect(path, DefectKind.TOPIC_ID, detail)
            self.topic_id = topic_id


def _link_defects(found: SegmentFindings, expected: ChainPosition | None) -> Iterator[Defect]:
    if expected is None:
        return
    if found.base_offset > expected.offset:
        detail = f"offsets [{expected.offset}, {found.base_offset}) are in no segment and no seal"
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
