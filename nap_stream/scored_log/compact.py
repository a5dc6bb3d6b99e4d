"""Compaction: one file in the place of the many small segments of an hour or day that is over.

Hours come first, so that the day that is not over is few files too; when it is over, its hours and
what is left become files of a day. Each compacted file gets its index, which
`nap_stream.scored_log.index` describes.

A compacted file has the first segment's name and the rows of all, and lists their footers
(`nap_stream.scored_log.footer`), so that the chain stays as it was: what `verify` recomputes is
the same before and after. Its rows are of one version of the columns;
`nap_stream.scored_log.footer.may_merge` says why. Writers are not disturbed, because the last
segment of a chain stays.

It may be interrupted at every step. An interrupted run leaves segments that are in a compacted file
too; the next run removes them. For the instant between the two steps of an exchange, a plain
Parquet reader may meet a row twice, or a file that is gone. No row is ever missing, and
`nap_stream.scored_log.read` gives each row once at every moment.

One compaction or prune of a log runs at a time. A file is exchanged whole. So a compaction that has
read a shorter chain could put a shorter file in place of a longer one whose segments are removed
already. No store that is supported here can tell on a plain replace. Hence a lock file, created
exclusively.
It has no time limit: only a person can know that its owner is really gone.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Generic, Self, TypeVar
from uuid import uuid4

from nap_stream.clock import Clock, Progress
from nap_stream.errors import ChainBrokenError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.compact_plan import (
    ChainFile,
    FileLimits,
    Plan,
    merge,
    plan,
    remove_leftovers,
    write_indexes,
)
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.index import LEAST_ROWS
from nap_stream.scored_log.read import partitions, segments
from nap_stream.scored_log.seals import last_span
from nap_stream.scored_log.segment import open_segment
from nap_stream.scored_log.stores import SegmentStore

LOCK_NAME = "_compacting.json"
HOUR_LAG_MS = 300_000
"""How long after its end an hour stays as it is: clocks of writers differ."""
DEFAULT_LIMITS = FileLimits(max_rows=250_000, max_bytes=64 * 2**20)
"""About 0.4 GB of memory while a group is merged; a few times `FileLimits.max_memory_bytes` where
rows repeat long keys or headers, which are small in files and not in memory."""


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Who compacts or prunes; ``started`` is ISO 8601, UTC."""

    host: str
    pid: int
    started: str

    @classmethod
    def here(cls, now_ms: int) -> Self:
        """This process."""
        started = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), started)


@contextmanager
def compaction_lock(
    store: SegmentStore, owner: LockOwner, *, break_lock: bool = False
) -> Iterator[Callable[[], None]]:
    """Hold the log's lock.

    ``owner`` is for whoever finds the lock taken; ``break_lock`` takes it away from its owner.

    Yields:
        A function that raises ScoredLogError where somebody has broken the lock.

    Raises:
        ScoredLogError: Somebody else holds it.
    """
    content = json.dumps({**asdict(owner), "token": uuid4().hex}).encode()
    if break_lock:
        store.remove([LOCK_NAME])
    if not store.create(LOCK_NAME, content):
        raise ScoredLogError(
            f"another compaction or prune holds the lock: {_owner(store.read(LOCK_NAME))}",
            LOCK_NAME,
            "Wait until it has ended; if that process is surely gone, give --break-lock",
        )

    def check() -> None:
        if store.read(LOCK_NAME) != content:
            raise ScoredLogError(
                "the lock was broken",
                LOCK_NAME,
                "Another compaction or prune runs now; nothing is harmed",
            )

    try:
        yield check
    finally:
        if store.read(LOCK_NAME) == content:
            store.remove([LOCK_NAME])


def chain_file(store: SegmentStore, path: str) -> ChainFile:
    """A file of a chain, with its whole footer. Under the lock.

    Raises:
        ChainBrokenError: It cannot be read.
        ScoredLogError: It is gone, or the store cannot be read.
    """
    with open_segment(store, path) as segment:
        if segment is None:
            raise ScoredLogError(
                "the segment was listed and is gone", path, "Does another compaction run?"
            )
        return ChainFile(path, segment.whole_footer(), segment.size_bytes)


def _owner(content: bytes | None) -> str:
    try:
        tree = json.loads(content or b"")
        return f"process {tree['pid']} on {tree['host']}, since {tree['started']}"
    except (ValueError, KeyError, TypeError):
        return "its file does not say whose"


@dataclass(frozen=True, slots=True)
class RefusedPartition:
    """A partition that was left as it is, or half done, and why."""

    partition: TopicPartition
    reason: str


@dataclass(frozen=True, kw_only=True)
class ChainsReport:
    """How a run over the chains ended: how many, which were refused, and whether it was stopped.

    ``stopped`` says that it was asked to end early, ``dry_run`` that it only looked.
    """

    partitions: int
    refusals: tuple[RefusedPartition, ...] = ()
    stopped: bool = False
    dry_run: bool = False

    @property
    def clean(self) -> bool:
        """Whether no partition was refused."""
        return not self.refusals


@dataclass(frozen=True, kw_only=True)
class CompactionReport(ChainsReport):
    """What a compaction did, or would do.

    ``segments`` were merged into ``files``; ``alone`` were written anew one by one, as their rows
    leave no room for more. ``leftovers`` were removed: segments that an
    interrupted run or a writer that died had left beside a compacted file that holds them.
    ``indexed`` files that had no index of theirs have one now, beside those that were merged.
    ``bytes_before`` are those of the merged segments, ``bytes_after`` those of their files (0 in a
    dry run).
    """

    segments: int = 0
    files: int = 0
    alone: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    leftovers: int = 0
    indexed: int = 0


