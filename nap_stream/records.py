"""The frozen records that pass between stages. Offsets ride with the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    # At run time no record needs these, of which torch takes seconds to import.
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from nap_stream.clock import Timed
    from nap_stream.core.panes import ImageCounts, PaneCounts

SHA256_HEX_DIGITS = 64


class Status(StrEnum):
    """What became of one image. Everything but ``OK`` has null scores and an error text."""

    OK = "ok"
    TOMBSTONE = "tombstone"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    CORRUPT = "corrupt"
    BAD_BATCH = "bad_batch"
    NOT_FINITE = "not_finite"
    BAD_MESSAGE = "bad_message"
    NOT_ALLOWED = "not_allowed"
    MISSING = "missing"
    FETCH_FAILED = "fetch_failed"


class Disagreement(StrEnum):
    """How a committed offset differs from the end of the log."""

    AHEAD = "ahead"
    BEHIND = "behind"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True)
class PartitionOffsets:
    """A partition as the broker and the consumer group have it.

    ``earliest`` is the first offset that retention has left, ``end`` the one that the next message
    gets. ``committed`` is the group's, None where it has none. ``topic_id`` is the id that the
    broker gave the topic when it was made, None where the broker tells none.
    """

    partition: TopicPartition
    earliest: int
    end: int
    committed: int | None
    topic_id: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka message as it came.

    ``timestamp_ms`` is the broker's or the producer's time in milliseconds since the epoch.
    """

    partition: TopicPartition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one poll brought for one partition.

    ``end`` is the consumer's position after these messages. It can exceed the last message's
    offset + 1, because compacted and transactional topics skip offsets.
    """

    partition: TopicPartition
    messages: tuple[Message, ...]
    end: int

    def __post_init__(self) -> None:
        if self.messages and self.end <= self.messages[-1].offset:
            raise ValueError(
                f"the position must be past the last message: got end = {self.end}, "
                f"last offset = {self.messages[-1].offset} of {self.partition}"
            )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from, (offset, index) of the log; ``is_letter`` if from a dead letter."""

    partition: TopicPartition
    offset: int
    index: int
    key: bytes | None
    event_time_ms: int
    ingest_time_ms: int
    headers: tuple[tuple[str, bytes | None], ...] = ()
    is_letter: bool = False

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}[{self.index}]"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedJpeg:
    """A JPEG within the limits whose pixels its device will decode.

    ``payload`` is the message's value where it was read to find this JPEG and no other image.
    """

    data: bytes
    origin: Origin
    sha256: str
    width: int
    height: int
    payload: bytes | None = None

    @property
    def nbytes(self) -> int:
        """What it takes in memory while it waits."""
        return len(self.data) + len(self.payload or b"")


@dataclass(frozen=True, slots=True, eq=False)
class ModelOutput:
    """What a model that runs elsewhere gave for one image.

    ``logits`` are float32 (K,), ``features`` float32 (D,), null where no score takes any, ``nap``
    the prior of its map: NaN where a value is not finite. ``sha256`` is of the values as they came.
    The size of the image is not known.
    """

    logits: "NDArray[np.float32]"
    features: "NDArray[np.float32] | None"
    nap: float
    sha256: str
    width: int | None = None
    height: int | None = None
    format: str = "outputs"

    @property
    def nbytes(self) -> int:
        """What it takes in memory while it waits."""
        return self.logits.nbytes + (0 if self.features is None else self.features.nbytes)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a message, as a reader chain found it; or why it found none.

    ``data`` are the image's bytes, null where ``status`` is not ok; ``error`` says why then.
    ``key`` takes the place of the message's where ``has_key``. ``event_time_ms`` is null where the
    message's timestamp stands. ``source_uri`` is the reference that the bytes were fetched from,
    without what may be secret in it; null where there was none. ``output`` stands in place of
    ``data`` where the message holds what a model has made of the image elsewhere.
    """

    data: bytes | None
    status: Status = Status.OK
    error: str | None = None
    key: bytes | None = None
    has_key: bool = False
    event_time_ms: int | None = None
    source_uri: str | None = None
    output: ModelOutput | None = None


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that has no scores, and why.

    ``payload`` is what goes to the dead-letter topic, as it came. ``width``, ``height`` and
    ``format`` are null where the bytes did not say.
    """

    origin: Origin
    status: Status
    error: str
    payload: bytes | None
    sha256: str | None
    width: int | None = None
    height: int | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if self.status is Status.OK:
            raise ValueError(f"a failed image cannot have status ok: {self.origin}")


