"""What earlier prunes have told and left, and which of it the next one may remove.

Whoever can write to the log can make a seal, and an event that tells of it. So no seal is believed
that `nap_stream.scored_log.prune` would not have made: the seals must lead to the first file that
stays, be what their events ask for, and hold nothing that was new when they were made. And seals
are finished by who has the key that signed them. Of those that none has signed nothing more can be
proved: they remove only what the run that finishes them was asked to remove, and a report names
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact import chain_file
from nap_stream.scored_log.compact_plan import ChainFile
from nap_stream.scored_log.events import Event, EventKind
from nap_stream.scored_log.footer import SegmentFooter, merged_slots
from nap_stream.scored_log.format import parse_segment_path
from nap_stream.scored_log.proof.note import Signer
from nap_stream.scored_log.read import parts_backwards, segments
from nap_stream.scored_log.seals import PrunedSpan, Seal, read_seal, seal_paths, seal_sha256
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.summary import MAX_AGE_MS
from nap_stream.scored_log.verify.sealed import named_seals, signature_problem
from nap_stream.text import rfc3339

KEEP_MS = 86_400_000
"""What was published so lately stays: workers and monitors may be about to read it."""


@dataclass(slots=True)
class Told:
    """What events say: of seals by path and digest, which of them are done, windows by topic."""

    sealed: dict[tuple[str, str], Event] = field(default_factory=dict)
    open: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    windows: dict[tuple[str, str], int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Learn of an event."""
        if event.kind == EventKind.RUN_STARTED:
            window = event.data.get("window_records")
            self.windows[event.topic, event.monitor] = window if type(window) is int else 0
        for path, sha256, each in named_seals(event):
            if event.kind == EventKind.PRUNING:
                self.sealed[path, sha256] = event
                self.open[path, sha256] = each
            else:
                self.open.pop((path, sha256), None)

    def window(self, topic: str) -> int:
        """How many of a partition's newest rows a monitor may read when it starts."""
        return max((rows for (own, _), rows in self.windows.items() if own == topic), default=0)

    def unfinished(
        self, store: SegmentStore, partition: TopicPartition
    ) -> Iterator[dict[str, Any]]:
        """What was told of seals that are there, and of which no event says that it is done.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        there = set(seal_paths(store, partition))
        for (path, sha256), named in self.open.items():
            if path in there and seal_sha256(store, path) == sha256:
                yield named


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files that a seal covers, and of which seals no key says that nap-stream made them."""

    files: tuple[ChainFile, ...] = ()
    unsigned: tuple[PrunedSpan, ...] = ()


def leftovers(
    store: SegmentStore,
    partition: TopicPartition,
    told: Told,
    signer: Signer | None,
    *,
    before_ms: int,
    now_ms: int,
) -> Leftovers:
    """The files that a seal covers: an interrupted run or a writer that died has left them.

    Raises:
        ChainBrokenError: A seal is not valid, or no event told of it as it is, or it is not one
            that a prune makes, or ``signer`` did not sign it, or it is signed and there is none, or
            it is not signed and covers what is not before ``before_ms`` or a monitor may read, or a
            file is not one of those that it covers: then nothing may be removed here.
        ScoredLogError: The store cannot be read.
    """
    paths = seal_paths(store, partition)
    if not paths:
        return Leftovers()
    seals = [read_seal(store, paths[-1])]
    _told_of(seals[0], told)
    found = segments(store, partition)
    left = [path for path in found if parse_segment_path(path)[1] < seals[0].span.end_offset]
    if not left:
        return Leftovers()
    seals += [read_seal(store, path) for path in reversed(paths[:-1])]
    _check_links(store, found[len(left) :], seals)
    for seal in seals:
        event = _told_of(seal, told)
        _check_old(seal, now_ms)
        _check_asked(seal, event)
        _check_signed(store, seal, signer)
    slots = merged_slots(part for seal in seals for part in seal.parts)
    files = tuple(chain_file(store, path) for path in left)
    for file in files:
        _check_sealed(slots, file)
    if signer is not None:
        return Leftovers(files)
    covering = [s.span for s in seals if s.span.end_offset > files[0].footer.base_offset]
    _check_wanted(store, covering[0], files, told, before_ms)
    return Leftovers(files, tuple(covering))


def window_start(store: SegmentStore, partition: TopicPartition, told: Told) -> int:
    """From which offset on a monitor that starts anew reads a chain.

    Raises:
        ChainBrokenError: A segment cannot be read.
        ScoredLogError: The store cannot be read.
    """
    rows, window, newest = 0, told.window(partition.topic), None
    offset = 2**63 - 1
    for part in parts_backwards(store, partition):
        newest = newest or part
        if rows >= window or part.calibration_fingerprint != newest.calibration_fingerprint:
            break
        offset, rows = part.base_offset, rows + part.scored_rows
    return offset


