"""What the messages of a topic hold, beside the rows of the log: image by image, by SHA-256.

The log's own digests show that its rows are as they were written. That they are of what came, and
of all of it, only the topic shows, as long as it has the messages.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext

import torch

from nap_stream.clock import Progress
from nap_stream.decode.message import decode_message
from nap_stream.errors import BrokerError, ChainBrokenError, ConfigError
from nap_stream.messages.reader import open_reader
from nap_stream.pipeline.rows import ReadMessage
from nap_stream.records import Message, PartitionOffsets, Status, TopicPartition
from nap_stream.scored_log.format import partition_folder
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import (
    ContentsReport,
    Defect,
    DefectKind,
    VerifyReport,
)
from nap_stream.settings.schema import Settings
from nap_stream.source.peek import messages_between

MAX_DEFECTS = 20
"""So many are named of a partition; of the others it is told how many there are."""
_CHUNK_MESSAGES = 10_000
_AWAY = {Status.MISSING, Status.FETCH_FAILED, Status.NOT_ALLOWED}
"""What an image has that was elsewhere, and is not had now."""
_Image = tuple[str | None, bool]
"""The SHA-256 of an image, None without bytes, and whether it could not be had, then or now."""


def require_images(settings: Settings) -> Settings:
    """Settings by which messages hold images.

    Raises:
        ConfigError: The model runs elsewhere.
    """
    if settings.model.elsewhere is not None:
        raise ConfigError(
            "the model runs elsewhere: its messages hold outputs, and no images to compare",
            "--contents",
            "Leave it out",
        )
    return settings


def compare_contents(
    store: SegmentStore,
    settings: Settings,
    report: VerifyReport,
    offsets: Sequence[PartitionOffsets],
    advance: Progress,
) -> ContentsReport:
    """Read the messages that the topic still has of each chain, and compare them with its rows.

    Each is read as a worker reads it, by ``settings``, and no group is joined. Declared gaps
    are left out: what the topic has of them `compare_with_broker` tells. So is what was pruned.
    ``advance`` is told of messages. A topic that cannot be read ends it, and the report says so.

    Raises:
        ConfigError: As `require_images`.
        ScoredLogError: The store cannot be read.
    """
    require_images(settings)
    ends = {head.partition: head for head in report.heads}
    defects: list[Defect] = []
    problem, pruned = "", 0
    # Whoever compares does not wait for a store or a registry that is away.
    away = settings.messages.model_copy(update={"wait_s": 0.0})
    reader = open_reader(away, settings.limits)
    with closing(reader) if reader is not None else nullcontext():
        topic = _Topic(store, settings, reader, advance)
        for one in sorted(offsets, key=lambda each: each.partition):
            if (head := ends.get(one.partition)) is None:
                continue
            first, end = max(one.earliest, head.start_offset), min(one.end, head.end_offset)
            own_spans = (each.span for each in report.pruned if each.span.place == one.partition)
            start = max([first, *(min(span.end_offset, end) for span in own_spans)])
            pruned += start - first
            folder = partition_folder(one.partition)
            declared = [
                range(gap.base_offset, gap.end_offset)
                for gap in report.gaps
                if gap.file.startswith(f"{folder}/")
            ]
            own = []
            try:
                for offset, text in topic.differing(one.partition, start, end):
                    if not any(offset in gap for gap in declared):
                        own.append(text)
            except BrokerError as error:
                problem = str(error)
            more = len(own) - MAX_DEFECTS
            told = own[:MAX_DEFECTS] + ([f"{more:,} more messages differ"] if more > 0 else [])
            defects += [Defect(folder, DefectKind.TOPIC_CONTENT, text) for text in told]
            if problem:
                break
    counts = topic.messages, topic.images, topic.gone, topic.unread, pruned
    return ContentsReport(*counts, tuple(defects), problem)


class _Topic:
    """Compares messages with rows, and counts what it has seen; see `ContentsReport`."""

    def __init__(
        self, store: SegmentStore, settings: Settings, read: ReadMessage | None, advance: Progress
    ) -> None:
        self._store, self._settings, self._read = store, settings, read
        self._advance = advance
        self.messages = self.images = self.gone = self.unread = 0

    def differing(
        self, partition: TopicPartition, start: int, end: int
    ) -> Iterator[tuple[int, str]]:
        """Offsets in ``[start, end)`` whose rows are not what the message holds, and how."""
        sent: dict[int, list[_Image]] = {}
        for message in messages_between(self._settings.kafka, partition, start, end):
            sent[message.offset] = list(self._images_of(message))
            self.messages += 1
            self._advance(1, None)
            if len(sent) >= _CHUNK_MESSAGES:
                yield from self._chunk(partition, (start, message.offset), sent)
                start, sent = message.offset + 1, {}
        if start < end:
            yield from self._chunk(partition, (start, end - 1), sent)

    def _images_of(self, message: Message) -> Iterator[_Image]:
        settings = self._settings
        rows = decode_message(
            message,
            settings.limits,
            kept_headers=settings.log.headers,
            ingest_time_ms=message.timestamp_ms,
            preprocessing=settings.model.preprocessing,
            prepare=lambda _: torch.empty(0),
            leaves_jpegs=True,
            read=self._read,
        )
        for sha256, status in zip(rows.columns["sha256"], rows.columns["status"], strict=True):
            yield sha256, status in _AWAY

    def _chunk(
        self, partition: TopicPartition, offsets: tuple[int, int], sent: dict[int, list[_Image]]
    ) -> Iterator[tuple[int, str]]:
        query = Query(partition.topic, (partition.partition,), offsets=offsets)
        logged, unread = defaultdict[int, list[_Image]](list), list[ChainBrokenError]()
        for batch in scan(self._store, query, ["offset", "sha256", "status"], unread=unread):
            columns = (column.to_pylist() for column in batch.columns)
            for offset, sha256, status in zip(*columns, strict=True):
                if offset in sent:
                    logged[offset].append((sha256, status in _AWAY))
                else:
                    self.gone += 1
        for offset, images in sent.items():
            rows = logged.get(offset)
            if rows is None:
                # What cannot be read is a defect already.
                if not unread:
                    yield offset, f"offset {offset} is in the topic, and the log has no row of it"
            elif len(rows) != len(images) and any(is_away for _, is_away in rows + images):
                # What cannot be had may be several images.
                self.unread += max(len(rows), len(images))
            elif len(rows) != len(images):
                counts = f"{len(images)} images in the topic, and {len(rows)} rows in the log"
                yield offset, f"offset {offset} has {counts}"
            elif (told := self._first_other(rows, images)) is not None:
                yield offset, f"offset {offset}, {told}"

    def _first_other(self, rows: list[_Image], images: list[_Image]) -> str | None:
        for index, (own, found) in enumerate(zip(rows, images, strict=True)):
            logged, sha256 = own[0], found[0]
            if own[1] or found[1]:
                self.unread += 1
            elif logged != sha256:
                return f"image {index} has the SHA-256 {sha256} in the topic, and its row {logged}"
            else:
                self.images += sha256 is not None
        return None