IMAGE_COLUMNS = (
    "offset",
    "index",
    "key",
    "event_time",
    "ingest_time",
    "status",
    "error",
    "width",
    "height",
    "format",
    "sha256",
    "headers",
    "decode_warning",
    "source_uri",
)
"""What is known of an image before it is scored, by column of the scored log."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedRows:
    """The images of messages of one partition, as columns: one row an image, in Kafka order.

    ``columns`` are `IMAGE_COLUMNS`, a list each, all of one length. Times are in milliseconds since
    the epoch, headers are (name, value) pairs, ``sha256`` is the hexadecimal digest of the image's
    bytes; ``decode_warning`` and ``source_uri`` are None where there is none. ``pixels`` are of the
    rows whose status is ok, in their order: uint8, (3, H, W), RGB; or JPEGs that are decoded when
    they are scored; or the outputs of a model elsewhere. ``failed`` are the others. Scoring adds
    the JPEGs that cannot be decoded. ``files`` are the images' bytes as they came, by row, None
    where they were not decoded and empty where there is no room for them; there are none where
    nobody keeps them.
    """

    columns: Mapping[str, list[Any]]
    pixels: "tuple[torch.Tensor | EncodedJpeg | ModelOutput, ...]"
    failed: list[FailedImage]
    files: tuple[bytes | None, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["offset"])


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRows:
    """Rows of messages of one partition, and where the partition stands after them.

    ``epoch`` is the assignment under which the messages were read: rows of an earlier one are
    dropped. ``rows`` have the columns of `nap_stream.scored_log.format.ROWS`, in Kafka order.
    ``failed`` go to the dead-letter topic, ``files`` are as in `DecodedRows`, ``steps`` are traced.
    """

    partition: TopicPartition
    epoch: int
    end: int
    rows: "pa.RecordBatch"
    failed: tuple[FailedImage, ...]
    files: tuple[bytes | None, ...] = ()
    steps: "tuple[Timed, ...]" = ()

    @property
    def scored(self) -> int:
        """How many rows have scores."""
        return int(self.rows.num_rows - self.rows.column("class_id").null_count)

    @property
    def decode_warnings(self) -> int:
        """How many rows have a warning of the decoder."""
        return int(self.rows.num_rows - self.rows.column("decode_warning").null_count)


@dataclass(frozen=True, slots=True)
class ChainPosition:
    """Where a partition's chain of segments ends.

    ``offset`` is the next segment's base offset. ``previous_sha256`` is the hexadecimal digest
    that the next segment must name: of the last segment, or of the genesis marker. ``base`` is
    the last segment's base offset, None after the marker. ``topic_id`` is the topic's id as the
    chain has it, None where no broker has told it yet.
    """

    offset: int
    previous_sha256: str
    base: int | None = None
    topic_id: str | None = None

    def __post_init__(self) -> None:
        if self.offset < 0 or len(self.previous_sha256) != SHA256_HEX_DIGITS:
            raise ValueError(f"not a chain position: {self.offset = }, {self.previous_sha256 = }")


@dataclass(frozen=True, slots=True)
class PublishedSegment:
    """A segment that is durable. It covers ``[base_offset, position.offset)``.

    ``path`` is relative to the log's root.
    """

    partition: TopicPartition
    base_offset: int
    position: ChainPosition
    rows: int
    size_bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class Example:
    """A record that an alert shows as evidence. ``key`` is empty where it has none."""

    partition: TopicPartition
    offset: int
    index: int
    event_time_ms: int
    key: str
    class_name: str
    ood_p_value: float
    segment: str


@dataclass(frozen=True, slots=True)
class FlaggedClass:
    """How many flagged records of a pane have a predicted class."""

    start_ms: int
    class_name: str
    flagged: int


@dataclass(frozen=True, slots=True)
class UnscoredImages:
    """Images of a pane that have no scores for the same reason, and the first of them.

    ``error`` is the first one's; those of the others differ from it in numbers alone. ``key`` is
    empty where it has none, or keys are not told apart. The first stands at ``offset`` and
    ``index`` of the partition, in ``segment``.
    """

    start_ms: int
    status: Status
    error: str
    key: str
    images: int
    partition: TopicPartition
    offset: int
    index: int
    event_time_ms: int
    segment: str


STATUSES = tuple(Status)
"""The kinds that images are counted by, see `nap_stream.core.panes.ImageCounts`."""


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """What the drift monitor needs to know of one published segment.

    ``panes`` count its scored records by event time and key, ``images`` all its rows by event time
    and status, in the order of `STATUSES`. ``unscored`` are its images without scores, ordered by
    pane, the most first; of many different ones in a pane only the commonest.
    ``flagged_classes`` are ordered. ``implausible_timestamps``
    counts records whose event time cannot be true: they count at the time when they were read.
    ``max_event_time_ms``, of all rows and bounded in the same way, is null for a segment without
    rows. ``gap`` says why a segment without rows was published; ``trace`` is of the segment.
    """

    partition: TopicPartition
    base_offset: int
    end_offset: int
    rows_by_status: Mapping[Status, int]
    panes: "PaneCounts"
    images: "ImageCounts"
    max_event_time_ms: int | None
    path: str
    unscored: tuple[UnscoredImages, ...] = ()
    flagged_classes: tuple[FlaggedClass, ...] = ()
    examples: tuple[Example, ...] = ()
    implausible_timestamps: int = 0
    gap: str | None = None
    trace: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        OffsetRange(self.partition, self.base_offset, self.end_offset)


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far a worker is in one of its partitions.

    ``position`` is the next offset to log, ``lag`` the number of offsets between the consumer and
    the high watermark (null where the broker has not told it yet). ``time_lag_ms`` is the age of
    the newest event time in the last segment, 0 where nothing is left, null before the first.
    """

    partition: TopicPartition
    position: int
    lag: int | None
    time_lag_ms: int | None


