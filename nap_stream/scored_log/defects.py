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
    PREVIOUS_HASH = "previous_hash"
    UNREADABLE = "unreadable"
    FOOTER = "footer"
    SCHEMA_VERSION = "schema_version"
    SCHEMA = "schema"
    NAME = "name"
    ROW_COUNT = "row_count"
    ROW_OUTSIDE_RANGE = "row_outside_range"
    ROW_ORDER = "row_order"
    DUPLICATE_ROW = "duplicate_row"
    CONTENT = "content"
    STRAY_FILE = "stray_file"


@dataclass(frozen=True, slots=True)
class Defect:
    """One thing that is wrong. ``file`` is relative to the log's root."""

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
class ChainHead:
    """What a partition's chain covers, and the hash that its next segment must name.

    To prove later that nothing was changed or cut off, keep ``sha256`` elsewhere: it depends on
    every byte of the chain.
    """

    partition: TopicPartition
    start_offset: int
    end_offset: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `nap_stream.scored_log.verify.verify`.

    ``offsets`` counts the offsets that segments cover, ``gap_offsets`` those in declared gaps,
    which are not among them. Only segments that could be read are counted, but in ``segments``.
    ``heads`` holds the partitions whose last segment could be read.
    """

    partitions: int
    segments: int
    rows: int
    offsets: int
    gap_offsets: int
    gaps: tuple[DeclaredGap, ...]
    heads: tuple[ChainHead, ...]
    defects: tuple[Defect, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong. Declared gaps are no defects."""
        return not self.defects
