"""Seals: what stands in a chain where its oldest rows were pruned.

    <root>/topic=<topic>/partition=<p>/_pruned.<first offset that it covers, 20 digits>.note

A seal keeps the footers of all the segments whose files were removed, and no row. So the chain of
digests goes on from the genesis marker through the seals to the first file: what an earlier report
or a signed checkpoint names within a pruned span is still found, and cannot have been another.
Seals follow each other as segments do, are created exclusively, and never change.

The text of a seal; where a key signed it, it is a note (`nap_stream.scored_log.proof.note`):

    nap-stream pruned span v1
    {...}          what was pruned, by whom, when and why: `PrunedSpan` as JSON
    eJx...         the footers, as `nap_stream.scored_log.footer.pack_footers` has them

What the second line says of rows, times, models and gaps is that of the footers. How many rows had
each status, and how many were flagged, no digest of the chain covers: that is the sealer's word.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any

from pydantic import TypeAdapter

from nap_stream.errors import ChainBrokenError
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.footer import (
    SegmentFooter,
    footers_text,
    pack_footers,
    parse_footers,
    segment_sha256,
    unpacked_text,
)
from nap_stream.scored_log.format import parse_seal_name, partition_folder, seal_path
from nap_stream.scored_log.proof.note import MAX_NOTE_BYTES, Signer, claimed_signers
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.text import rfc3339

ORIGIN = "nap-stream pruned span v1"
MAX_HEADER_BYTES = 2**20
"""Of the first two lines, which are all that a reader of rows needs."""
MAX_SEGMENTS = 20_000
"""Of one seal, which is then some 3 MB."""
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PrunedSpan:
    """What a seal says of the offsets ``[start_offset, end_offset)``, whose rows are gone.

    ``previous_sha256`` is the chain's digest before them, ``sha256`` that at their end.
    ``before_ms`` is what was asked for: rows whose event time is before it. ``pruned_ms`` is by the
    clock of who pruned. ``rows_by_status`` and ``flagged_rows`` are by the word of ``by``; the
    counts of ``segments``, ``rows`` and ``gap_offsets``, times, and fingerprints are those of the
    footers. Times are milliseconds since the epoch, UTC; those of events null without rows.
    """

    topic: str
    partition: int
    start_offset: int
    end_offset: int
    previous_sha256: str
    sha256: str
    before_ms: int
    pruned_ms: int
    by: str
    reason: str
    program_version: str
    segments: int
    rows: int
    rows_by_status: dict[str, int]
    flagged_rows: int
    gap_offsets: int
    min_event_time_ms: int | None
    max_event_time_ms: int | None
    models: tuple[str, ...]
    calibrations: tuple[str, ...]

    @property
    def place(self) -> TopicPartition:
        """Whose chain."""
        return TopicPartition(self.topic, self.partition)

    @property
    def path(self) -> str:
        """Where its seal lies."""
        return seal_path(self.place, self.start_offset)


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal as its file has it. ``claimed`` are who is said to have signed: it is not checked."""

    span: PrunedSpan
    parts: tuple[SegmentFooter, ...]
    sha256: str
    claimed: tuple[str, ...]


_SPANS = TypeAdapter(PrunedSpan)


def span_of(
    parts: Sequence[SegmentFooter],
    rows_by_status: Mapping[str, int],
    flagged_rows: int,
    *,
    before_ms: int,
    pruned_ms: int,
    by: str,
    reason: str,
    program_version: str,
) -> PrunedSpan:
    """What a seal says of segments that follow each other, none of them of a compacted file.

    Raises:
        ValueError: They do not follow each other, or the counts contradict them.
    """
    for earlier, later in pairwise(parts):
        follows = later.base_offset == earlier.end_offset and later.partition == earlier.partition
        if not follows or later.previous_sha256 != segment_sha256(earlier):
            raise ValueError(f"segment {later.base_offset} does not follow {earlier.base_offset}")
    first, last = parts[0], parts[-1]
    lows = [part.min_event_time_ms for part in parts if part.min_event_time_ms is not None]
    highs = [part.max_event_time_ms for part in parts if part.max_event_time_ms is not None]
    rows, scored = (sum(getattr(part, name) for part in parts) for name in ("rows", "scored_rows"))
    counted = sum(rows_by_status.values()), rows_by_status.get(Status.OK, 0)
    least = min([flagged_rows, scored - flagged_rows, *rows_by_status.values()])
    if counted != (rows, scored) or least < 0:
        raise ValueError("its counts of rows by status contradict its footers")
    return PrunedSpan(
        topic=first.partition.topic,
        partition=first.partition.partition,
        start_offset=first.base_offset,
        end_offset=last.end_offset,
        previous_sha256=first.previous_sha256,
        sha256=segment_sha256(last),
        before_ms=before_ms,
        pruned_ms=pruned_ms,
        by=by,
        reason=reason,
        program_version=program_version,
        segments=len(parts),
        rows=rows,
        rows_by_status=dict(sorted(rows_by_status.items())),
        flagged_rows=flagged_rows,
        gap_offsets=sum(p.end_offset - p.base_offset for p in parts if p.gap is not None),
        min_event_time_ms=min(lows, default=None),
        max_event_time_ms=max(highs, default=None),
        models=tuple(dict.fromkeys(part.model_fingerprint for part in parts)),
        calibrations=tuple(dict.fromkeys(part.calibration_fingerprint for part in parts)),
    )