def compact(
    store: SegmentStore,
    *,
    clock: Clock,
    topic: str | None = None,
    today: date | None = None,
    limits: FileLimits = DEFAULT_LIMITS,
    dry_run: bool = False,
    break_lock: bool = False,
    rebuild_index: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CompactionReport:
    """Merge the segments of days that are over, and of hours of later days that are over.

    ``today``, by the clock where it is None, is the first day that stays as it is, UTC. A
    ``dry_run`` only says what would be done, and needs no lock. ``break_lock`` goes on although
    another compaction seems to run: only where that is surely dead. ``rebuild_index`` makes
    all indexes anew, and not those alone that are missing. ``progress`` is told how many
    segments are merged, and None, since how many will be is not known. ``should_stop`` is asked
    before each merge.

    Raises:
        LogRootError: There is no log at the root.
        ConfigError: No topic can have that name.
        ScoredLogError: Another compaction runs, or the store failed; what is done stays done.
    """
    now_ms = clock.now_ms()
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    chains = partitions(store, topic)
    done = CompactionReport(partitions=len(chains), dry_run=dry_run)
    run = _Run(store, now_ms, progress, should_stop, done, limits, today or now.date())
    if dry_run:
        for partition in chains:
            run.look_at(partition)
        return run.done
    owner = LockOwner.here(now_ms)
    with compaction_lock(store, owner, break_lock=break_lock) as check_lock:
        for partition in chains:
            run.compact(partition, check_lock, f"compaction@{owner.host}:{owner.pid}")
            run.index(partition, anew=rebuild_index)
    return run.done


Report = TypeVar("Report", bound=ChainsReport)


@dataclass(slots=True)
class ChainsRun(Generic[Report]):
    """A run over the chains, partition by partition, and what it has done."""

    store: SegmentStore
    now_ms: int
    progress: Progress | None
    should_stop: Callable[[], bool]
    done: Report

    @contextmanager
    def refusing(self, partition: TopicPartition) -> Iterator[None]:
        """Leave a partition as it is where its chain is broken, and note why."""
        try:
            yield
        except ChainBrokenError as error:
            refused = RefusedPartition(partition, str(error))
            self.done = replace(self.done, refusals=(*self.done.refusals, refused))

    def is_stopped(self) -> bool:
        """Ask whether to end early, and note it."""
        if not self.done.stopped and self.should_stop():
            self.done = replace(self.done, stopped=True)
        return self.done.stopped


@dataclass(slots=True)
class _Run(ChainsRun[CompactionReport]):
    """One compaction: what it does partition by partition, and what it has done.

    ``now_ms`` is one for all of it: a file of an hour that is made after midnight would look like
    one of a day that is over.
    """

    limits: FileLimits
    today: date
    large: list[str] = field(default_factory=list)
    """Files of the partition that are to have an index."""

    def look_at(self, partition: TopicPartition) -> None:
        """Count what would be done."""
        with self.refusing(partition):
            found = self._plan(partition)
            self._note(leftovers=len(found.leftovers))
            for group in found.groups:
                self._count(group)

    def compact(
        self, partition: TopicPartition, check_lock: Callable[[], None], writer_id: str
    ) -> None:
        """Remove what is left over, then merge group by group."""
        with self.refusing(partition):
            found = self._plan(partition)
            remove_leftovers(self.store, found.leftovers, check_lock=check_lock)
            self._note(leftovers=len(found.leftovers))
            for group in found.groups:
                self._merge_all(group, check_lock, writer_id)

    def index(self, partition: TopicPartition, *, anew: bool) -> None:
        """Give large files that have none their index."""
        with self.refusing(partition):
            for _ in write_indexes(self.store, partition, self.large, anew=anew):
                self._note(indexed=1)
                if self.is_stopped():
                    return

    def _merge_all(
        self, group: tuple[ChainFile, ...], check_lock: Callable[[], None], writer_id: str
    ) -> None:
        """Merge a group into one file, or into several where its rows are large."""
        while len(group) > 1:
            if self.is_stopped():
                return
            taken, size_bytes = merge(
                self.store,
                group,
                writer_id=writer_id,
                now_ms=self.now_ms,
                check_lock=check_lock,
                max_memory_bytes=self.limits.max_memory_bytes,
            )
            if taken > 1:
                self._note(bytes_after=size_bytes)
                self._count(group[:taken])
                if self.progress is not None:
                    self.progress(self.done.segments, None)
            else:
                self._note(alone=1)
            group = group[taken:]

    def _plan(self, partition: TopicPartition) -> Plan:
        self.large.clear()
        pruned = last_span(self.store, partition)
        sealed = "" if pruned is None else segment_path(partition, pruned.end_offset)
        # What lies before that is for a prune to remove.
        paths = (path for path in segments(self.store, partition) if path >= sealed)
        files = (self._chain_file(path) for path in paths)
        before_ms = self.now_ms - HOUR_LAG_MS
        return plan(files, today=self.today, limits=self.limits, before_ms=before_ms)

    def _chain_file(self, path: str) -> ChainFile:
        file = chain_file(self.store, path)
        if file.footer.merged or file.footer.rows >= LEAST_ROWS:
            self.large.append(path)
        return file

    def _count(self, group: tuple[ChainFile, ...]) -> None:
        self._note(
            segments=len(group),
            files=1,
            rows=sum(file.footer.rows for file in group),
            bytes_before=sum(file.size_bytes for file in group),
        )

    def _note(self, **more: int) -> None:
        """Add to counts of what is done."""
        counts = {name: getattr(self.done, name) + count for name, count in more.items()}
        self.done = replace(self.done, **counts)
