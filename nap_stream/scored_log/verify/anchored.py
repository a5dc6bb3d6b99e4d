"""Chains beside signed checkpoints: what of them these witness, and what was changed since.

A chain goes on, so it is looked for the ends that checkpoints name. Where a segment still ends at
such an offset with the signed digest, nothing up to there was changed, added or cut off after the
checkpoint was signed. What came after the newest one, no checkpoint has seen.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from nap_stream.errors import ConfigError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import FOLDER as EVENTS_FOLDER
from nap_stream.scored_log.events import Event, event_path, walk_events
from nap_stream.scored_log.format import partition_folder, segment_path
from nap_stream.scored_log.proof.checkpoint import (
    EVENTS,
    FOLDER,
    LOG_FILE,
    NONE_BEFORE,
    FoundCheckpoint,
    SignedCheckpoint,
    changed_words,
    events_head,
    log_id,
)
from nap_stream.scored_log.read import parts_backwards
from nap_stream.scored_log.seals import read_seal, seal_paths
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.compared import digests_at, readable_event_sha256
from nap_stream.scored_log.verify.report import (
    AnchoredChain,
    AnchorReport,
    ChainHead,
    Defect,
    DefectKind,
)
from nap_stream.text import listed, rfc3339

CLOCK_TOLERANCE_MS = 600_000
"""So far the clocks of who writes, of who signs and of who stamps may lie apart."""
_End = tuple[int, str]
"""Where a chain ended, and its digest there."""
_Seen = tuple[int, str]
"""When a checkpoint was signed, and where it was found."""


@dataclass(slots=True)
class _Witness:
    """The first and the last checkpoint that says so, and the first time stamp of one that does."""

    first: _Seen
    last: _Seen
    stamped_ms: int | None = None


_Ends = dict[_End, _Witness]


@dataclass(slots=True)
class _Witnesses:
    """All checkpoints of one log that count, and what they say of each chain."""

    log_id: str | None
    count: int = 0
    signers: set[str] = field(default_factory=set)
    newest: SignedCheckpoint | None = None
    ends: dict[TopicPartition, _Ends] = field(default_factory=dict)
    told: list[FoundCheckpoint] = field(default_factory=list)
    stamps: list[tuple[str, int, int]] = field(default_factory=list)
    unstamped: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    lacking: list[tuple[_Seen, frozenset[TopicPartition]]] = field(default_factory=list)
    """Of each checkpoint, the chains that it could not judge."""
    changed: dict[ChainHead, _Seen] = field(default_factory=dict)
    """Ends that a signer found to be gone, and the first checkpoint that says so."""
    notes: set[str] = field(default_factory=set)
    previous: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bool] = field(default_factory=dict)
    """The files that were kept elsewhere, and whether a note in one counts."""

    def take(self, found: FoundCheckpoint) -> None:
        self.notes.add(found.sha256)
        checkpoint = found.checkpoint
        if checkpoint is not None and self.log_id is None:
            self.log_id = checkpoint.log_id
        if checkpoint is not None and checkpoint.log_id != self.log_id:
            problem = f"it is of the log {checkpoint.log_id}, and this is {self.log_id}"
            # In the log's own folder it has no place.
            is_damaged = found.is_damaged or found.kept is None
            found = replace(found, problem=problem, checkpoint=None, is_damaged=is_damaged)
        if found.problem:
            self.told.append(found)
        if found.kept is not None:
            counts = found.checkpoint is not None or found.is_damaged
            self.files[found.kept] = self.files.get(found.kept, False) or counts
        if found.checkpoint is not None:
            self._count(found, found.checkpoint)

    def _count(self, found: FoundCheckpoint, checkpoint: SignedCheckpoint) -> None:
        self.count += 1
        self.signers.update(found.signers)
        if self.newest is None or checkpoint.time_ms > self.newest.time_ms:
            self.newest = checkpoint
        seen = (checkpoint.time_ms, found.source)
        self._stamped(found, checkpoint.time_ms)
        for head in checkpoint.heads:
            ends, end = self.ends.setdefault(head.partition, {}), (head.end_offset, head.sha256)
            known = ends.setdefault(end, _Witness(seen, seen))
            known.first, known.last = min(known.first, seen), max(known.last, seen)
            times = [ms for ms in (known.stamped_ms, found.stamped_ms) if ms is not None]
            known.stamped_ms = min(times, default=None)
        changed = [head.partition for head in checkpoint.changed]
        self.lacking.append((seen, frozenset([*checkpoint.unread, *changed])))
        for head in checkpoint.changed:
            self.changed[head] = min(self.changed.get(head, seen), seen)
        if found.kept is None:
            self.previous.append((found.source, checkpoint.previous))

    def _stamped(self, found: FoundCheckpoint, time_ms: int) -> None:
        if found.stamped_ms is None:
            self.unstamped.append(found.source)
            return
        self.stamps.append((found.source, time_ms, found.stamped_ms))
        if abs(found.stamped_ms - time_ms) > CLOCK_TOLERANCE_MS:
            detail = f"it says {rfc3339(time_ms)}, and was stamped at {rfc3339(found.stamped_ms)}"
            self.defects.append(Defect(found.source, DefectKind.CHECKPOINT, detail))

    def own_defects(self) -> Iterator[Defect]:
        """What is wrong with checkpoints, whatever the chains hold."""
        yield from self.defects
        for head, seen in self.changed.items():
            detail = f"{_by(seen)} {changed_words(head)}"
            yield _defect(head.partition, DefectKind.REWRITTEN, detail)
        for each in self.told:
            if each.is_damaged:
                yield Defect(each.source, DefectKind.CHECKPOINT, each.problem)
        for source, previous in self.previous:
            if previous not in {*self.notes, NONE_BEFORE}:
                detail = (
                    f"it names the checkpoint before it, of digest {previous}, which is not here: "
                    "it was removed or changed"
                )
                yield Defect(source, DefectKind.CHECKPOINT, detail)
        for file, counts in self.files.items():
            if not counts:
                why = listed(sorted({o.problem for o in self.told if o.kept == file}))
                detail = f"no checkpoint in it counts, and so it proves nothing: {why}"
                yield Defect(file, DefectKind.CHECKPOINT, detail)

    def last_without(self, chain: TopicPartition) -> tuple[int, _Seen | None]:
        """The greatest end of a chain that is signed, and the last checkpoint that says so.

        Where none says an end: -1, and the last checkpoint that would have known the chain.
        """
        ends = self.ends.get(chain)
        if ends:
            greatest = max(end for end, _ in ends)
            return greatest, max(seen.last for (end, _), seen in ends.items() if end == greatest)
        return -1, max((seen for seen, lacked in self.lacking if chain not in lacked), default=None)


def compare_with_checkpoints(
    store: SegmentStore,
    heads: Sequence[ChainHead],
    found: Iterable[FoundCheckpoint],
    topic: str | None = None,
    *,
    expected_id: str | None = None,
    with_stamps: bool = False,
) -> AnchorReport:
    """Compare the chains with all checkpoints of this log that known keys have signed.

    ``heads`` are the ends of the chains as a verification found them. It looks at single segments,
    so it proves something only where the chains have been verified. ``topic`` leaves only that
    topic's chains, and that of events. ``expected_id`` is the log's id as it was kept elsewhere:
    without it the log itself says which it is. ``with_stamps`` says that time stamps were verified.

    Raises:
        ConfigError: No checkpoint is signed by a known key: nothing can be proved.
        ScoredLogError: The store cannot be listed.
    """
    said, wrong_id = _log_id(store, expected_id)
    witnesses = _Witnesses(said)
    for each in found:
        witnesses.take(each)
    newest = witnesses.newest
    if newest is None:
        why = [f"{each.source}: {each.problem}" for each in witnesses.told]
        raise ConfigError(
            f"no checkpoint is signed by a given key: {listed(why) or 'there is none'}",
            f"{store.root}/{FOLDER}",
            "Give the key that signed, or files that were kept elsewhere with --checkpoint",
        )
    now: dict[TopicPartition, int | None] = dict.fromkeys(witnesses.ends)
    now |= {head.partition: head.end_offset for head in (*_events_end(store), *heads)}
    chains, defects = [], [*wrong_id, *witnesses.own_defects()]
    for chain in sorted(now):
        if topic in {None, chain.topic} or chain == EVENTS:
            ends = witnesses.ends.get(chain, {})
            there = _digests(store, chain, ends)
            chains.append(_anchored(chain, now[chain], ends, there))
            defects += _contradictions(store, chain, now[chain], ends, there)
            defects += _backdated(store, chain, *witnesses.last_without(chain))
    return AnchorReport(
        log_id=newest.log_id,
        checkpoints=witnesses.count,
        signers=tuple(sorted(witnesses.signers)),
        newest_time_ms=newest.time_ms,
        unknown=tuple((o.source, o.problem) for o in witnesses.told if not o.is_damaged),
        stamps=tuple(witnesses.stamps),
        unstamped=tuple(witnesses.unstamped) if with_stamps else None,
        unread=newest.unread,
        chains=tuple(chains),
        defects=tuple(dict.fromkeys(defects)),
    )


def _log_id(store: SegmentStore, expected: str | None) -> tuple[str | None, list[Defect]]:
    """Which log is to be proved, and what is wrong with what the log says of that."""
    try:
        found, problem = log_id(store), "it is missing"
    except ScoredLogError as error:
        found, problem = None, error.problem
    if found is not None:
        problem = f"it says that this is the log {found}, and {expected} was expected"
    is_right = found is not None and expected in {None, found}
    return expected or found, [] if is_right else [
        Defect(LOG_FILE, DefectKind.CHECKPOINT, f"{problem}: it was changed after it was signed")
    ]


def _events_end(store: SegmentStore) -> tuple[ChainHead, ...]:
    try:
        return events_head(store)
    except ScoredLogError:
        return ()


def _digests(
    store: SegmentStore, chain: TopicPartition, ends: Iterable[_End]
) -> dict[int, set[str]]:
    """What the chain has at these ends."""
    if chain != EVENTS:
        return digests_at(store, chain, ends)
    found = ((count, readable_event_sha256(store, count - 1)) for count, _ in ends)
    return {count: set() if sha256 is None else {sha256} for count, sha256 in found}


def _anchored(
    chain: TopicPartition,
    end_now: int | None,
    ends: Mapping[_End, _Witness],
    there: Mapping[int, set[str]],
) -> AnchoredChain:
    agreed = [(seen, end) for (end, sha256), seen in ends.items() if sha256 in there[end]]
    wrong = [seen.first for (end, sha256), seen in ends.items() if sha256 not in there[end]]
    offset, time_ms = max(((end, seen.last[0]) for seen, end in agreed), default=(None, None))
    stamps = [(end, seen.stamped_ms) for seen, end in agreed if seen.stamped_ms is not None]
    return AnchoredChain(
        *(chain, end_now, offset, time_ms, min(wrong)[1] if wrong else None),
        *max(stamps, default=(None, None)),
    )


def _contradictions(
    store: SegmentStore,
    chain: TopicPartition,
    end_now: int | None,
    ends: Mapping[_End, _Witness],
    there: Mapping[int, set[str]],
) -> Iterator[Defect]:
    """That it is gone, or shorter, or another one than a checkpoint says."""
    place = EVENTS_FOLDER if chain == EVENTS else partition_folder(chain)
    wrong = sorted((seen.first, end) for end, seen in ends.items() if end[1] not in there[end[0]])
    if wrong and end_now is None and not store.names(place):
        (seen, (end, _)) = wrong[-1]
        yield Defect(place, DefectKind.CHAIN_MISSING, f"{_by(seen)} it ends at {end}; it is gone")
        return
    beyond = [each for each in wrong if end_now is not None and each[1][0] > end_now]
    if beyond:
        seen, (end, _) = max(beyond, key=lambda each: each[1])
        detail = f"{_by(seen)} it ends at {end}; now it ends at {end_now}"
        yield Defect(place, DefectKind.TRUNCATED, detail)
    within = [each for each in wrong if end_now is None or each[1][0] <= end_now]
    if within:
        seen, (end, sha256) = within[0]
        known = [known for known, digest in ends if known < end and digest in there[known]]
        now = f"it is {', '.join(sorted(there[end]))}" if there[end] else "nothing ends there"
        detail = (
            f"{_by(seen)} its digest at {end} is {sha256}; now {now}: what is between "
            f"{max(known, default='its beginning')} and {end} was changed after that"
        )
        yield Defect(place, DefectKind.REWRITTEN, detail)


def _by(seen: _Seen) -> str:
    return f"by the checkpoint {seen[1]} of {rfc3339(seen[0])}"


def _defect(chain: TopicPartition, kind: DefectKind, detail: str) -> Defect:
    return Defect(EVENTS_FOLDER if chain == EVENTS else partition_folder(chain), kind, detail)


def _backdated(
    store: SegmentStore, chain: TopicPartition, signed: int, seen: _Seen | None
) -> Iterator[Defect]:
    """What says that it is older than the last checkpoint that must have had it, and has not."""
    if seen is None:
        return
    made: Iterable[tuple[int, str]]
    try:
        if chain == EVENTS:
            events = walk_events(store, max(signed, 0))
            made = [(e.time_ms, event_path(e.number)) for e in events if isinstance(e, Event)]
        else:
            parts = takewhile(
                lambda part: part.base_offset >= signed, parts_backwards(store, chain)
            )
            made = [(p.created_time_ms, segment_path(chain, p.base_offset)) for p in parts]
            for path in seal_paths(store, chain):
                later = (p for p in read_seal(store, path).parts if p.base_offset >= signed)
                made += [(part.created_time_ms, path) for part in later]
    except ScoredLogError:
        return
    oldest_ms, path = min(made, default=(seen[0], ""))
    if oldest_ms < seen[0] - CLOCK_TOLERANCE_MS:
        detail = (
            f"{path} says that it was made at {rfc3339(oldest_ms)}, and the checkpoint {seen[1]} "
            f"of {rfc3339(seen[0])} does not have it: it was put in later, or clocks differ"
        )
        yield _defect(chain, DefectKind.BACKDATED, detail)
