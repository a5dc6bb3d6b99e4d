"""Retention: the oldest rows of each chain are removed, and a seal keeps what proves the chain.

Whole files go, from the beginning of a chain to the first one that is not all before the time that
was asked for. What a worker or a monitor that starts may need stays. No file is removed before its
rows were read and found to be those that were published: a prune would hide what is wrong with it.

First an event says what is to go, by whom and why; then the seals are created; then the files are
removed; then an event says that they are gone. A run that was interrupted anywhere is finished by
the next one: by who has the key of its seals, and where there is none, only as far as that one is
asked to remove the same. Until then nothing is missing that no event tells of, and `verify` names
the files that a seal covers. It runs under the lock of compaction, beside workers and readers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from nap_stream.clock import Clock, Progress
from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import chain_start
from nap_stream.scored_log.compact import (
    ChainsReport,
    ChainsRun,
    LockOwner,
    chain_file,
    compaction_lock,
)
from nap_stream.scored_log.compact_plan import (
    ChainFile,
    checked_parts,
    remove_segments,
    remove_stale_indexes,
)
from nap_stream.scored_log.events import (
    Event,
    EventKind,
    append_event,
    read_events,
    require_text,
)
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import parse_segment_path
from nap_stream.scored_log.history import MAX_BY, MAX_COMMENT
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, Signer
from nap_stream.scored_log.prune_finish import (
    KEEP_MS,
    Leftovers,
    Told,
    leftovers,
    newest_row_ms,
    refused,
    window_start,
)
from nap_stream.scored_log.read import partitions, segments
from nap_stream.scored_log.seals import (
    MAX_SEGMENTS,
    PrunedSpan,
    decode_seal,
    encode_seal,
    read_seal,
    seal_paths,
    span_of,
)
from nap_stream.scored_log.segment import open_segment
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import rfc3339

MAX_BATCH_BYTES, MAX_BATCH_SEALS = 2**25, 1_000
"""Of the seals that one event tells of: they are held until it is written."""


_Counted = tuple[ChainFile, Counter[str], int]
"""A file, its rows by status, and how many are flagged."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to prune: rows whose event time is before ``before_ms``, by whom and why.

    ``signer`` signs the seals; without one they are not signed.
    """

    before_ms: int
    by: str
    reason: str
    topic: str | None = None
    signer: Signer | None = None
    program_version: str = ""


@dataclass(frozen=True, slots=True)
class KeptRest:
    """From which offset on a chain was kept, and why."""

    partition: TopicPartition
    offset: int
    why: str


@dataclass(frozen=True, kw_only=True)
class PruneReport(ChainsReport):
    """What a prune did, or would do.

    ``spans`` were sealed and their files removed, ``files`` of ``size_bytes``. ``finished`` files
    of ``finished_rows`` were those that an interrupted run had sealed; ``unsigned`` are the seals
    of these that no key has signed, so that nothing proves who made them.
    """

    spans: tuple[PrunedSpan, ...] = ()
    files: int = 0
    size_bytes: int = 0
    finished: int = 0
    finished_rows: int = 0
    unsigned: tuple[PrunedSpan, ...] = ()
    kept: tuple[KeptRest, ...] = ()


def prune(
    store: SegmentStore,
    request: Request,
    *,
    clock: Clock,
    dry_run: bool = False,
    break_lock: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PruneReport:
    """Seal and remove the oldest rows of each chain.

    A ``dry_run`` reads the same and only says what would be done. ``progress`` is told how many
    files were read, ``should_stop`` asked before each.

    Raises:
        LogRootError: There is no log at the root.
        ConfigError: No topic can have that name, or a text is empty, too long or not printable.
        ScoredLogError: A compaction or another prune runs, or the store failed; what is done stays
            done, and the next run finishes it.
    """
    require_text("by", request.by, MAX_BY)
    require_text("reason", request.reason, MAX_COMMENT)
    now_ms = clock.now_ms()
    chains = partitions(store, request.topic)
    done = PruneReport(partitions=len(chains), dry_run=dry_run)
    run = _Run(store, now_ms, progress, should_stop, done, request)
    if dry_run:
        run.look_at(chains)
        return run.done
    with compaction_lock(store, LockOwner.here(now_ms), break_lock=break_lock) as check_lock:
        run.prune(chains, check_lock)
    return run.done


@dataclass(frozen=True, slots=True)
class _Planned:
    """A seal to be, and the files that it covers."""

    span: PrunedSpan
    content: bytes
    sha256: str
    files: tuple[ChainFile, ...]


@dataclass(slots=True)
class _Run(ChainsRun[PruneReport]):
    """One prune."""

    request: Request
    told: Told = field(default_factory=Told)
    read: int = 0

    def look_at(self, chains: Sequence[TopicPartition]) -> None:
        """Count what would be done."""
        self._read_events()
        for partition in chains:
            with self.refusing(partition):
                self._note_finished(*self._leftovers(partition))
                for planned in self._plan(partition):
                    self._note(planned)

    def prune(self, chains: Sequence[TopicPartition], check_lock: Callable[[], None]) -> None:
        """Finish what an interrupted run has left, then seal and remove."""
        self._read_events()
        for partition in chains:
            with self.refusing(partition):
                left, rows = self._leftovers(partition)
                check_lock()
                remove_segments(self.store, [file.path for file in left.files])
                remove_stale_indexes(self.store, partition)
                self._note_finished(left, rows)
        refused = {each.partition for each in self.done.refusals}
        sound = [partition for partition in chains if partition not in refused]
        self._close_events(sound)
        held: list[_Planned] = []
        for partition in sound:
            for planned in self._plans(partition):
                if held and held[0].span.topic != partition.topic:
                    self._carry_out(held, check_lock)
                held.append(planned)
                if len(held) == MAX_BATCH_SEALS or _bytes(held) > MAX_BATCH_BYTES:
                    self._carry_out(held, check_lock)
            if self.done.stopped:
                break
        self._carry_out(held, check_lock)

    def _read_events(self) -> None:
        # What is damaged is for `verify` to name.
        for event in read_events(self.store, defects=[]):
            self.told.take(event)

    def _close_events(self, chains: Iterable[TopicPartition]) -> None:
        """Have an event say so of seals whose files are gone, and whose run did not come to it."""
        done = [named for each in chains for named in self.told.unfinished(self.store, each)]
        for topic in sorted({named["topic"] for named in done}):
            own = [named for named in done if named["topic"] == topic]
            self._append(EventKind.PRUNED, topic, {"seals": own, "interrupted": True})

    def _leftovers(self, partition: TopicPartition) -> tuple[Leftovers, int]:
        """What is to be finished, and how many rows it has: they were read."""
        asked = self.request
        left = leftovers(
            *(self.store, partition, self.told, asked.signer),
            before_ms=asked.before_ms,
            now_ms=self.now_ms,
        )
        return left, sum(self._counted(file)[0].total() for file in left.files)

    def _note_finished(self, left: Leftovers, rows: int) -> None:
        self.done = replace(
            self.done,
            finished=self.done.finished + len(left.files),
            finished_rows=self.done.finished_rows + rows,
            unsigned=(*self.done.unsigned, *left.unsigned),
        )

    def _plans(self, partition: TopicPartition) -> Iterator[_Planned]:
        """As `_plan`. What is wrong with a chain is its own, and not of who carries plans out."""
        with self.refusing(partition):
            yield from self._plan(partition)

    def _plan(self, partition: TopicPartition) -> Iterator[_Planned]:
        """The seals to make of a chain, in order."""
        held: list[_Counted] = []
        count = 0
        for file in self._old_files(partition):
            count += len(file.footer.parts)
            if held and count > MAX_SEGMENTS:
                yield self._planned(held)
                held, count = [], len(file.footer.parts)
            if self.is_stopped():
                break
            held.append((file, *self._counted(file)))
        if held:
            yield self._planned(held)

    def _counted(self, file: ChainFile) -> tuple[Counter[str], int]:
        """Rows by status, and flagged ones, of a file whose rows are those of its digests."""
        statuses, flagged = Counter[str](), 0
        with open_segment(self.store, file.path) as segment:
            if segment is None or segment.parts() != file.footer.parts:
                raise refused(file.path, "it has changed while it was read")
            for rows in checked_parts(segment):
                for each in pc.value_counts(rows.column("status")).to_pylist():
                    statuses[each["values"]] += each["counts"]
                flagged += pc.sum(rows.column("is_ood"), min_count=0).as_py()
        self.read += 1
        if self.progress is not None:
            self.progress(self.read, None)
        return statuses, flagged

    def _planned(self, held: Sequence[_Counted]) -> _Planned:
        asked = self.request
        files = tuple(file for file, *_ in held)
        parts = [part for file in files for part in file.footer.parts]
        statuses = sum((counts for _, counts, _ in held), Counter[str]())
        try:
            span = span_of(
                *(parts, statuses, sum(flagged for *_, flagged in held)),
                before_ms=asked.before_ms,
                pruned_ms=self.now_ms,
                by=asked.by,
                reason=asked.reason,
                program_version=asked.program_version,
            )
        except ValueError as error:
            raise refused(files[0].path, str(error)) from error
        content = encode_seal(span, parts, asked.signer)
        if len(content) > MAX_NOTE_BYTES:
            raise refused(
                files[0].path, f"it has merged more segments than a seal holds: {len(parts):,}"
            )
        return _Planned(span, content, decode_seal(content, span.path).sha256, files)

    def _old_files(self, partition: TopicPartition) -> Iterator[ChainFile]:
        """The files at a chain's beginning that may go, in order. Says from where on it is kept.

        Raises:
            ChainBrokenError: They are not a chain from its beginning on.
        """
        position = self._beginning(partition)
        paths = segments(self.store, partition)
        own = [path for path in paths if parse_segment_path(path)[1] >= position.offset]
        tail = window_start(self.store, partition, self.told)
        for path in own:
            file = chain_file(self.store, path)
            _check_link(file, position)
            why = self._why_kept(file, tail, is_last=path == own[-1])
            if why:
                self._keep(partition, position.offset, why)
                return
            yield file
            last = file.footer.parts[-1]
            position = ChainPosition(last.end_offset, segment_sha256(last))

    def _beginning(self, partition: TopicPartition) -> ChainPosition:
        paths = seal_paths(self.store, partition)
        if paths:
            span = read_seal(self.store, paths[-1]).span
            return ChainPosition(span.end_offset, span.sha256)
        start = chain_start(self.store, partition)
        if start is None:
            raise ChainBrokenError(
                "no marker says where the chain starts", str(partition), "Run `nap-stream verify`"
            )
        return start

    def _why_kept(self, file: ChainFile, tail: int, *, is_last: bool) -> str:
        """Why a file and what follows it stay; empty where it may go."""
        footer, parts = file.footer, file.footer.parts
        newest_ms = max(map(newest_row_ms, parts))
        if newest_ms >= self.request.before_ms:
            oldest_ms = min(map(newest_row_ms, parts))
            straddles = oldest_ms < self.request.before_ms
            kept = "; its file is kept whole" if straddles else ""
            return f"what follows is from {rfc3339(oldest_ms)} to {rfc3339(newest_ms)}{kept}"
        if is_last:
            return "the newest file of a chain is never pruned: writers go on from it"
        if footer.end_offset > tail:
            rows = self.told.window(footer.partition.topic)
            return f"a monitor that starts anew reads the newest {rows:,} rows"
        if max(part.created_time_ms for part in parts) >= self.now_ms - KEEP_MS:
            return "it was published within a day"
        return ""

    def _keep(self, partition: TopicPartition, offset: int, why: str) -> None:
        self.done = replace(self.done, kept=(*self.done.kept, KeptRest(partition, offset, why)))

    def _carry_out(self, held: list[_Planned], check_lock: Callable[[], None]) -> None:
        """Tell of seals, create them, remove what they cover, and tell that it is gone."""
        if not held:
            return
        check_lock()
        topic = held[0].span.topic
        named = [_named(planned) for planned in held]
        signer = self.request.signer
        data = {
            "before_ms": self.request.before_ms,
            "reason": self.request.reason,
            "signer": None if signer is None else signer.public.label,
            "seals": named,
        }
        asked = self._append(EventKind.PRUNING, topic, data)
        # One by one, so that who verifies meanwhile sees few files beside their seal.
        for planned in held:
            check_lock()
            path = planned.span.path
            if not self.store.create(path, planned.content):
                raise ScoredLogError(
                    "the seal was there already", path, "Does another prune run? Run it again"
                )
            remove_segments(self.store, [file.path for file in planned.files])
            self._note(planned)
        self._append(EventKind.PRUNED, topic, {"asked": asked, "seals": named})
        held.clear()

    def _append(self, kind: EventKind, topic: str, data: Mapping[str, Any]) -> int:
        event = Event(time_ms=self.now_ms, kind=kind, by=self.request.by, topic=topic, data=data)
        return append_event(self.store, event).number

    def _note(self, planned: _Planned) -> None:
        self.done = replace(
            self.done,
            spans=(*self.done.spans, planned.span),
            files=self.done.files + len(planned.files),
            size_bytes=self.done.size_bytes + sum(file.size_bytes for file in planned.files),
        )


def _bytes(held: Sequence[_Planned]) -> int:
    return sum(len(planned.content) for planned in held)


def _named(planned: _Planned) -> dict[str, Any]:
    """What events say of a seal."""
    names = ("topic", "partition", "start_offset", "end_offset", "rows", "sha256")
    told = {name: value for name, value in asdict(planned.span).items() if name in names}
    return {"file": planned.span.path, "seal_sha256": planned.sha256, **told}


def _check_link(file: ChainFile, position: ChainPosition) -> None:
    first = file.footer.parts[0]
    if first.base_offset != position.offset:
        raise refused(
            file.path, f"it does not begin where what stands before it ends, {position.offset}"
        )
    if first.previous_sha256 != position.previous_sha256:
        raise refused(file.path, "it does not name the digest of what stands before it")
