"""Rows of the log one by one, for tests that write and compare them by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from nap_stream.records import (
    ChainPosition,
    DecodedRows,
    FailedImage,
    Origin,
    PublishedSegment,
    SegmentSummary,
    Status,
    TopicPartition,
)
from nap_stream.scored_log.chain import ScoredLog
from nap_stream.scored_log.format import ROWS, rows_of, with_fingerprints
from nap_stream.scored_log.summary import SummaryShape, summarise

if TYPE_CHECKING:
    # Processes that race for a segment import this, and torch takes longer than the race.
    import torch


@dataclass(frozen=True, slots=True)
class Scores:
    """What stands in the columns of scores of one row."""

    class_id: int
    class_name: str
    confidence: float
    max_logit: float
    energy: float
    nap: float
    fused: float
    ood_p_value: float
    is_ood: bool
    react: float | None = None
    ash: float | None = None
    scale: float | None = None
    dice: float | None = None
    knn: float | None = None
    fdbd: float | None = None
    mahalanobis: float | None = None
    gen: float | None = None
    nci: float | None = None
    calibration_p_value: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """One row. ``scores`` is null exactly where ``status`` is not ok."""

    origin: Origin
    status: Status
    error: str | None
    scored_time_ms: int
    scores: Scores | None
    width: int | None
    height: int | None
    format: str | None
    sha256: str | None
    decode_warning: str | None = None
    source_uri: str | None = None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One row of `DecodedRows` whose status is ok."""

    origin: Origin
    pixels: "torch.Tensor"
    width: int
    height: int
    format: str
    sha256: str
    decode_warning: str | None
    source_uri: str | None


def images_of(rows: DecodedRows, partition: TopicPartition) -> list[DecodedImage | FailedImage]:
    """What was decoded, row by row."""
    pixels, failed = iter(rows.pixels), iter(rows.failed)
    images: list[DecodedImage | FailedImage] = []
    for row in range(len(rows)):
        of = {name: column[row] for name, column in rows.columns.items()}
        where = of["offset"], of["index"], of["key"], of["event_time"], of["ingest_time"]
        origin = Origin(partition, *where, of["headers"])
        size = of["width"], of["height"], of["format"], of["sha256"]
        if of["status"] is Status.OK:
            assert of["error"] is None
            decoded = cast("torch.Tensor", next(pixels))
            assert (decoded.ndim, str(decoded.dtype)) == (3, "torch.uint8")
            images.append(
                DecodedImage(origin, decoded, *size, of["decode_warning"], of["source_uri"])
            )
        else:
            image = next(failed)
            assert image.origin == origin
            assert (image.status, image.error) == (of["status"], of["error"])
            assert (image.width, image.height, image.format, image.sha256) == size
            images.append(image)
    assert next(pixels, None) is None
    assert next(failed, None) is None
    return images


def table_of(records: Sequence[ScoredRecord]) -> pa.Table:
    """Records as rows that can be published."""
    origins = [record.origin for record in records]
    columns = {
        "offset": [origin.offset for origin in origins],
        "index": [origin.index for origin in origins],
        "key": [origin.key for origin in origins],
        "event_time": [origin.event_time_ms for origin in origins],
        "ingest_time": [origin.ingest_time_ms for origin in origins],
        "scored_time": [record.scored_time_ms for record in records],
        "headers": [origin.headers for origin in origins],
    }
    of_the_image = ("width", "height", "format", "sha256", "decode_warning", "source_uri")
    for name in ("status", "error", *of_the_image):
        columns[name] = [getattr(record, name) for record in records]
    for score in fields(Scores):
        columns[score.name] = [
            None if record.scores is None else getattr(record.scores, score.name)
            for record in records
        ]
    return pa.Table.from_batches([rows_of(columns, len(records))], ROWS)


def file_table(records: Sequence[ScoredRecord], model: str, calibration: str) -> pa.Table:
    """Records as a file has them."""
    return with_fingerprints(table_of(records), model, calibration)


class RecordLog(ScoredLog):
    """A log that takes records, too."""

    def publish(
        self,
        partition: TopicPartition,
        position: ChainPosition,
        end_offset: int,
        rows: pa.Table | Sequence[ScoredRecord],
        *,
        gap: str | None = None,
    ) -> PublishedSegment:
        table = rows if isinstance(rows, pa.Table) else table_of(rows)
        return super().publish(partition, position, end_offset, table, gap=gap)


def summarise_records(
    published: PublishedSegment,
    records: Sequence[ScoredRecord],
    shape: SummaryShape,
    gap: str | None = None,
) -> SegmentSummary:
    """The summary of a segment of records."""
    return summarise(published, table_of(records), shape, gap)