def encode_seal(span: PrunedSpan, parts: Sequence[SegmentFooter], signer: Signer | None) -> bytes:
    """The file of a seal, signed where there is a key."""
    text = f"{ORIGIN}\n{_header(span)}\n{pack_footers(parts)}\n"
    return text.encode("ascii") if signer is None else signer.sign(text)


def _header(span: PrunedSpan) -> str:
    return json.dumps(asdict(span), ensure_ascii=True)


def decode_seal(content: bytes, path: str) -> Seal:
    """Read a seal back, strictly: what it says of its footers is what they say.

    Raises:
        ChainBrokenError: It is none, is of another place, or contradicts itself.
    """
    try:
        if len(content) > MAX_NOTE_BYTES:
            raise ValueError(f"it has more than {MAX_NOTE_BYTES:,} bytes")  # noqa: TRY301
        text, blank, _ = content.partition(b"\n\n")
        lines = (text + b"\n" if blank else text).decode("ascii").split("\n")
        span = _parsed(lines[:2], path)
        if len(lines) != 4 or lines[3]:  # noqa: PLR2004 (the last line ends, too)
            raise ValueError("it is not three lines of text")  # noqa: TRY301
        packed = unpacked_text(lines[2])
        parts = tuple(parse_footers(packed))
        of = ("before_ms", "pruned_ms", "by", "reason", "program_version")
        same = span_of(
            *(parts, span.rows_by_status, span.flagged_rows),
            **{name: getattr(span, name) for name in of},
        )
        if same != span or footers_text(parts) != packed:
            raise ValueError("what it says is not what its footers say")  # noqa: TRY301
        claimed = claimed_signers(content) if blank else ()
    except (ValueError, IndexError, RecursionError, zlib.error) as error:
        raise _broken(error, path) from error
    return Seal(span, parts, hashlib.sha256(content).hexdigest(), claimed)


def _parsed(lines: Sequence[str], path: str) -> PrunedSpan:
    """What the first two lines say.

    Raises:
        ValueError: They are not as nap-stream writes them, or of another place.
    """
    origin, header = lines
    if origin != ORIGIN:
        raise ValueError(f"it begins with {origin[:100]!r}, not with {ORIGIN!r}")
    span = _SPANS.validate_json(header, strict=True)
    texts = (span.topic, span.by, span.reason, *span.models, *span.calibrations)
    if not all(text.isprintable() for text in texts) or _header(span) != header:
        raise ValueError("it is not as nap-stream writes it")
    if span.path != path:
        raise ValueError(f"it is the seal of {span.place}@{span.start_offset}")
    return span


def _broken(error: Exception, path: str) -> ChainBrokenError:
    said = str(error).splitlines()[0]
    return ChainBrokenError(
        f"the seal of a pruned span is not valid: {said}",
        path,
        "Run `nap-stream verify`; restore the file from a backup",
    )


def seal_paths(store: SegmentStore, partition: TopicPartition) -> list[str]:
    """The seals of a chain, in order.

    Raises:
        ScoredLogError: The store cannot be listed.
    """
    folder = partition_folder(partition)
    names = store.names(folder, "_pruned.")
    starts = sorted(start for name in names if (start := parse_seal_name(name)) is not None)
    return [seal_path(partition, start) for start in starts]


def read_seal(store: SegmentStore, path: str) -> Seal:
    """A whole seal, with its footers.

    Raises:
        ChainBrokenError: As `decode_seal`, or it is gone.
        ScoredLogError: The store cannot be read.
    """
    return decode_seal(_beginning(store, path, MAX_NOTE_BYTES + 1), path)


