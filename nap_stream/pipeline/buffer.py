"""The rows of one owned partition that are scored and not yet published."""

from dataclasses import dataclass, field

from nap_stream.pipeline.scoring import ScoredMessage
from nap_stream.records import ChainPosition, FailedImage, ScoredRecord
from nap_stream.settings import LogSettings

ROW_BYTES = 512
"""What one row takes in memory, about: a record, its scores and its strings."""


@dataclass(slots=True)
class PartitionBuffer:
    """Rows in order of offset, from the chain's end on.

    ``epoch`` numbers the assignment: scored messages of another one do not belong here.
    ``end`` is the position that the next segment would have as its end. ``opened_at`` is the
    monotonic time at which the buffer got its first offset, in seconds. ``payload_bytes`` is
    what the failed images keep of their messages, in bytes; ``size_bytes`` includes it.
    """

    epoch: int
    position: ChainPosition
    end: int
    records: list[ScoredRecord] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    size_bytes: int = 0
    payload_bytes: int = 0
    opened_at: float | None = None

    def add(self, message: ScoredMessage, now: float) -> None:
        """Append a message's rows; messages arrive in the order of their offsets."""
        if self.opened_at is None:
            self.opened_at = now
        self.records.extend(message.records)
        self.failed.extend(message.failed)
        self.size_bytes += sum(ROW_BYTES + _origin_bytes(record) for record in message.records)
        payload_bytes = sum(len(image.payload or b"") for image in message.failed)
        self.payload_bytes += payload_bytes
        self.size_bytes += payload_bytes
        self.end = message.end

    def skip_to(self, end: int, now: float) -> None:
        """Take note that the topic has no messages up to ``end``."""
        if end > self.end:
            self.end = end
            self.opened_at = now if self.opened_at is None else self.opened_at

    def due(self, settings: LogSettings, now: float) -> bool:
        """Whether the buffer should become a segment: by rows, bytes or age."""
        if self.opened_at is None:
            return False
        return (
            len(self.records) >= settings.segment_max_rows
            or self.size_bytes >= settings.segment_max_bytes
            or now - self.opened_at >= settings.segment_max_age_s
        )

    def delivered(self) -> None:
        """Forget the failed images, which have become dead letters; their rows stay."""
        self.failed = []
        self.size_bytes -= self.payload_bytes
        self.payload_bytes = 0

    def published(self, position: ChainPosition) -> None:
        """Start anew after the segment that has just become durable."""
        self.position = position
        self.end = position.offset
        self.records, self.failed = [], []
        self.size_bytes = self.payload_bytes = 0
        self.opened_at = None


def _origin_bytes(record: ScoredRecord) -> int:
    """What a row repeats of its message."""
    headers = sum(len(name) + len(value or b"") for name, value in record.origin.headers)
    return len(record.origin.key or b"") + headers