def _check_wanted(
    store: SegmentStore,
    newest: PrunedSpan,
    files: Sequence[ChainFile],
    told: Told,
    before_ms: int,
) -> None:
    """Refuse files of unsigned seals, the newest of them given, that this run would not take."""
    newest_ms = max(newest_row_ms(part) for file in files for part in file.footer.parts)
    if newest_ms >= before_ms:
        raise ChainBrokenError(
            f"it covers files that are there, with rows until {rfc3339(newest_ms)}; no key has "
            "signed it, and these are not asked for: give --before "
            f"{rfc3339(newest_ms + 1)} or later, if they are to go",
            newest.path,
            "Else run `nap-stream verify`, and find out who made it",
        )
    end = max(file.footer.end_offset for file in files)
    if end > window_start(store, newest.place, told):
        rows = told.window(newest.topic)
        raise refused(
            newest.path,
            f"no key has signed it, and it covers files of the newest {rows:,} rows, which a "
            "monitor that starts anew reads",
        )


def _told_of(seal: Seal, told: Told) -> Event:
    event = told.sealed.get((seal.span.path, seal.sha256))
    if event is None:
        raise refused(
            seal.span.path,
            "no event of a prune tells of this seal: it is none of nap-stream's, or events are "
            "damaged",
        )
    return event


def _check_links(store: SegmentStore, later: Sequence[str], seals: Sequence[Seal]) -> None:
    """Refuse seals, the newest first, that do not lead to the first file that stays."""
    newest = seals[0].span
    if not later:
        raise refused(newest.path, "it covers the newest file of the chain, which no prune takes")
    first = chain_file(store, later[0]).footer.parts[0]
    behind = [(first.base_offset, first.previous_sha256)]
    behind += [(seal.span.start_offset, seal.span.previous_sha256) for seal in seals]
    for seal, follows in zip(seals, behind, strict=False):
        if (seal.span.end_offset, seal.span.sha256) != follows:
            raise refused(
                seal.span.path, f"it does not end where what stands behind it begins, {follows[0]}"
            )


def _check_old(seal: Seal, now_ms: int) -> None:
    made_ms = min(seal.span.pruned_ms, now_ms)
    if max(part.created_time_ms for part in seal.parts) >= made_ms - KEEP_MS:
        raise refused(
            seal.span.path,
            "it covers what was published within a day before it was made, which no prune takes",
        )


def _check_asked(seal: Seal, event: Event) -> None:
    """Refuse a seal that is not what its event says was asked for, or covers what was not."""
    span, data = seal.span, event.data
    said = (event.time_ms, event.by, data.get("before_ms"), data.get("reason"))
    if said != (span.pruned_ms, span.by, span.before_ms, span.reason):
        raise refused(span.path, "the event that tells of it names another time, name or reason")
    if (data.get("signer"),) != (seal.claimed or (None,)):
        raise refused(span.path, "the event that tells of it names another key")
    if span.before_ms > span.pruned_ms or max(map(newest_row_ms, seal.parts)) >= span.before_ms:
        raise refused(span.path, "it covers rows that are not before the time that it names")


def newest_row_ms(part: SegmentFooter) -> int:
    """How new the rows of a segment are: as the drift monitor takes times that cannot be true."""
    made, newest = part.created_time_ms, part.max_event_time_ms
    if newest is None or newest > made or newest < made - MAX_AGE_MS:
        return made
    return newest


def _check_signed(store: SegmentStore, seal: Seal, signer: Signer | None) -> None:
    path = seal.span.path
    if signer is None and not seal.claimed:
        return
    if signer is None:
        problem = f"a key is said to have signed it, {', '.join(seal.claimed)}, and none is given"
    else:
        problem = signature_problem(store, path, seal.sha256, seal.claimed, [signer.public])
        problem = problem and f"the key that signs did not sign it: {problem}"
    if problem:
        raise ChainBrokenError(
            f"files that it covers are there, and {problem}",
            path,
            "Nothing is removed here; where it is known who made it, finish it with that key, or "
            "without --sign-with where it was made so",
        )


def _check_sealed(slots: set[tuple[int, str]], file: ChainFile) -> None:
    """Refuse to remove what no seal stands for."""
    if not all((part.base_offset, part.previous_sha256) in slots for part in file.footer.parts):
        raise refused(file.path, "it lies in a pruned span, and no seal stands for it")


def refused(path: str, problem: str) -> ChainBrokenError:
    """Why nothing of a chain is pruned."""
    return ChainBrokenError(
        problem,
        path,
        "Nothing is pruned here; run `nap-stream verify`, and `nap-stream compact` where a "
        "compaction was interrupted",
    )
