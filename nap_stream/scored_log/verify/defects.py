"""What can be wrong with a scored log, and the report of a verification."""

from dataclasses import dataclass
from enum import StrEnum

from nap_stream.records import TopicPartition


class DefectKind(StrEnum):
    """The kinds of defects, each named for what was found."""

    GENESIS_MISSING = "genesis_missing"
    GENESIS_UNREADABLE = "genesis_unreadable"
    HOLE = "hole"
    OVERLAP = "overlap"
    COVERED = "covered"
    PREVIOUS_HASH = "previous_hash"
    TOPIC_ID = "topic_id"
    UNREADABLE = "unreadable"
    FOOTER = "footer"
    SCHEMA_VERSION = "schema_version"
    SCHEMA = "schema"
    NAME = "name"
    ROW_COUNT = "row_count"
    ROW_OUTSIDE_RANGE = "row_outside_range"
    ROW_ORDER = "row_order"
    DUPLICATE_ROW = "duplicate_row"
    ROWS_HASH = "rows_hash"
    CONTENT = "content"
    STRAY_FILE = "stray_file"
    BEYOND_BROKER = "beyond_broker"
    BEHIND_COMMITTED = "behind_committed"
    CHAIN_MISSING = "chain_missing"
    KEPT_DIGEST = "kept_digest"


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong. ``file`` is a file or folder, relative to the log's root."""

    file: str
    kind: DefectKind
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class DeclaredGap:
    """Offsets ``[base_offset, end_offset)`` that a segment says are missing, and why."""

    file: str
    base_offset: int
    end_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class CompactedFile:
    """A file that counts in its chain as the ``segments`` segments that it merged."""

    file: str
    base_offset: int
    end_offset: int
    segments: int


@dataclass(frozen=True, slots=True)
class ChainHead:
    """What a partition's chain covers, and the hash that its next segment must name.

    To prove later that nothing was changed or cut off, keep ``sha256`` elsewhere: it depends on
    every row and every footer of the chain. ``topic_id`` is None where no broker has told it.
    """

    partition: TopicPartition
    start_offset: int
    end_offset: int
    sha256: str
    topic_id: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `nap_stream.scored_log.verify.run.verify`.

    ``segments`` counts those that the chains are made of, ``compacted`` names the files that hold
    several. ``offsets`` counts the offsets that segments cover, ``gap_offsets`` those in declared
    gaps, which are not among them. Only segments that could be read are counted, but in
    ``segments``, and none that stands before its chain's position. ``heads`` holds the partitions
    whose last segment could be read. ``deep`` says whether every value was read.
    """

    partitions: int
    segments: int
    rows: int
    offsets: int
    gap_offsets: int
    gaps: tuple[DeclaredGap, ...]
    heads: tuple[ChainHead, ...]
    defects: tuple[Defect, ...]
    compacted: tuple[CompactedFile, ...] = ()
    deep: bool = False

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong. Declared gaps are no defects."""
        return not self.defects
