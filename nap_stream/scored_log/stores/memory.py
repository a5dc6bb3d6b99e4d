"""The scored log in memory, for tests of what writes to it."""

import io
import threading
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ChainedScoredLog
from nap_stream.scored_log.footer import SegmentFooter
from nap_stream.scored_log.format import SCHEMA, parse_segment_name, partition_folder
from nap_stream.scored_log.segment import decode_footer


class MemoryStore:
    """Files in a dictionary; implements `nap_stream.scored_log.stores.base.SegmentStore`.

    Outlives the logs that write to it. Safe for threads.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        """The log's root, for messages."""
        return "memory"

    def prepare(self, folder: str) -> None:
        """Nothing: folders are no things of their own here."""

    def names(self, folder: str, first: str = "") -> list[str]:
        """Names of the files and folders in a folder from ``first`` on."""
        prefix = f"{folder}/" if folder else ""
        with self._lock:
            below = [path for path in self._files if path.startswith(prefix)]
        names = dict.fromkeys(path.removeprefix(prefix).split("/", 1)[0] for path in below)
        return [name for name in names if name >= first]

    def read(self, path: str) -> bytes | None:
        """A whole file; None where it is missing."""
        with self._lock:
            return self._files.get(path)

    def open(self, path: str) -> BinaryIO | None:
        """A file to read and seek in; None where it is missing."""
        content = self.read(path)
        return None if content is None else io.BytesIO(content)

    def create(self, path: str, content: bytes) -> bool:
        """Keep a file; False where the name is taken."""
        with self._lock:
            if path in self._files:
                return False
            self._files[path] = content
            return True

    def replace(self, path: str, content: bytes) -> None:
        """Keep other content under a name."""
        with self._lock:
            self._files[path] = content

    def remove(self, paths: Sequence[str]) -> None:
        """Forget files; those that are missing are harmless."""
        with self._lock:
            for path in paths:
                self._files.pop(path, None)

    def segments(self, partition: TopicPartition) -> tuple[str, ...]:
        """Paths of a partition's segments, in order of their base offsets."""
        folder = partition_folder(partition)
        names = sorted(n for n in self.names(folder) if parse_segment_name(n) is not None)
        return tuple(f"{folder}/{name}" for name in names)

    def footers(self, partition: TopicPartition) -> tuple[SegmentFooter, ...]:
        """Footers of a partition's segments, in order.

        Raises:
            ChainBrokenError: A footer is not valid.
        """
        contents = [(self.read(path), path) for path in self.segments(partition)]
        return tuple(
            decode_footer(pa.BufferReader(c), path) for c, path in contents if c is not None
        )

    def table(self, partition: TopicPartition) -> pa.Table:
        """All rows of a partition, in order, with the log's schema."""
        contents = [self.read(path) for path in self.segments(partition)]
        tables = [pq.read_table(pa.BufferReader(c)) for c in contents if c is not None]
        plain = [table.replace_schema_metadata(None) for table in tables]
        return pa.concat_tables([SCHEMA.empty_table(), *plain])


class MemoryScoredLog(ChainedScoredLog):
    """The scored log over a `MemoryStore`: the same chain and bytes as on disk.

    The store is shared by the writers that compete; what is in it survives this log.
    """