TimePart = Literal["messages", "decode", "model", "log"]
TIME_PARTS: tuple[TimePart, ...] = get_args(TimePart)
"""What a scoring thread spends its time on: it waits for messages, for their decoding, or for a log
that is slow; or it is at work on a batch, with the model, the scores and the rows."""


EvidenceOutcome = Literal["kept", "over_budget", "queue_full", "failed", "memory_full"]
EVIDENCE_OUTCOMES: tuple[EvidenceOutcome, ...] = get_args(EvidenceOutcome)
"""What became of an image that was to be kept."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker's sign of life, sent about once a second.

    ``number`` counts the reports of an incarnation: clocks may jump. ``sent_at_ms`` is by the clock
    of the worker's machine. Counts are totals since its start, so that a lost report loses nothing.
    ``stage_seconds`` holds what was measured since the last report: (stage, seconds) pairs.
    ``work_done`` grows with every step that makes progress, and while there is nothing to score and
    the broker answers; ``idle`` is true when, besides, no row waits for its segment and no
    rebalance is under way. ``waiting_for`` says what outside keeps it from going on, ``left_out``
    why a topic's partitions are not read. ``offsets_…`` count the partitions taken over whose
    committed offset was ahead of the log, behind it, or missing. ``time_parts`` are the seconds of
    all scoring threads in each of `TIME_PARTS`. ``out_of_memory`` counts batches that did not fit
    their device, ``decode_warnings`` images of which the decoder warned. ``evidence`` counts images
    of each of `EVIDENCE_OUTCOMES`, ``evidence_bytes`` those kept.
    """

    worker: str
    incarnation: int
    number: int
    sent_at_ms: int
    work_done: int
    idle: bool
    rows: int
    images_scored: int
    dead_letters: int
    segments_published: int
    segment_conflicts: int
    rebalances: int
    last_commit_ms: int | None
    partitions: tuple[PartitionProgress, ...]
    stage_seconds: tuple[tuple[str, float], ...] = field(default=())
    waiting_for: str | None = None
    offsets_ahead: int = 0
    offsets_behind: int = 0
    offsets_missing: int = 0
    time_parts: tuple[float, ...] = (0.0,) * len(TIME_PARTS)
    out_of_memory: int = 0
    decode_warnings: int = 0
    evidence: tuple[int, ...] = (0,) * len(EVIDENCE_OUTCOMES)
    evidence_bytes: int = 0
    left_out: Mapping[TopicPartition, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """The offsets ``[start, end)`` of a partition."""

    partition: TopicPartition
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not an offset range: [{self.start}, {self.end}) of {self.partition}")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """That somebody accepts a change of a key for good: from ``from_ms`` on it is as it should be.

    ``number`` tells the acceptances of a log apart, ascending as they were made. ``key`` is empty
    for the whole stream. The first pane that ends at ``effective_ms`` or after takes it into
    account. All times are milliseconds since the epoch; ``made_ms`` is of a clock, the others are
    event times.
    """

    number: int
    topic: str
    key: str
    from_ms: int
    effective_ms: int
    made_ms: int
    by: str
    reason: str
