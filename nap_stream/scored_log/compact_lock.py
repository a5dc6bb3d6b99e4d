"""One compaction at a time: two of a partition at once could undo each other's files.

A file is exchanged whole, so that a compaction which has read a shorter chain could put a shorter
file in place of a longer one whose segments are removed already. No store that is supported here
can tell on a plain replace. Hence a lock file, created exclusively. It has no time limit: only a
person can know that its owner is really gone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from uuid import uuid4

from nap_stream.errors import ScoredLogError
from nap_stream.scored_log.store import SegmentStore

LOCK_NAME = "_compacting.json"


@dataclass(frozen=True, slots=True)
class LockOwner:
    """Who compacts; ``started`` is ISO 8601, UTC."""

    host: str
    pid: int
    started: str


class CompactionLock:
    """A held lock.

    Args:
        store: Where the log lies.
        content: What its file holds.
    """

    def __init__(self, store: SegmentStore, content: bytes) -> None:
        self._store, self._content = store, content

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            ScoredLogError: Somebody has broken it.
        """
        if self._store.read(LOCK_NAME) != self._content:
            raise ScoredLogError(
                "the lock of this compaction was broken",
                LOCK_NAME,
                "Another compaction runs now; nothing is harmed",
            )


@contextmanager
def compaction_lock(
    store: SegmentStore, owner: LockOwner, *, break_lock: bool = False
) -> Iterator[CompactionLock]:
    """Hold the log's lock.

    Args:
        store: Where the log lies.
        owner: For whoever finds the lock taken.
        break_lock: Take it away from its owner.

    Raises:
        ScoredLogError: Somebody else holds it.
    """
    content = json.dumps({**asdict(owner), "token": uuid4().hex}).encode()
    if break_lock:
        store.remove([LOCK_NAME])
    if not store.create(LOCK_NAME, content):
        raise _taken(store.read(LOCK_NAME))
    try:
        yield CompactionLock(store, content)
    finally:
        if store.read(LOCK_NAME) == content:
            store.remove([LOCK_NAME])


def _taken(content: bytes | None) -> ScoredLogError:
    return ScoredLogError(
        f"another compaction holds the lock: {_owner(content)}",
        LOCK_NAME,
        "Wait until it has ended; if that process is surely gone, give --break-lock",
    )


def _owner(content: bytes | None) -> str:
    try:
        tree = json.loads(content or b"")
        return f"process {tree['pid']} on {tree['host']}, since {tree['started']}"
    except (ValueError, KeyError, TypeError):
        return "its file does not say whose"
