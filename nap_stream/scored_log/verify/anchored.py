"""Chains beside signed checkpoints: what of them these witness, and what was changed since.

A chain goes on, so it is looked for the ends that checkpoints name. Where a segment still ends at
such an offset with the signed digest, nothing up to there was changed, added or cut off after the
checkpoint was signed. What came after the newest one, no checkpoint has seen.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from nap_stream.errors import ConfigError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import FOLDER as EVENTS_FOLDER
from nap_stream.scored_log.events import event_numbers, event_sha256
from nap_stream.scored_log.format import partition_folder
from nap_stream.scored_log.proof.checkpoint import (
    EVENTS,
    FOLDER,
    FoundCheckpoint,
    SignedCheckpoint,
)
from nap_stream.scored_log.read import parts_backwards
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.compared import digests_at
from nap_stream.scored_log.verify.report import (
    AnchoredChain,
    AnchorReport,
    ChainHead,
    Defect,
    DefectKind,
)
from nap_stream.text import listed, rfc3339

CLOCK_TOLERANCE_MS = 600_000
"""So far the clocks of who writes and of who signs may lie apart."""
_End = tuple[int, str]
"""Where a chain ended, and its digest there."""
_Seen = tuple[int, str]
"""When a checkpoint was signed, and where it was found."""


@dataclass(slots=True)
class _Witnesses:
    """All checkpoints that count: of each chain the ends, with the first and last to say so."""

    count: int = 0
    signers: set[str] = field(default_factory=set)
    newest: SignedCheckpoint | None = None
    ends: dict[TopicPartition, dict[_End, tuple[_Seen, _Seen]]] = field(default_factory=dict)
    told: list[FoundCheckpoint] = field(default_factory=list)
    stamps: list[tuple[str, int, int]] = field(default_factory=list)

    def take(self, found: FoundCheckpoint) -> None:
        if found.problem:
            self.told.append(found)
        checkpoint = found.checkpoint
        if checkpoint is None:
            return
        self.count += 1
        if found.stamped_ms is not None:
            self.stamps.append((found.source, checkpoint.time_ms, found.stamped_ms))
        self.signers.update(found.signers)
        if self.newest is None or checkpoint.time_ms > self.newest.time_ms:
            self.newest = checkpoint
        seen = (checkpoint.time_ms, found.source)
        for head in checkpoint.heads:
            ends, end = self.ends.setdefault(head.partition, {}), (head.end_offset, head.sha256)
            first, last = ends.get(end, (seen, seen))
            ends[end] = (min(first, seen), max(last, seen))


def compare_with_checkpoints(
    store: SegmentStore,
    heads: Sequence[ChainHead],
    found: Iterable[FoundCheckpoint],
    topic: str | None = None,
) -> AnchorReport:
    """Compare the chains, of one topic if given, with all checkpoints that known keys have signed.

    ``heads`` are the ends of the chains as a verification found them. It looks at single segments,
    so it proves something only where the chains have been verified.

    Raises:
        ConfigError: No checkpoint is signed by a known key: nothing can be proved.
        ScoredLogError: The store cannot be read.
    """
    witnesses = _Witnesses()
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
    now |= {head.partition: head.end_offset for head in heads}
    if numbers := event_numbers(store):
        now[EVENTS] = numbers[-1] + 1
    damaged = [each for each in witnesses.told if each.is_damaged]
    chains = []
    defects = [Defect(each.source, DefectKind.CHECKPOINT, each.problem) for each in damaged]
    for chain in sorted(now):
        if topic in {None, chain.topic}:
            ends = witnesses.ends.get(chain, {})
            there = _digests(store, chain, ends)
            chains.append(_anchored(chain, now[chain], ends, there))
            defects += _contradictions(store, chain, now[chain], ends, there)
            defects += _backdated(store, chain, newest)
    return AnchorReport(
        checkpoints=witnesses.count,
        signers=tuple(sorted(witnesses.signers)),
        newest_time_ms=newest.time_ms,
        unknown=tuple((o.source, o.problem) for o in witnesses.told if not o.is_damaged),
        stamps=tuple(witnesses.stamps),
        chains=tuple(chains),
        defects=tuple(defects),
    )


def _digests(
    store: SegmentStore, chain: TopicPartition, ends: Iterable[_End]
) -> dict[int, set[str]]:
    """What the chain has at these ends."""
    if chain != EVENTS:
        return digests_at(store, chain, ends)
    counts = {count for count, _ in ends}
    return {count: {event_sha256(store, count - 1) or ""} - {""} for count in counts}


def _anchored(
    chain: TopicPartition,
    end_now: int | None,
    ends: Mapping[_End, tuple[_Seen, _Seen]],
    there: Mapping[int, set[str]],
) -> AnchoredChain:
    agreed = [(last[0], end) for (end, sha256), (_, last) in ends.items() if sha256 in there[end]]
    wrong = [first for (end, sha256), (first, _) in ends.items() if sha256 not in there[end]]
    time_ms, offset = max(agreed, default=(None, None))
    return AnchoredChain(chain, end_now, offset, time_ms, min(wrong)[1] if wrong else None)


def _contradictions(
    store: SegmentStore,
    chain: TopicPartition,
    end_now: int | None,
    ends: Mapping[_End, tuple[_Seen, _Seen]],
    there: Mapping[int, set[str]],
) -> Iterator[Defect]:
    """That it is gone, or shorter, or another one than a checkpoint says."""
    place = EVENTS_FOLDER if chain == EVENTS else partition_folder(chain)
    wrong = sorted((seen[0], end) for end, seen in ends.items() if end[1] not in there[end[0]])
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


def _backdated(
    store: SegmentStore, chain: TopicPartition, newest: SignedCheckpoint
) -> Iterator[Defect]:
    """What says that it is older than the newest checkpoint, which does not have it."""
    if chain == EVENTS or chain in newest.unread:
        return
    ends = [head.end_offset for head in newest.heads if head.partition == chain]
    signed = ends[0] if ends else -1
    try:
        parts = takewhile(lambda part: part.base_offset >= signed, parts_backwards(store, chain))
        oldest = min(parts, key=lambda part: part.created_time_ms, default=None)
    except ScoredLogError:
        return
    if oldest and oldest.created_time_ms < newest.time_ms - CLOCK_TOLERANCE_MS:
        detail = (
            f"the segment at {oldest.base_offset} says that it was made at "
            f"{rfc3339(oldest.created_time_ms)}, and the checkpoint of {rfc3339(newest.time_ms)} "
            "does not have it: it was put in later, or clocks differ"
        )
        yield Defect(partition_folder(chain), DefectKind.BACKDATED, detail)
