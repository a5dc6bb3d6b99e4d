"""Seals beside what tells of them: the events of prunes, and who signed.

A seal's footers prove themselves by the chain. What else it says, who pruned and why and what rows
there were, rests on the event that told of the seal before it was made, and on its signature. So
does that nobody removed rows who had no right to: whoever can write to the log can make a seal, as
`nap-stream prune` does, but not sign it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nap_stream.errors import ConfigError, ProofError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import Event, EventKind, event_path
from nap_stream.scored_log.format import seal_path
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, PublicKey, open_note
from nap_stream.scored_log.seals import seal_sha256
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import Defect, DefectKind, PrunedFile


def named_seals(event: Event) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The seals that an event of a prune names: path, digest, and what it says of each.

    Whoever can write to the log can write events: what names no place of a seal is left out.
    """
    for each in _told(event):
        match each:
            case {"file": str(path), "seal_sha256": str(sha256)} if _is_place(path, each):
                yield path, sha256, each


def _told(event: Event) -> list[Any]:
    is_one = event.kind in {EventKind.PRUNING, EventKind.PRUNED}
    seals = event.data.get("seals", []) if is_one else []
    return seals if isinstance(seals, list) else [seals]


def _is_place(path: str, each: dict[str, Any]) -> bool:
    """Whether a path is that of the seal which the rest speaks of."""
    match each:
        case {"topic": str(topic), "partition": int(number), "start_offset": int(start)}:
            try:
                return path == seal_path(TopicPartition(topic, number), start)
            except ConfigError:
                return False
    return False


@dataclass(slots=True)
class ToldSeals:
    """What events tell of seals: which were to be made, by whom and when, and which were."""

    asked: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    done: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    forged: list[Defect] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Learn of an event."""
        if len(list(named_seals(event))) < len(_told(event)):
            detail = "it tells of seals, and one that it names can be none: no prune has written it"
            self.forged.append(Defect(event_path(event.number), DefectKind.SEAL, detail))
        for path, sha256, each in named_seals(event):
            if event.kind == EventKind.PRUNING:
                self.asked[path, sha256] = event.time_ms, event.by
            else:
                self.done[path] = sha256, each

    def contradictions(
        self, store: SegmentStore, pruned: Sequence[PrunedFile], topic: str | None
    ) -> Iterator[Defect]:
        """Seals of which no event tells, or another than they say; and those that are gone."""
        yield from self.forged
        for found in pruned:
            said = self.asked.get((found.file, found.seal_sha256))
            if said is None:
                detail = (
                    "no event tells of this seal: it is forged or was changed, or events are "
                    "damaged"
                )
                yield Defect(found.file, DefectKind.SEAL, detail)
            elif said != (found.span.pruned_ms, found.span.by):
                detail = "the event that tells of it names another time or another name"
                yield Defect(found.file, DefectKind.SEAL, detail)
        there = {found.file for found in pruned}
        for path, (sha256, each) in self.done.items():
            if topic not in {None, each.get("topic")} or path in there:
                continue
            if _digest(store, path) != sha256:
                detail = "an event says that this seal was made, and it is gone or another one"
                yield Defect(path, DefectKind.SEAL, detail)


def _digest(store: SegmentStore, path: str) -> str | None:
    try:
        return seal_sha256(store, path)
    except ScoredLogError:
        return None


def unsigned_seals(
    store: SegmentStore, pruned: Sequence[PrunedFile], keys: Sequence[PublicKey]
) -> Iterator[Defect]:
    """Seals that none of the keys has signed.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    for found in pruned:
        problem = signature_problem(store, found.file, found.seal_sha256, found.claimed, keys)
        if problem:
            yield Defect(found.file, DefectKind.SEAL, problem)


def signature_problem(
    store: SegmentStore,
    path: str,
    sha256: str,
    claimed: Sequence[str],
    keys: Sequence[PublicKey],
) -> str:
    """Why none of the keys vouches for a seal that was read; empty where one does.

    ``sha256`` is the digest of what was read, ``claimed`` who is said to have signed it.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    if not claimed:
        return "it is not signed: whoever could write to the log could prune so"
    file = store.open(path)
    if file is None:
        return "it is gone"
    with file:
        content = file.read(MAX_NOTE_BYTES + 1)
    if hashlib.sha256(content).hexdigest() != sha256:
        return "it was changed while it was read"
    try:
        open_note(content, keys, path)
    except ProofError as error:
        return error.problem
    return ""
