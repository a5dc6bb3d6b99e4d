"""The coordinator's checkpoint: where the drift monitor stands, and which alerts are on their way.

It saves reading the log again and keeps the story straight; the log stays the truth. What a
checkpoint lacks is judged again from the log, with the same alerts and ids, and a sink that knows
what it has received leaves those out. So a zombie that puts an older checkpoint in place of a newer
one does no harm: more of the log is read again, that is all. The same goes for one that is lost.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import structlog

from nap_stream.alert.event import AlertEvent
from nap_stream.scored_log.stores.base import SegmentStore
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS

FOLDER = "_monitors"
"""Hidden from Parquet readers, as all names that begin with an underscore."""
MAX_CHECKPOINT_BYTES = 2**31
"""A million keys take half of it."""
_MAGIC = b"nap-stream checkpoint 1\n"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = hashlib.sha256().digest_size
_MAX_NAME = 120
"""Characters of a quoted name; longer ones would not fit into a file's name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a coordinator that takes over must know.

    ``monitor`` is the drift monitor's own state. ``pending`` are the alerts that were decided and
    that any of the sinks had not taken, each once, in the order of decision. All sinks get them
    again, but for those that say that they have them: to Alertmanager a repeat is the same alert,
    and the log repeats a line.
    """

    monitor: bytes
    pending: tuple[AlertEvent, ...] = ()


def encode(checkpoint: Checkpoint) -> bytes:
    """Write a checkpoint as bytes, with their digest."""
    tree = {"pending": [{"key": each.key, "event": each.event} for each in checkpoint.pending]}
    document = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    parts = (_LENGTH.pack(len(document)), document, checkpoint.monitor)
    return b"".join((_MAGIC, _digest(*parts), *parts))


def decode(content: bytes) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: It is none, or not as it was written.
    """
    if not content.startswith(_MAGIC):
        raise ValueError("not a checkpoint of this version")
    start = len(_MAGIC) + _DIGEST_BYTES
    body = memoryview(content)[start:]
    if _digest(body) != content[len(_MAGIC) : start]:
        raise ValueError("damaged: its bytes do not have its digest")
    try:
        (length,) = _LENGTH.unpack_from(body)
        end = _LENGTH.size + length
        document = json.loads(bytes(body[_LENGTH.size : end]))
        pending = tuple(_event(tree) for tree in document["pending"])
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a checkpoint: {error!r}") from error
    return Checkpoint(bytes(body[end:]), pending)


class CheckpointStore:
    """The one checkpoint of a monitor of a topic, beside the scored log."""

    def __init__(self, store: SegmentStore, monitor: str, topic: str) -> None:
        self._store = store
        self._folder = f"{FOLDER}/{_file_name(monitor)}"
        self.path = f"{self._folder}/{_file_name(topic)}.checkpoint"

    def read(self) -> Checkpoint | None:
        """Read it; None where there is none, or none that can be read, which the log tells.

        Raises:
            ScoredLogError: The store cannot be read.
        """
        file = self._store.open(self.path)
        if file is None:
            return None
        with file:
            # What is longer is cut, and so has not its digest.
            content = file.read(MAX_CHECKPOINT_BYTES)
        try:
            return decode(content)
        except ValueError as error:
            where = f"{self._store.root}/{self.path}"
            structlog.get_logger().warning("checkpoint_unreadable", file=where, cause=str(error))
            return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Put it in place of the one before, durably: at every moment there is a whole one.

        Raises:
            ScoredLogError: It could not be made durable; the one before, or it, is in place.
        """
        self._store.prepare(self._folder)
        self._store.replace(self.path, encode(checkpoint))

    def remove_leftovers(self, now_ms: int) -> None:
        """Remove what a coordinator left that died while it wrote."""
        self._store.remove_leftovers(self._folder, now_ms - LEFTOVER_AGE_MS)


def _file_name(name: str) -> str:
    """A name as one part of a path, different for different names."""
    quoted = quote(name, safe="")
    if len(quoted) <= _MAX_NAME and not quoted.startswith("."):
        return quoted
    # Quoted text has no equals sign, so that no other name is like it.
    return f"sha256={hashlib.sha256(name.encode()).hexdigest()}"


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _event(tree: Mapping[str, Any]) -> AlertEvent:
    key, event = tree["key"], tree["event"]
    if not isinstance(key, str) or not {"id", "type"} <= event.keys():
        raise TypeError("not an alert")
    return AlertEvent(key, event)