def seal_sha256(store: SegmentStore, path: str) -> str:
    """The digest of what has a seal's name.

    Raises:
        ChainBrokenError: It is gone.
        ScoredLogError: The store cannot be read.
    """
    return hashlib.sha256(_beginning(store, path, MAX_NOTE_BYTES + 1)).hexdigest()


def read_span(store: SegmentStore, path: str) -> PrunedSpan:
    """What a seal says, without its footers: they can be large.

    Raises:
        ChainBrokenError: Its first lines are not valid, or it is gone.
        ScoredLogError: The store cannot be read.
    """
    content = _beginning(store, path, MAX_HEADER_BYTES)
    try:
        return _parsed([line.decode("ascii") for line in content.split(b"\n")[:2]], path)
    except ValueError as error:
        raise _broken(error, path) from error


def _beginning(store: SegmentStore, path: str, size: int) -> bytes:
    file = store.open(path)
    if file is None:
        raise _broken(ValueError("it was listed and is gone"), path)
    with file:
        return file.read(size)


def last_span(store: SegmentStore, partition: TopicPartition) -> PrunedSpan | None:
    """The newest pruned span of a chain; None where nothing was pruned.

    Raises:
        ChainBrokenError: Its seal is not valid.
        ScoredLogError: The store cannot be read.
    """
    paths = seal_paths(store, partition)
    return read_span(store, paths[-1]) if paths else None


def pruned_spans(
    store: SegmentStore,
    partitions: Iterable[TopicPartition],
    unread: list[ChainBrokenError],
) -> Iterator[PrunedSpan]:
    """What was pruned of chains. ``unread`` takes the errors of seals that are not valid.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    for partition in partitions:
        for path in seal_paths(store, partition):
            try:
                yield read_span(store, path)
            except ChainBrokenError as error:
                unread.append(error)


def reaches(span: PrunedSpan, since_ms: int | None, until_ms: int | None) -> bool:
    """Whether a pruned span had rows that may lie in ``[since_ms, until_ms)``; None is open."""
    low, high = span.min_event_time_ms, span.max_event_time_ms
    if low is None or high is None:
        return False
    return (since_ms is None or high >= since_ms) and (until_ms is None or low < until_ms)


def told_pruned(
    store: SegmentStore,
    partitions: Iterable[TopicPartition],
    since_ms: int | None = None,
    until_ms: int | None = None,
    offsets: tuple[int, int] | None = None,
) -> list[str]:
    """Sentences about what was pruned of what is asked for, and about seals that are not valid.

    ``since_ms`` and ``until_ms`` bound event times, ``offsets`` are the first and the last one;
    None does not bound.

    Raises:
        ScoredLogError: The store cannot be read.
    """
    unread: list[ChainBrokenError] = []
    first, last = offsets or (0, 2**63 - 1)
    spans = [
        span
        for span in pruned_spans(store, partitions, unread)
        if reaches(span, since_ms, until_ms)
        if span.start_offset <= last and span.end_offset > first
    ]
    return [*pruned_words(spans), *map(_unknown, unread)]


def _unknown(error: ChainBrokenError) -> str:
    return f"what was pruned by {error.where} is not known: {error.problem}"


def pruned_words(spans: Iterable[PrunedSpan]) -> Iterator[str]:
    """Who pruned what, when and why: a sentence for each topic and time."""

    def run(span: PrunedSpan) -> tuple[Any, ...]:
        return span.pruned_ms, span.topic, span.by, span.reason, span.before_ms

    for (pruned_ms, topic, by, reason, before_ms), group in groupby(sorted(spans, key=run), run):
        own = list(group)
        chains = sorted({span.partition for span in own})
        where = (
            f"{topic}/{chains[0]}" if len(chains) == 1 else f"{len(chains)} partitions of {topic}"
        )
        lows = [span.min_event_time_ms for span in own if span.min_event_time_ms is not None]
        highs = [span.max_event_time_ms for span in own if span.max_event_time_ms is not None]
        times = (
            f" with event times from {rfc3339(min(lows))} to {rfc3339(max(highs))}" if lows else ""
        )
        yield (
            f"{sum(span.rows for span in own):,} rows of {where}{times} were pruned by {by} on "
            f"{rfc3339(pruned_ms)}, with all before {rfc3339(before_ms)}: {reason}"
        )
