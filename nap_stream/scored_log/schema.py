"""The one Arrow schema of the scored log: what a row holds.

A row is one image of one message; (topic, partition, offset, index) names it for ever. Rows
stand in Kafka order. Topic and partition are no columns of the files: they are the hive keys of
the folders (``topic=…/partition=…``), so that every Parquet reader that knows hive partitioning
(pyarrow.dataset, DuckDB, Spark) sees them exactly once. A file on its own names both in its
footer (`nap_stream.scored_log.footer`).

``status`` is ``ok`` for a scored image, else what was wrong, told by ``error``; the columns from
``class_id`` to ``is_ood``, and ``max_logit``, are null exactly where ``status`` is not ``ok``.
``react``, ``ash``, ``scale``, ``dice`` and ``knn`` are null also where the run did not compute
them. All scores, ``fused`` among them, are higher for in-distribution images; ``ood_p_value`` is
small for out-of-distribution ones. Scores are stored in double precision, so that a verdict can
be recomputed from its row exactly. Each field's metadata ``doc`` says what it holds and its unit.

Version 2 added the columns from ``max_logit`` on, at the end, so that a reader that matches
columns by position keeps those of version 1. A chain may go from version 1 to version 2 between
two segments; `nap_stream.scored_log.reader` gives null for what a file lacks. Plain readers
differ. pyarrow takes the columns of the first file by path, unless told: where that is of version
1, the new columns are not seen at all; where it is of version 2, they are null for version 1.
Name the schema (``pyarrow.dataset.dataset(root, schema=…, partitioning="hive")``, that of a file
of version 2 and the hive keys), or in DuckDB ``union_by_name = true``.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from nap_stream.records import ScoredRecord, Scores

SCHEMA_VERSION = 3
EARLIEST_TIME_MS = -62_135_596_800_000
LATEST_TIME_MS = 253_402_300_799_999
OPTIONAL_SCORES = ("react", "ash", "scale", "dice", "knn")
"""Columns of scores that a run may leave out; null then, whatever the status."""

DICTIONARY_COLUMNS = [
    "key",
    "model_fingerprint",
    "calibration_fingerprint",
    "class_id",
    "class_name",
    "status",
    "error",
    "width",
    "height",
    "format",
    "headers.list.element.name",
    "headers.list.element.value",
]
"""Columns whose values repeat: Parquet stores each value once a segment."""

_SCORE_COLUMNS = [field.name for field in fields(Scores) if field.name != "class_name"]
_TIME = pa.timestamp("ms", tz="UTC")
_HEADER = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())])


def _column(name: str, kind: Any, doc: str, *, nullable: bool = False) -> Any:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


def _score(name: str, kind: Any, doc: str) -> Any:
    return _column(name, kind, f"{doc} Null where status is not ok.", nullable=True)


def _optional_score(name: str, doc: str) -> Any:
    return _score(name, pa.float64(), f"{doc}, higher = in-distribution. Null if not computed.")


SCHEMA = pa.schema(
    [
        _column("offset", pa.int64(), "Kafka offset of the message."),
        _column("index", pa.int32(), "Index of the image in its message, from 0."),
        _column("key", pa.binary(), "Message key as it came, or null.", nullable=True),
        _column("event_time", _TIME, "Event time: the message's or the image's own timestamp."),
        _column("ingest_time", _TIME, "When the message was read from Kafka."),
        _column("scored_time", _TIME, "When the image was scored or refused."),
        _column("model_fingerprint", pa.string(), "Weights, factory and preprocessing, hex."),
        _column("calibration_fingerprint", pa.string(), "The calibration artifact, hex."),
        _column("status", pa.string(), "ok, or why there are no scores."),
        _column("error", pa.string(), "What was wrong, for people; null if ok.", nullable=True),
        _score("class_id", pa.int64(), "Predicted class, index of the largest logit."),
        _score("class_name", pa.string(), "Predicted class, by name."),
        _score("confidence", pa.float64(), "MSP: largest softmax probability, 0 to 1."),
        _score("energy", pa.float64(), "logsumexp of the logits, higher = in-distribution."),
        _score("nap", pa.float64(), "NAP score (arXiv 2402.18162), higher = in-distribution."),
        _score(
            "fused", pa.float64(), "Score of the calibration's method, higher = in-distribution."
        ),
        _score(
            "ood_p_value",
            pa.float64(),
            "Conformal p-value of fused, small = OOD; "
            "one- or two-sided, per class or not, as the calibration says.",
        ),
        _score("is_ood", pa.bool_(), "Whether ood_p_value <= alpha of the calibration."),
        _column("width", pa.int64(), "Width in the file, pixels; null if unknown.", nullable=True),
        _column(
            "height", pa.int64(), "Height in the file, pixels; null if unknown.", nullable=True
        ),
        _column("format", pa.string(), "jpeg, png or webp; null if unknown.", nullable=True),
        _column("sha256", pa.string(), "SHA-256 of the image's bytes, hex.", nullable=True),
        _column(
            "headers",
            pa.list_(pa.field("element", _HEADER, nullable=False)),
            "Kept message headers, in order, with repeats.",
        ),
        _score("max_logit", pa.float64(), "Largest logit, higher = in-distribution."),
        _optional_score("react", "ReAct (arXiv 2111.12797)"),
        _optional_score("ash", "ASH (arXiv 2209.09858)"),
        _optional_score("scale", "SCALE (arXiv 2310.00227)"),
        _optional_score("dice", "DICE (arXiv 2111.09805)"),
        _optional_score("knn", "KNN (arXiv 2204.06507), 2 minus the distance of unit vectors"),
    ]
)
"""Version `SCHEMA_VERSION` of the columns of a segment's file, times in milliseconds UTC."""


