"""Which segments of a chain to merge, decided from their footers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from nap_stream.errors import ChainBrokenError
from nap_stream.scored_log.footer import SegmentFooter, segment_sha256
from nap_stream.scored_log.merged import may_merge, merged_slots


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A file of a chain: its path, its whole footer, its size in bytes."""

    path: str
    footer: SegmentFooter
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a compacted file may hold at most.

    ``max_bytes`` are those of the files that it merges, ``max_memory_bytes`` of their rows when
    decoded: keys that repeat are small in a file and large in memory.
    """

    max_rows: int
    max_bytes: int
    max_memory_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_bytes, self.max_memory_bytes) < 1:
            raise ValueError(f"expected positive limits, got {self}")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A segment that a compacted file has merged and that lies there all the same.

    An interrupted compaction or a writer that died has left it.
    """

    compacted: ChainFile
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a chain.

    ``groups`` are files to merge, two at least, in order. ``leftovers`` are segments that stand in
    a compacted file too.
    """

    groups: tuple[tuple[ChainFile, ...], ...]
    leftovers: tuple[Leftover, ...]


def plan(files: Iterable[ChainFile], *, today: date, limits: Limits) -> Plan:
    """Decide what to merge.

    A group follows each other without a hole, was published on one day before ``today`` (UTC),
    by one model and calibration, in version 3 or newer. Files that are compacted already, and
    the last segment of the chain, to which writers link, stay as they are.

    Args:
        files: A partition's, in order of their base offsets. Of compacted files only those with
            leftovers are kept: their footers are large.
        today: The day that is not over yet, UTC.
        limits: Of each merged file.

    Raises:
        ChainBrokenError: The files are not a whole chain. Nothing may be merged then: it would
            hide what is wrong.
    """
    segments, leftovers = _divided(files)
    closed = [file for file in segments if _day(file) < today]
    groups = [group for group in _groups(closed, limits) if len(group) > 1]
    return Plan(tuple(groups), tuple(leftovers))


def _groups(files: Sequence[ChainFile], limits: Limits) -> Iterator[tuple[ChainFile, ...]]:
    group: list[ChainFile] = []
    rows = size_bytes = 0
    for file in files:
        rows, size_bytes = rows + file.footer.rows, size_bytes + file.size_bytes
        fits = rows <= limits.max_rows and size_bytes <= limits.max_bytes
        if group and not (fits and _may_follow(group[-1], file)):
            yield tuple(group)
            group, rows, size_bytes = [], file.footer.rows, file.size_bytes
        group.append(file)
    yield tuple(group)


def _may_follow(before: ChainFile, file: ChainFile) -> bool:
    return _day(before) == _day(file) and may_merge(before.footer, file.footer)


def _day(file: ChainFile) -> date:
    return datetime.fromtimestamp(file.footer.created_time_ms / 1000, UTC).date()


def _divided(files: Iterable[ChainFile]) -> tuple[list[ChainFile], list[Leftover]]:
    """The chain's segments but for the last and compacted ones, and what stands in the latter."""
    segments: list[ChainFile] = []
    leftovers: list[Leftover] = []
    last: ChainFile | None = None
    slots: set[tuple[int, str]] = set()
    for file in files:
        if last is not None and file.footer.base_offset < last.footer.end_offset:
            _check_covered(last, slots, file)
            leftovers.append(Leftover(last, file.path))
            continue
        if last is not None:
            _check_link(last, file)
            if not last.footer.merged:
                segments.append(last)
        last, slots = file, merged_slots(file.footer.merged)
    return segments, leftovers


def _check_covered(compacted: ChainFile, slots: set[tuple[int, str]], file: ChainFile) -> None:
    """Refuse to remove what the compacted file does not stand for.

    Either it lists exactly this segment, or it lists the one that won this base offset after the
    same predecessor: then this is what a writer published that had slept, and died before it
    could take it back.
    """
    footer = file.footer
    if footer.merged or (footer.base_offset, footer.previous_sha256) not in slots:
        raise _broken(file, f"it overlaps {compacted.path}, which has not merged it")


def _check_link(before: ChainFile, file: ChainFile) -> None:
    expected, base = before.footer.end_offset, file.footer.base_offset
    if base != expected:
        raise _broken(file, f"offsets [{expected}, {base}) are in no segment")
    earlier, later = before.footer.parts[-1], file.footer.parts[0]
    if earlier.rows_sha256 is not None and later.previous_sha256 != segment_sha256(earlier):
        raise _broken(file, f"it does not name the digest of {before.path}")


def _broken(file: ChainFile, problem: str) -> ChainBrokenError:
    return ChainBrokenError(
        problem, file.path, "Nothing is compacted here; run `nap-stream verify`"
    )