def storable_time_ms(time_ms: int) -> int:
    """Bring a time into years 1 to 9999, which is what every Parquet reader can show.

    Event times come from producers and can be anything.
    """
    return min(max(time_ms, EARLIEST_TIME_MS), LATEST_TIME_MS)


def storable_text(text: str) -> str:
    r"""Write lone surrogates as ``\udcXX``: UTF-8, and so Parquet, has no form for them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _optional_text(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _headers(record: ScoredRecord) -> list[dict[str, Any]]:
    return [{"name": storable_text(k), "value": v} for k, v in record.origin.headers]


def _score_columns(all_scores: Sequence[Scores | None]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [None if scores is None else getattr(scores, name) for scores in all_scores]
        for name in _SCORE_COLUMNS
    }
    columns["class_name"] = [
        None if scores is None else storable_text(scores.class_name) for scores in all_scores
    ]
    return columns


def to_table(
    records: Sequence[ScoredRecord], *, model_fingerprint: str, calibration_fingerprint: str
) -> pa.Table:
    """Lay records out as rows.

    Args:
        records: The rows, in order. May be empty.
        model_fingerprint: The model that scored all of them.
        calibration_fingerprint: The calibration that judged all of them.

    Returns:
        A table with exactly `SCHEMA`, one row a record.
    """
    origins = [record.origin for record in records]
    columns: dict[str, list[Any]] = {
        "offset": [origin.offset for origin in origins],
        "index": [origin.index for origin in origins],
        "key": [origin.key for origin in origins],
        "event_time": [storable_time_ms(origin.event_time_ms) for origin in origins],
        "ingest_time": [storable_time_ms(origin.ingest_time_ms) for origin in origins],
        "scored_time": [storable_time_ms(record.scored_time_ms) for record in records],
        "model_fingerprint": [model_fingerprint] * len(records),
        "calibration_fingerprint": [calibration_fingerprint] * len(records),
        "status": [record.status.value for record in records],
        "error": [_optional_text(record.error) for record in records],
        "width": [record.width for record in records],
        "height": [record.height for record in records],
        "format": [_optional_text(record.format) for record in records],
        "sha256": [record.sha256 for record in records],
        "headers": [_headers(record) for record in records],
        **_score_columns([record.scores for record in records]),
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
